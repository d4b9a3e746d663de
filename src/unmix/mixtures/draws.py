"""What was drawn for a mixture, apart from how it was drawn: small records that apply themselves.

A draw is a handful of numbers a sample. It lives on the CPU, whatever device the images are on, so
that deciding what to compute from it never makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unmix.mixtures.boxes import box_area, box_mask
from unmix.transfer import to_device

__all__ = ["Draw", "EraseDraw", "ImageSpaceDraw", "MixtureDraw", "PairDraw", "whole_image"]


@runtime_checkable
class Draw(Protocol):
    """Anything drawn for a batch that can be applied to its images, once or again."""

    def apply(self, images: Tensor) -> Tensor:
        """Give the changed images; the given ones stay as they are."""
        ...


@runtime_checkable
class MixtureDraw(Protocol):
    """A draw whose images have two owners, so that the loss can be shared between them."""

    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W)."""
        ...

    @property
    def owners(self) -> Tensor:
        """Whose images are in each mixture, int64 (N, k)."""
        ...

    @property
    def shares(self) -> Tensor:
        """Their shares, float (N, k)."""
        ...

    @property
    def partner(self) -> Tensor:
        """Index of the other image of each mixture, int64 (N,)."""
        ...

    @property
    def weight(self) -> Tensor:
        """Share of an image's own content in its mixture, float (N,), in [0, 1]."""
        ...

    @property
    def per_sample(self) -> bool:
        """False if the whole batch shares one weight."""
        ...


def whole_image(n: int, height: int, width: int) -> Tensor:
    """Boxes that cover the whole image: int64 (n, 4)."""
    return torch.tensor([0, 0, height, width]).expand(n, 4)


@dataclass(frozen=True)
class PairDraw:
    """Mixtures of pairs: inside its box, an image keeps the share `ratio` of itself.

    A global mixture is the whole image at ratio lambda; a region mixture is a box at ratio 0.

    Attributes:
        partner: Index of the other image, int64 (N,).
        box: Where the other image comes in: top, left, bottom, right, int64 (N, 4).
        ratio: Share of the own pixels inside the box, float (N,), in [0, 1]; 1 leaves the image.
        size: Height and width of the images that this was drawn for.
        per_sample: False if the whole batch shares one box and one ratio.
    """

    partner: Tensor
    box: Tensor
    ratio: Tensor
    size: tuple[int, int]
    per_sample: bool = True

    @property
    def weight(self) -> Tensor:
        """Share of an image's own content in its mixture, (N,): 1 - (1 - ratio) box / image."""
        height, width = self.size
        share = box_area(self.box).to(self.ratio.dtype) / (height * width)
        return 1 - (1 - self.ratio) * share

    @property
    def owners(self) -> Tensor:
        """The sample itself and its partner, int64 (N, 2)."""
        return torch.stack([torch.arange(len(self.partner)), self.partner], dim=1)

    @property
    def shares(self) -> Tensor:
        """Their shares, float (N, 2)."""
        return torch.stack([self.weight, 1 - self.weight], dim=1)

    @property
    def touched(self) -> Tensor:
        """True where the mixture differs from the image, bool (N,)."""
        return (self.ratio < 1) & (box_area(self.box) > 0)

    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W) with itself.

        Any number of batches may be given in turn; each gets the same partners, weights and boxes.
        """
        _check_batch(images, len(self.partner), self.size)
        if not self.per_sample and len(images) > 0:
            return self._apply_shared(images)
        return self.onto(images, images)

    def onto(self, base: Tensor, images: Tensor) -> Tensor:
        """Mix `base[i]` with `images[partner[i]]`; both (N, C, H, W), neither is changed."""
        rows = self.touched.nonzero().squeeze(1)
        others = images[to_device(self.partner[rows], images.device)]
        return self.blend(base, others, rows)

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
        return mixed if len(rows) == len(base) else _replaced(base, where, mixed)

    def _apply_shared(self, images: Tensor) -> Tensor:
        """One box and one ratio for the batch: only the box is read and written."""
        top, left, bottom, right = self.box[0].tolist()
        ratio = self.ratio[0].item()
        inside = images[:, :, top:bottom, left:right]
        others = inside[to_device(self.partner, images.device)]
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = (
            others if ratio == 0 else ratio * inside + (1 - ratio) * others
        )
        return mixed


@dataclass(frozen=True)
class ImageSpaceDraw:
    """The image-space chain IM = RM(GM(images)): global rounds, then region rounds.

    Source: Shen et al. 2020 (arXiv 2003.05438 v1), classes GM and RM of the released code.

    Attributes:
        own: Global rounds of each image. Their partners are unmixed images of the batch.
        regions: Region rounds. The partner of each is itself globally mixed before it is pasted...
        partners: ...by these rounds, one tuple a region round; entry i is for sample i's partner.
        decay: What each image is multiplied by in the first region round, float (N,); 1 where
            that round did not fire.
    """

    own: tuple[PairDraw, ...]
    regions: tuple[PairDraw, ...]
    partners: tuple[tuple[PairDraw, ...], ...]
    decay: Tensor

    @property
    def touched(self) -> Tensor:
        """True where a round fired for the image, bool (N,)."""
        fired = torch.zeros(len(self.decay), dtype=torch.bool)
        for round_ in (*self.own, *self.regions):
            fired |= round_.ratio < 1
        return fired

    def apply(self, images: Tensor) -> Tensor:
        """Mix a batch (N, C, H, W) with itself; every view given gets the same mixture."""
        _check_batch(images, len(self.decay), None)
        mixed = images
        for round_ in self.own:
            mixed = round_.onto(mixed, images)
        for number, (region, rounds) in enumerate(zip(self.regions, self.partners, strict=True)):
            if number == 0 and bool((self.decay != 1).any()):
                mixed = mixed * to_device(self.decay, mixed.device, mixed.dtype).view(-1, 1, 1, 1)
            rows = region.touched.nonzero().squeeze(1)
            others = images[to_device(region.partner[rows], images.device)]
            for round_ in rounds:
                others = _mix_rows(round_, others, images, rows)
            mixed = region.blend(mixed, others, rows)
        return mixed


@dataclass(frozen=True)
class EraseDraw:
    """Boxes to be filled with a colour: Cutout and RandomErasing.

    Attributes:
        box: top, left, bottom, right, int64 (N, 4); an empty box leaves the image.
        fill: The value written, float (N,), in the units of the normalised images.
        size: Height and width of the images that this was drawn for.
    """

    box: Tensor
    fill: Tensor
    size: tuple[int, int]

    @property
    def touched(self) -> Tensor:
        """True where something is erased, bool (N,)."""
        return box_area(self.box) > 0

    def apply(self, images: Tensor) -> Tensor:
        """Erase the boxes of a batch (N, C, H, W)."""
        _check_batch(images, len(self.fill), self.size)
        rows = self.touched.nonzero().squeeze(1)
        if len(rows) == 0:
            return images
        where = to_device(rows, images.device)
        mask = box_mask(to_device(self.box[rows], images.device), *self.size)
        fill = to_device(self.fill[rows], images.device, images.dtype).view(-1, 1, 1, 1)
        return _replaced(images, where, torch.where(mask, fill, images[where]))


def _replaced(images: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """A copy of the images, in their memory format, with some of them replaced."""
    copy = images.clone()
    copy[where] = values
    return copy


def _mix_rows(round_: PairDraw, base: Tensor, images: Tensor, rows: Tensor) -> Tensor:
    """One global round on some samples only: `base[k]` belongs to sample `rows[k]`."""
    picked = PairDraw(
        round_.partner[rows], round_.box[rows], round_.ratio[rows], round_.size, round_.per_sample
    )
    return picked.onto(base, images)


def _check_batch(images: Tensor, n: int, size: tuple[int, int] | None) -> None:
    if images.ndim != 4 or len(images) != n or (size and tuple(images.shape[2:]) != size):
        wanted = f"({n}, C, {size[0]}, {size[1]})" if size else f"({n}, C, H, W)"
        raise ValueError(
            f"this draw was made for images of shape {wanted}, not {tuple(images.shape)}"
        )
