"""Color jitter and grayscale in one pass for all samples, and solarize.

Brightness, contrast and saturation are linear in a pixel's color and the image's mean gray. A
shift of the hue `H` in HSV is not, but `H(a x + b 1) = a H(x) + b 1` for a factor a >= 0 and any
gray b. So wherever it comes among the other three, it can be applied first, to the original
colors, and the whole chain is linear in `H(x)`, the gray of `x`, and the image's means of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from unmix.randomness import uniform
from unmix.transfer import to_device
from unmix.views.constants import constant

__all__ = [
    "ColorDraw",
    "ColorMaps",
    "apply_color",
    "color_maps",
    "draw_color",
    "hue_matrices",
    "shift_hue",
    "solarize",
]

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in gray (ITU-R BT.601), as in torchvision and Pillow."""


@dataclass(frozen=True)
class ColorDraw:
    """Parameters of color jitter and grayscale, drawn for N samples.

    Attributes:
        brightness: float32 `(N,)`, factor; 1 changes nothing.
        contrast: float32 `(N,)`, factor; 1 changes nothing.
        saturation: float32 `(N,)`, factor; 1 changes nothing.
        hue: float32 `(N,)`, shift as a fraction of the color circle, in [-0.5, 0.5]; 0 changes
            nothing. None if no sample's hue is shifted.
        order: int64 `(N, 4)`, the order of the four: 0 brightness, 1 contrast, 2 saturation, 3 hue.
        gray: bool `(N,)`, which samples become gray afterwards.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor | None
    order: Tensor
    gray: Tensor

    def to(self, device: torch.device | str) -> ColorDraw:
        """Return the same draw on another device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        there = {name: to_device(x, device) for name, x in parts.items() if x is not None}
        return replace(self, **there)


@dataclass(frozen=True)
class ColorMaps:
    """The map `y = pixel @ v + mean @ m` of colors `v` in an image in which their mean is `m`.

    Attributes:
        hue: float32 `(N, 4, 4)`, from `hue_matrices`: `v` are the four planes of `shift_hue`. Or
            None if no hue is shifted: `v` are R, G and B.
        pixel: float32 `(N, 3, 4)` or `(N, 3, 3)`.
        mean: float32, likewise.
    """

    hue: Tensor | None
    pixel: Tensor
    mean: Tensor

    def rows(self, rows: slice) -> ColorMaps:
        """Return the maps of a slice of the samples."""
        hue = None if self.hue is None else self.hue[rows]
        return ColorMaps(hue, self.pixel[rows], self.mean[rows])


def draw_color(
    n: int,
    generator: torch.Generator | None,
    *,
    jitter: tuple[float, float, float, float],
    jitter_p: float,
    gray_p: float,
) -> ColorDraw:
    """Draw color jitter with the distribution of torchvision's `ColorJitter`, and grayscale.

    Args:
        n: Number of samples.
        generator: Source of the random numbers.
        jitter: Strengths of brightness, contrast, saturation and hue. A factor is uniform in
            [max(0, 1 - strength), 1 + strength], the hue in [-strength, strength].
        jitter_p: Probability that a sample is jittered.
        gray_p: Probability that a sample becomes gray.

    Returns:
        The draw, on the generator's device.
    """
    # Columns: four factors, four sort keys for their order, two coin flips.
    numbers = uniform((n, 10), generator)
    lows = [max(0.0, 1 - strength) for strength in jitter[:3]] + [-jitter[3]]
    highs = [1 + strength for strength in jitter[:3]] + [jitter[3]]
    low, high = (constant(bounds, numbers) for bounds in (lows, highs))
    factors = numbers[:, :4] * (high - low) + low
    neutral = constant([1.0, 1.0, 1.0, 0.0], numbers)
    factors = torch.where(numbers[:, 8:9] < jitter_p, factors, neutral)
    order = numbers[:, 4:8].argsort(dim=1)
    brightness, contrast, saturation, hue = factors.unbind(dim=1)
    gray = numbers[:, 9] < gray_p
    turned = jitter_p > 0 and jitter[3] > 0
    return ColorDraw(brightness, contrast, saturation, hue if turned else None, order, gray)


def hue_matrices(hue: Tensor) -> Tensor:
    """Return the matrices that `shift_hue` applies to R, G, B and (max + min over channels).

    In HSV, a channel rises or falls linearly with the hue in two of the circle's six sectors, and
    is the pixel's largest or smallest value in the other four. Shifted by d sectors, d in [0, 1],
    red is `R - G + (2 d - 1) B + (1 - d) (largest + smallest)` where it rises or falls, and in the
    other sectors this lies beyond the bound that red has there: clamped to the pixel's bounds, it
    is right in all of them. Green and blue follow in turn, d < 0 by exchanging the other two, and
    two sectors are a permutation of the channels. Each share is therefore one trapezoid, of the
    distance between the shift and the way from one channel to the other.

    Args:
        hue: `(N,)`, as a fraction of the color circle.

    Returns:
        float32 `(N, 4, 4)`; the last row gives the gray of the pixel as it was.
    """
    way = constant([[0.0, -1 / 3, 1 / 3], [1 / 3, 0.0, -1 / 3], [-1 / 3, 1 / 3, 0.0]], hue)
    distance = hue.float()[:, None, None] - way
    shares = (3 - 12 * (distance - distance.round()).abs()).clamp(-1, 1)
    # A gray pixel stays as it is: the shares of a channel sum to 1, the bounds' counted twice.
    bounds = (1 - shares.sum(dim=2, keepdim=True)) / 2
    gray = constant([[*LUMA, 0.0]], hue).expand(len(hue), 1, 4)
    return torch.cat([torch.cat([shares, bounds], dim=2), gray], dim=1)


def shift_hue(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Shift the hue as in HSV, like torchvision's `adjust_hue`, but within RGB.

    Args:
        pixels: float32 `(N, 3, P)`, R, G and B in any unit.
        matrices: float32 `(N, 4, 4)` from `hue_matrices`, on the pixels' device.

    Returns:
        float32 `(N, 4, P)`: R, G and B, and the gray of the pixel as it was.
    """
    low, high = pixels.amin(dim=1, keepdim=True), pixels.amax(dim=1, keepdim=True)
    planes = torch.bmm(matrices, torch.cat([pixels, low + high], dim=1))
    planes[:, :3].clamp_(low, high)
    return planes


def color_maps(draw: ColorDraw, scale: Sequence[float] = (1.0, 1.0, 1.0)) -> ColorMaps:
    """Compose a draw into one map per sample.

    Nothing is clamped between the steps; torchvision clamps after each.

    Args:
        draw: Parameters for N samples.
        scale: Factors on the three channels of the result.

    Returns:
        Maps for pixels in any unit, on the draw's device.
    """
    # In any order, saturation adds this share of the gray of its input, contrast of the mean.
    whole = draw.brightness * draw.contrast
    color, mean = whole * draw.saturation, draw.brightness - whole
    kept = color * ~draw.gray
    gray = whole - kept
    none = torch.zeros_like(mean)
    if draw.hue is None:
        return ColorMaps(None, *_blends((kept, gray, none, mean), scale))
    _, contrast, saturation, hue = _places(draw.order).unbind(dim=1)
    # The shares of these two that belong to the colors before the hue was shifted.
    met = (1 - draw.saturation) * (saturation < hue)
    old_gray, old_mean = whole * met, mean * torch.where(contrast < hue, 1.0, met)
    shares = (kept, gray - old_gray, old_gray, none, mean - old_mean, old_mean)
    return ColorMaps(hue_matrices(draw.hue), *_blends(shares, scale))


def _places(order: Tensor) -> Tensor:
    """Return the inverse of permutations `(N, 4)`."""
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(4, device=order.device).expand_as(order)
    )


def _blends(shares: tuple[Tensor, ...], scale: Sequence[float]) -> tuple[Tensor, ...]:
    """Return two matrices of the shares `(N,)` that color, gray and a fourth plane have in each.

    Returns:
        Two of float32 `(N, 3, 3)`, of two shares each, or `(N, 3, 4)`, of three.
    """
    count, n = len(shares) // 2, len(shares[0])
    columns = 4 if count == 3 else 3
    basis = []
    for part in (
        ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)),
        ((*LUMA, 0),) * 3,
        ((0, 0, 0, 1),) * 3,
    ):
        rows = zip(part, scale, strict=True)
        basis.append([float(share * factor) for row, factor in rows for share in row[:columns]])
    stacked = torch.stack(shares).view(2, count, n).transpose(1, 2)
    return (stacked @ constant(basis[:count], stacked)).view(2, n, 3, columns).unbind()


def apply_color(images: Tensor, maps: ColorMaps, offset: Tensor | None = None) -> Tensor:
    """Apply one map per sample.

    Args:
        images: float32 `(N, 3, H, W)`.
        maps: Of N samples, on the images' device.
        offset: float32 `(3,)`, added to each channel.

    Returns:
        float32 `(N, 3, H, W)`, not clamped.
    """
    planes = images.flatten(2)
    if maps.hue is not None:
        planes = shift_hue(planes, maps.hue)
    bias = torch.bmm(maps.mean, planes.mean(dim=2, keepdim=True))
    if offset is not None:
        bias = bias + offset[:, None]
    return torch.baddbmm(bias, maps.pixel, planes).view(images.shape)


def solarize(images: Tensor, which: Tensor, *, threshold: Tensor, bound: Tensor) -> Tensor:
    """Invert the pixels that are at or above a threshold: `x >= threshold` becomes `bound - x`.

    Args:
        images: float32 `(N, 3, H, W)`.
        which: bool `(N,)`, the samples to solarize.
        threshold: `(3,)`, for each channel; for images in [0, 1] 0.5.
        bound: `(3,)`, black + white of each channel; for images in [0, 1] 1.

    Returns:
        float32 `(N, 3, H, W)`.
    """
    bright = which[:, None, None, None] & (images >= threshold[:, None, None])
    return torch.where(bright, bound[:, None, None] - images, images)
