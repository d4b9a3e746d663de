"""Colour jitter and grayscale as one linear map a sample, and solarize.

Brightness, saturation and hue are linear in a pixel's colour `x`. Contrast blends with the image's
mean gray, which is linear in the image's mean colour `m`. Any chain of them is therefore
`y = P x + M m`, with two 3x3 matrices that do not depend on the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from unmix.randomness import uniform
from unmix.transfer import to_device
from unmix.views.constants import constant

__all__ = [
    "ColourDraw",
    "ColourMaps",
    "apply_colour",
    "colour_maps",
    "draw_colour",
    "hue_matrices",
    "solarize",
]

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in gray (ITU-R BT.601), as in torchvision and Pillow."""

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


@dataclass(frozen=True)
class ColourDraw:
    """What was drawn for colour jitter and grayscale.

    Attributes:
        brightness: float32 `(N,)`, factor; 1 changes nothing.
        contrast: float32 `(N,)`, factor; 1 changes nothing.
        saturation: float32 `(N,)`, factor; 1 changes nothing.
        hue: float32 `(N,)`, turn of the colour circle, in [-0.5, 0.5]; 0 changes nothing.
        order: int64 `(N, 4)`, the order of the four: 0 brightness, 1 contrast, 2 saturation, 3 hue.
        gray: bool `(N,)`, which samples lose their colour afterwards.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    order: Tensor
    gray: Tensor

    def to(self, device: torch.device | str) -> ColourDraw:
        """Give the same draw on another device."""
        return ColourDraw(*(to_device(getattr(self, field.name), device) for field in fields(self)))


@dataclass(frozen=True)
class ColourMaps:
    """The map `y = pixel @ x + mean @ m` of a pixel `x` in an image with mean colour `m`.

    Attributes:
        pixel: float32 `(N, 3, 3)`.
        mean: float32 `(N, 3, 3)`.
    """

    pixel: Tensor
    mean: Tensor


def draw_colour(
    n: int,
    generator: torch.Generator | None,
    *,
    jitter: tuple[float, float, float, float],
    jitter_p: float,
    gray_p: float,
) -> ColourDraw:
    """Draw colour jitter with the distribution of torchvision's `ColorJitter`, and grayscale.

    Args:
        n: How many samples.
        generator: Where the random numbers come from.
        jitter: Strengths of brightness, contrast, saturation and hue. A factor is uniform in
            [max(0, 1 - strength), 1 + strength], the hue in [-strength, strength].
        jitter_p: Probability that a sample is jittered.
        gray_p: Probability that a sample becomes gray.

    Returns:
        The draw, on the generator's device.
    """
    # Columns: four strengths, four keys to sort by, two coins.
    numbers = uniform((n, 10), generator)
    lows = [max(0.0, 1 - strength) for strength in jitter[:3]] + [-jitter[3]]
    highs = [1 + strength for strength in jitter[:3]] + [jitter[3]]
    low, high = (constant(bounds, numbers) for bounds in (lows, highs))
    factors = numbers[:, :4] * (high - low) + low
    neutral = constant([1.0, 1.0, 1.0, 0.0], numbers)
    factors = torch.where(numbers[:, 8:9] < jitter_p, factors, neutral)
    order = numbers[:, 4:8].argsort(dim=1)
    brightness, contrast, saturation, hue = factors.unbind(dim=1)
    return ColourDraw(brightness, contrast, saturation, hue, order, numbers[:, 9] < gray_p)


def hue_matrices(hue: Tensor) -> Tensor:
    """Give the linear stand-in for a turn of the hue: a rotation of RGB about the gray axis.

    Gray stays gray, and thirds of a turn permute the channels exactly as a turn in HSV does. In
    between, HSV keeps a pixel's largest and smallest channel, a rotation its distance from gray: on
    four photographs of scikit-image the RMS difference from torchvision's `adjust_hue` is at most
    0.06 of the range at any turn from 0.1 to 0.5, which itself moves them by 0.09 to 0.27. The
    rotation in YIQ, the usual linear form, is up to 0.09 away.

    Args:
        hue: `(N,)`, in turns.

    Returns:
        float32 `(N, 3, 3)`.
    """
    thirds = constant([0.0, 1 / 3, -1 / 3], hue)
    # Circulant: entry (i, j) depends on (i - j) mod 3 alone.
    shares = (1 + 2 * torch.cos(2 * math.pi * (hue[:, None] - thirds))) / 3
    rows = torch.arange(3, device=hue.device)
    return shares[:, (rows[:, None] - rows) % 3]


def colour_maps(draw: ColourDraw) -> ColourMaps:
    """Compose a draw into one map a sample.

    Nothing is clamped between the steps; torchvision clamps after each.

    Args:
        draw: What was drawn, for N samples.

    Returns:
        Maps for pixels in any unit, on the draw's device.
    """
    n, device = len(draw.gray), draw.gray.device
    identity = torch.eye(3, device=device)
    gray = constant([LUMA] * 3, draw.brightness)

    def column(factor: Tensor) -> Tensor:
        return factor[:, None, None]

    steps = torch.stack(
        [
            column(draw.brightness) * identity,
            column(draw.contrast) * identity,
            column(draw.saturation) * identity + column(1 - draw.saturation) * gray,
            hue_matrices(draw.hue),
        ],
        dim=1,
    )
    pixel = identity.expand(n, 3, 3)
    mean = torch.zeros(n, 3, 3, device=device)
    samples = torch.arange(n, device=device)
    for which in draw.order.unbind(dim=1):
        step = steps[samples, which]
        blend = column(torch.where(which == _CONTRAST, 1 - draw.contrast, 0.0))
        mean = torch.bmm(step, mean) + blend * (gray @ (pixel + mean))
        pixel = torch.bmm(step, pixel)
    last = torch.where(column(draw.gray), gray, identity)
    return ColourMaps(pixel=torch.bmm(last, pixel), mean=torch.bmm(last, mean))


def apply_colour(images: Tensor, maps: ColourMaps, offset: Tensor | None = None) -> Tensor:
    """Apply one map a sample.

    Args:
        images: float32 `(N, 3, H, W)`.
        maps: For N samples, on the images' device.
        offset: float32 `(3,)`, added to each channel.

    Returns:
        float32 `(N, 3, H, W)`, not clamped.
    """
    flat = images.flatten(2)
    bias = torch.bmm(maps.mean, flat.mean(dim=2, keepdim=True))
    if offset is not None:
        bias = bias + offset[:, None]
    return torch.baddbmm(bias, maps.pixel, flat).view_as(images)


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
