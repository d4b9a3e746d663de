"""Cutout and RandomErasing, the two perturbations that the paper compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmix.errors import UserError, check_number
from unmix.mixtures.boxes import box_area, box_mask, resized_boxes
from unmix.mixtures.draws import check_batch, replaced
from unmix.mixtures.fields import check_parameters, parameter
from unmix.mixtures.operators import Operator
from unmix.mixtures.pixels import pixelwise
from unmix.mixtures.sampling import batch_shape
from unmix.randomness import uniform
from unmix.transfer import to_device

__all__ = ["Cutout", "EraseDraw", "RandomErasing"]

# The released code's square, and the views that it was released for.
_PUBLISHED_SIDE, _PUBLISHED_SIZE = 50, 224


@dataclass(frozen=True)
class EraseDraw:
    """Boxes to be filled with a color: Cutout and RandomErasing.

    Attributes:
        box: top, left, bottom, right, int64 (N, 4); an empty box leaves the image.
        fill: The value written, float (N,), in the units of the normalized images.
        size: Height and width of the images that this was drawn for.
    """

    box: Tensor
    fill: Tensor
    size: tuple[int, int]

    @property
    def is_mixed(self) -> Tensor:
        """True where something is erased, bool (N,)."""
        return box_area(self.box) > 0

    def resized(self, height: int, width: int) -> EraseDraw:
        """The same values, with scaled boxes."""
        box = resized_boxes(self.box, self.size, (height, width))
        return replace(self, box=box, size=(height, width))

    def apply(self, images: Tensor) -> Tensor:
        """Erase the boxes of a batch (N, C, H, W).

        Raises:
            UserError: if the images are whole numbers, and what is written into them is not.
        """
        whole = isinstance(images, Tensor) and not images.is_floating_point()
        if whole and not torch.equal(self.fill, self.fill.round()):
            raise UserError(
                f"images: {images.dtype}; what is written into them is in the units of normalized "
                "floating-point images, so normalize them first."
            )
        return self._erased(images)

    @pixelwise
    def _erased(self, images: Tensor) -> Tensor:
        check_batch(images, len(self.fill), self.size)
        rows = self.is_mixed.nonzero().squeeze(1)
        if len(rows) == 0:
            return images
        where = to_device(rows, images.device)
        mask = box_mask(to_device(self.box[rows], images.device), *self.size)
        fill = to_device(self.fill[rows], images.device, images.dtype).view(-1, 1, 1, 1)
        return replaced(images, where, torch.where(mask, fill, images[where]))


@dataclass(frozen=True)
class Cutout(Operator):
    """A square of one color at a random place (DeVries and Taylor 2017).

    The released code exchanges rows and columns, which is right only for square images. Here they
    are right for all.

    Args:
        mask_size: Side of the square in pixels; at least 1. By default 50/224 of the image's
            shorter side: the published 50 pixels of images of 224.
        cutout_p: Probability for each image, in [0, 1].
        cutout_inside: Keep the whole square inside the image.
        mask_color: The value written into normalized images: 0 is the data set's mean color.
    """

    mask_size: int | None = parameter(None, setting="mask_size", at_least=1)
    cutout_p: float = parameter(0.1, setting="cutout_p", at_least=0, at_most=1)
    cutout_inside: bool = parameter(False, setting="cutout_inside")
    mask_color: float = parameter(0.0, setting="mask_color")

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def mixed_fraction(self) -> float:
        """The expected fraction of images that are changed, in [0, 1]."""
        return self.cutout_p

    def describe(self, height: int | None = None, width: int | None = None) -> str:
        """The side of the square, in pixels of images of this size, and the probability."""
        side = f"{self.mask_size} px" if self.mask_size else "50/224 of the side"
        if height is not None and width is not None:
            side = f"{self.side(height, width)} px"
        return f"Cutout of {side} with probability {self.cutout_p:g}"

    def side(self, height: int, width: int) -> int:
        """Give the side of the square, in pixels, in images of this size."""
        if self.mask_size is not None:
            return self.mask_size
        return max(1, round(_PUBLISHED_SIDE * min(height, width) / _PUBLISHED_SIZE))

    def erased(self, height: int, width: int) -> tuple[float, float]:
        """Give the share of an image that a square takes, in [0, 1]: on average, and at most."""
        side, mean, most = self.side(height, width), 1.0, 1.0
        for length in (height, width):
            low, high = self._centers(side, length)
            first = [center - side // 2 for center in range(low, high)]
            inside = [max(0, min(at + side, length) - max(at, 0)) / length for at in first]
            mean, most = mean * sum(inside) / len(inside), most * max(inside)
        return mean, most

    def _centers(self, side: int, length: int) -> tuple[int, int]:
        """Where the center may lie on an axis: the first place, and one behind the last."""
        low = side // 2 if self.cutout_inside else 0
        return low, length + 1 - side % 2 - low

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> EraseDraw:
        """Draw for a batch of shape (N, C, H, W).

        Raises:
            UserError: if the square has to be inside and is larger than the image.
        """
        n, height, width = batch_shape(shape)
        side = self.side(height, width)
        if self.cutout_inside and side > min(height, width):
            raise UserError(
                f"{side} does not fit inside images of {height} x {width} pixels; use at most "
                f"{min(height, width)}, or leave `cutout_inside` out.",
                parameter="mask_size",
                owner="Cutout",
            )
        size = torch.tensor([height, width], device="cpu")
        limits = [self._centers(side, length) for length in (height, width)]
        low, high = torch.tensor(limits, device="cpu").T
        numbers = uniform((n, 3), generator).cpu()
        center = low + (numbers[:, :2] * (high - low)).long().minimum(high - low - 1)
        first = center - side // 2
        last = (first + side).minimum(size)
        box = torch.cat([first.clamp(min=0).minimum(size), last.clamp(min=0)], dim=1)
        fires = numbers[:, 2] < self.cutout_p
        return EraseDraw(
            torch.where(fires[:, None], box, torch.zeros_like(box)),
            torch.full_like(numbers[:, 0], float(self.mask_color)),
            (height, width),
        )


@dataclass(frozen=True)
class RandomErasing(Operator):
    """A rectangle of one random value (Zhong et al. 2017).

    The released code exchanges rows and columns, which is right only for square images. Here they
    are right for all. The value is U(0, 1) in the units of normalized images, as released.

    Args:
        area_ratio_range: Least and greatest share of the image to erase, in (0, 1].
        random_erasing_prob: Probability for each image, in [0, 1].
        min_aspect_ratio: Height over width is uniform between this and its inverse, in (0, 1].
        max_attempt: Tries to find a rectangle that fits; then the image is left as it is.
    """

    area_ratio_range: tuple[float, float] = parameter(
        (0.02, 0.4), setting="area_ratio_range", above=0, at_most=1
    )
    random_erasing_prob: float = parameter(
        0.1, setting="random_erasing_prob", at_least=0, at_most=1
    )
    min_aspect_ratio: float = parameter(0.3, setting="min_aspect_ratio", above=0, at_most=1)
    max_attempt: int = parameter(20, setting="max_attempt", at_least=1)

    def __post_init__(self) -> None:
        check_parameters(self)
        low, high = self.area_ratio_range
        check_number("area_ratio_range", high, at_least=low, at_most=1, owner="RandomErasing")

    @property
    def mixed_fraction(self) -> float:
        """The greatest fraction of images that are changed: sometimes no rectangle fits."""
        return self.random_erasing_prob

    def describe(self) -> str:
        """The probability."""
        return f"RandomErasing with probability {self.random_erasing_prob:g}"

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> EraseDraw:
        """Draw for a batch of shape (N, C, H, W)."""
        n, height, width = batch_shape(shape)
        tries = self.max_attempt
        numbers = uniform((n, 4 * tries + 2), generator).cpu()
        area, aspect, row, column = numbers[:, 2:].view(n, 4, tries).unbind(1)
        low, high = self.area_ratio_range
        area = (low + (high - low) * area) * (height * width)
        aspect = (
            self.min_aspect_ratio + (1 / self.min_aspect_ratio - self.min_aspect_ratio) * aspect
        )
        rows = (area * aspect).sqrt().long()
        columns = (area / aspect).sqrt().long()
        fits = (rows < height) & (columns < width)
        first_fit = fits.int().argmax(dim=1, keepdim=True)
        rows, columns, row, column, fits = (
            x.gather(1, first_fit).squeeze(1) for x in (rows, columns, row, column, fits)
        )
        top = (row * (height - rows)).long()
        left = (column * (width - columns)).long()
        box = torch.stack([top, left, top + rows, left + columns], dim=1)
        fires = fits & (numbers[:, 0] < self.random_erasing_prob)
        return EraseDraw(
            torch.where(fires[:, None], box, torch.zeros_like(box)), numbers[:, 1], (height, width)
        )
