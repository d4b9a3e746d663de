"""Draws: the random numbers of a mixture, as small records that are applied to images.

A draw is a few numbers per sample. It is kept on the CPU, whatever device the images are on, so
that deciding what to compute from it never makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from unmix.errors import UserError
from unmix.mixtures.boxes import (
    box_area,
    box_mask,
    nearest_indices,
    resized_boxes,
    upsample_nearest,
)
from unmix.mixtures.pixels import pixelwise
from unmix.mixtures.positions import box_coverage, mask_coverage
from unmix.stages import stage
from unmix.transfer import to_device

__all__ = [
    "Draw",
    "MaskDraw",
    "MixtureDraw",
    "PairDraw",
    "Pairs",
    "PixelDraw",
    "check_batch",
    "formatted",
    "replaced",
    "source_of",
    "whole_image",
]


@runtime_checkable
class Draw(Protocol):
    """Random numbers that were drawn for a batch, and can be applied to its images repeatedly."""

    def apply(self, images: Tensor) -> Tensor:
        """Return the changed images; the given ones are unchanged."""
        ...

    def resized(self, height: int, width: int) -> Draw:
        """The same draw for the same samples' images of another size."""
        ...


@runtime_checkable
class MixtureDraw(Protocol):
    """A draw of M mixtures whose images have owners, so that the loss can be shared among them.

    M is the number of images N, or N // 2 with the pairing by halves.
    """

    @property
    def owners(self) -> Tensor:
        """Whose images are in each mixture, int64 (M, k); column 0 is the sample itself."""
        ...

    @property
    def shares(self) -> Tensor:
        """Each owner's share of the content, float (M, k), in [0, 1]; rows sum to 1."""
        ...

    def shares_at(self, rows: int, columns: int) -> Tensor:
        """The owners' shares of each cell of a grid, float (M, k, rows, columns); k sums to 1.

        The grid divides the image evenly; a share is that of the pixels in a cell.
        """
        ...

    @property
    def partner(self) -> Tensor:
        """Index of the second owner of each mixture, int64 (M,)."""
        ...

    @property
    def weight(self) -> Tensor:
        """Share of an image's own content in its mixture, float (M,), in [0, 1]."""
        ...

    @property
    def per_sample(self) -> bool:
        """False if the whole batch shares one row of shares."""
        ...

    @property
    def is_mixed(self) -> Tensor:
        """True where a mixture differs from its image, bool (M,)."""
        ...

    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W) to (M, C, H, W); the given images are unchanged.

        The pixels of the other owners come from `others`, further views of the same images, one
        tensor per view; without them from `images`.
        """
        ...

    def query(self, method: Any, images: Tensor, others: Sequence[Tensor] = ()) -> Any:
        """A method's query of the mixtures of its first view, (N, C, H, W)."""
        ...

    def resized(self, height: int, width: int) -> MixtureDraw:
        """The same draw for images, or feature maps, of another size.

        Owners stay; boxes and masks are scaled to whole pixels, and the shares are those of the
        pixels that are pasted then.
        """
        ...


def whole_image(n: int, height: int, width: int) -> Tensor:
    """Boxes that cover the whole image: int64 (n, 4)."""
    return torch.tensor([0, 0, height, width], device="cpu").expand(n, 4)


class PixelDraw:
    """A draw that mixes pixels, so that its mixtures are encoded as any images are."""

    def query(self, method: Any, images: Tensor, others: Sequence[Tensor] = ()) -> Any:
        """A method's query of the mixtures of its first view, (N, C, H, W)."""
        with stage("mixture"):
            mixed = self.apply(images, others)
        return method.query(mixed, 0)

    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch; see `MixtureDraw.apply`."""
        raise NotImplementedError


class Pairs(PixelDraw):
    """The owners and shares of mixtures of two, from their `partner` and `weight`."""

    partner: Tensor

    @property
    def weight(self) -> Tensor:
        """Share of an image's own content in its mixture, (M,)."""
        raise NotImplementedError

    @property
    def owners(self) -> Tensor:
        """The sample itself and its partner, int64 (M, 2), where the partners are."""
        own = torch.arange(len(self.partner), device=self.partner.device)
        return torch.stack([own, self.partner], dim=1)

    @property
    def shares(self) -> Tensor:
        """Their shares, float (M, 2)."""
        return torch.stack([self.weight, 1 - self.weight], dim=1)

    def weight_at(self, rows: int, columns: int) -> Tensor:
        """Share of an image's own content in each cell of a grid, (M, rows, columns)."""
        raise NotImplementedError

    def shares_at(self, rows: int, columns: int) -> Tensor:
        """Their shares of each cell of a grid, float (M, 2, rows, columns)."""
        own = self.weight_at(rows, columns)
        return torch.stack([own, 1 - own], dim=1)


@dataclass(frozen=True)
class PairDraw(Pairs):
    """Mixtures of pairs: inside its box, an image keeps the share `ratio` of itself.

    A global mixture is the whole image at ratio lambda; a region mixture is a box at ratio 0.

    Attributes:
        partner: Index of the other image, int64 (M,).
        box: Where the other image comes in: top, left, bottom, right, int64 (M, 4).
        ratio: Share of the own pixels inside the box, float (M,), in [0, 1]; 1 leaves the image.
        size: Height and width of the images that this was drawn for.
        per_sample: False if the whole batch shares one box and one ratio.
        batch: Number of images that this was drawn for; None if it is that of the mixtures.
    """

    partner: Tensor
    box: Tensor
    ratio: Tensor
    size: tuple[int, int]
    per_sample: bool = True
    batch: int | None = None

    @property
    def weight(self) -> Tensor:
        """Share of an image's own content in its mixture, (M,): 1 - (1 - ratio) box / image."""
        height, width = self.size
        share = box_area(self.box).to(self.ratio.dtype) / (height * width)
        return 1 - (1 - self.ratio) * share

    def weight_at(self, rows: int, columns: int) -> Tensor:
        """Share of an image's own content in each cell, (M, rows, columns)."""
        covered = box_coverage(self.box, self.size, rows, columns).to(self.ratio.dtype)
        return 1 - (1 - self.ratio[:, None, None]) * covered

    @property
    def is_mixed(self) -> Tensor:
        """True where the mixture differs from the image, bool (M,)."""
        return (self.ratio < 1) & (box_area(self.box) > 0)

    @property
    def mixes_regions(self) -> bool:
        """Whether each pixel is of one image."""
        return bool(((self.ratio == 0) | ~self.is_mixed).all())

    def resized(self, height: int, width: int) -> PairDraw:
        """The same partners and ratios, with scaled boxes."""
        box = resized_boxes(self.box, self.size, (height, width))
        return replace(self, box=box, size=(height, width))

    @pixelwise
    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W) with itself, or with another view of itself.

        Any number of batches may be given in turn; each gets the same partners, weights and boxes.
        """
        source = source_of(images, others, self.batch or len(self.partner), self.size)
        images = images[: len(self.partner)]
        if not self.per_sample and len(images) > 0:
            return self._apply_shared(images, source)
        return self.onto(images, source)

    def onto(self, base: Tensor, images: Tensor) -> Tensor:
        """Mix `base[i]` with `images[partner[i]]`; neither is changed."""
        rows = self.is_mixed.nonzero().squeeze(1)
        partner = self.partner
        if len(rows) < len(partner):
            partner = partner[to_device(rows, partner.device)]
        return self.blend(base, images[to_device(partner, images.device)], rows)

    def blend(self, base: Tensor, others: Tensor, rows: Tensor) -> Tensor:
        """Mix `base[rows[k]]` with `others[k]`, by the numbers drawn for sample `rows[k]`."""
        if len(rows) == 0:
            return base
        device = base.device
        ratio = to_device(self.ratio[rows], device, base.dtype).view(-1, 1, 1, 1)
        mask = box_mask(to_device(self.box[rows], device), *self.size)
        where = to_device(rows, device)
        own = base[where]
        mixed = torch.where(mask, ratio * own + (1 - ratio) * others, own)
        return mixed if len(rows) == len(base) else replaced(base, where, mixed)

    def _apply_shared(self, images: Tensor, source: Tensor) -> Tensor:
        """One box and one ratio for the batch: only the box is read and written."""
        top, left, bottom, right = self.box[0].tolist()
        ratio = self.ratio[0].item()
        inside = images[:, :, top:bottom, left:right]
        others = source[:, :, top:bottom, left:right][to_device(self.partner, images.device)]
        mixture = others if ratio == 0 else ratio * inside + (1 - ratio) * others
        if mixture.shape == images.shape:
            return mixture
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = mixture
        return mixed


@dataclass(frozen=True)
class MaskDraw(Pairs):
    """Mixtures of pairs: inside its mask, an image has its partner's pixels.

    Attributes:
        partner: Index of the other image, int64 (M,).
        mask: True where the other image comes in, bool (M, H, W) or, for the whole batch,
            (1, H, W); or the other image's share of each pixel, float, in [0, 1]. On the CPU, or
            where the images are that it was made from.
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

    def weight_at(self, rows: int, columns: int) -> Tensor:
        """Share of the pixels of each cell that stay the image's own, (M, rows, columns)."""
        own = 1 - mask_coverage(self.mask, rows, columns)
        return own.expand(len(self.partner), -1, -1)

    @property
    def mixes_regions(self) -> bool:
        """Whether each pixel is of one image."""
        return self.mask.dtype == torch.bool

    @property
    def is_mixed(self) -> Tensor:
        """True where the mixture differs from the image, bool (M,)."""
        return self.mask.flatten(1).any(dim=1).expand(len(self.partner))

    def resized(self, height: int, width: int) -> MaskDraw:
        """The same partners; each pixel takes the nearest one of the mask."""
        rows, columns = map(nearest_indices, self.size, (height, width))
        rows, columns = (to_device(each, self.mask.device) for each in (rows, columns))
        return replace(self, mask=upsample_nearest(self.mask, rows, columns))

    @pixelwise
    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W) with itself, or with another view of itself."""
        source = source_of(images, others, self.batch, self.size)
        own = images[: len(self.partner)]
        mask = to_device(self.mask, images.device)[:, None]
        theirs = source[to_device(self.partner, own.device)]
        if mask.is_floating_point():
            share = mask.to(own.dtype)
            return formatted((1 - share) * own + share * theirs, own)
        return formatted(torch.where(mask, theirs, own), own)


def replaced(images: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """A copy of the images, in their memory format, with some of them replaced."""
    copy = images.clone()
    copy[where] = values
    return copy


def source_of(
    images: Tensor, others: Sequence[Tensor], n: int, size: tuple[int, int] | None
) -> Tensor:
    """Where the pixels of other owners come from: another view, or the images themselves.

    Raises:
        UserError: if the images, or those of the other view, are not n of that size.
    """
    check_batch(images, n, size)
    if not others:
        return images
    check_batch(others[0], n, size)
    return others[0]


def check_batch(images: Tensor, n: int, size: tuple[int, int] | None) -> None:
    """Check that images (N, C, H, W) are what a draw was made for.

    Raises:
        UserError: if they are not.
    """
    if images.ndim != 4 or len(images) != n or (size and tuple(images.shape[2:]) != size):
        wanted = f"({n}, C, {size[0]}, {size[1]})" if size else f"({n}, C, H, W)"
        raise UserError(
            f"images: this draw was made for {wanted}, not {tuple(images.shape)}; draw for each "
            "batch, and for images of another size use draw.resized(height, width)."
        )


def formatted(images: Tensor, like: Tensor) -> Tensor:
    """The images in the memory format of others: channels last or not."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
