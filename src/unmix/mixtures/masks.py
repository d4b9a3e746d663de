"""Mixtures by a mask of any shape: each pixel is one image's or the other's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmix.mixtures.boxes import nearest_places, stretched
from unmix.mixtures.draws import Pairs, source_of
from unmix.transfer import to_device

__all__ = ["MaskDraw", "formatted"]


@dataclass(frozen=True)
class MaskDraw(Pairs):
    """Mixtures of pairs: inside its mask, an image has its partner's pixels.

    Attributes:
        partner: Index of the other image, int64 (M,).
        mask: True where the other image comes in, bool (M, H, W) or, for the whole batch,
            (1, H, W); on the CPU.
        batch: Number of images that this was drawn for.
    """

    partner: Tensor
    mask: Tensor
    batch: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that this was drawn for."""
        return self.mask.shape[1], self.mask.shape[2]

    @property
    def per_sample(self) -> bool:
        """False if the whole batch shares one mask."""
        return len(self.mask) > 1

    @property
    def weight(self) -> Tensor:
        """Share of the pixels that stay the image's own, counted, (M,)."""
        height, width = self.size
        pasted = self.mask.flatten(1).sum(dim=1)
        return (1 - pasted / (height * width)).expand(len(self.partner))

    @property
    def touched(self) -> Tensor:
        """True where the mixture differs from the image, bool (M,)."""
        return self.mask.flatten(1).any(dim=1).expand(len(self.partner))

    def resized(self, height: int, width: int) -> MaskDraw:
        """The same partners; each pixel takes the nearest one of the mask."""
        rows, columns = map(nearest_places, self.size, (height, width))
        return replace(self, mask=stretched(self.mask, rows, columns))

    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W) with itself, or with another view of itself."""
        source = source_of(images, others, self.batch, self.size)
        own = images[: len(self.partner)]
        mask = to_device(self.mask, images.device)[:, None]
        return formatted(torch.where(mask, source[to_device(self.partner, own.device)], own), own)


def formatted(images: Tensor, like: Tensor) -> Tensor:
    """The images in the memory format of others: channels last or not."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
