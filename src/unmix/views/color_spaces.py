"""Lab and YCbCr in scikit-image's conventions, normalized as in CMC (arXiv 1906.05849)."""

from __future__ import annotations

import torch
from torch import Tensor

from unmix.views.constants import constant

__all__ = [
    "COLOR_SPACES",
    "normalize_lab",
    "normalize_ycbcr",
    "rgb_to_lab",
    "rgb_to_ycbcr",
]

COLOR_SPACES = ("RGB", "Lab", "YCbCr")
"""Color spaces of views."""

# sRGB to XYZ (D65), rows divided by the white point of the 2 degree observer: white is (1, 1, 1).
_WHITE = (0.95047, 1.0, 1.08883)
_XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
# CIE's f(X), f(Y), f(Z) to L, a, b; L is 16 below 116 f(Y).
_LAB_FROM_F = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_LAB_OFFSET = (-16.0, 0.0, 0.0)
_YCBCR_FROM_RGB = (
    (65.481, 128.553, 24.966),
    (-37.797, -74.203, 112.0),
    (112.0, -93.786, -18.214),
)
_YCBCR_OFFSET = (16.0, 128.0, 128.0)

# Midpoint and half range of Lab over the RGB cube, as stated in CMC.
_LAB_MEAN = (50.0, 6.025, -6.6895)
_LAB_STD = (50.0, 92.208, 101.1675)
_YCBCR_MEAN = (116.151, 121.080, 132.342)
_YCBCR_STD = (109.500, 111.855, 111.964)


def _linear(images: Tensor, matrix: Tensor, offset: Tensor | None = None) -> Tensor:
    """Multiply each pixel's channels by `matrix` and add `offset`."""
    n = images.shape[0]  # not len: torch.export would take it for a constant
    flat = images.flatten(2)
    matrices = matrix.expand(n, 3, 3)
    if offset is None:
        return torch.bmm(matrices, flat).view(images.shape)
    return torch.baddbmm(offset[:, None].expand(n, 3, 1), matrices, flat).view(images.shape)


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB to CIE Lab (D65, 2 degree observer).

    Args:
        images: float32 `(N, 3, H, W)` in [0, 1].

    Returns:
        float32 `(N, 3, H, W)`: L in [0, 100], a in about [-86, 98], b in about [-108, 94].
    """
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    to_xyz = constant(_XYZ_FROM_RGB, images) / constant(_WHITE, images)[:, None]
    xyz = _linear(linear, to_xyz)
    f = torch.where(xyz > 0.008856, xyz.clamp_min(0) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return _linear(f, constant(_LAB_FROM_F, images), constant(_LAB_OFFSET, images))


def rgb_to_ycbcr(images: Tensor) -> Tensor:
    """Convert RGB to YCbCr (ITU-R BT.601, studio range).

    Args:
        images: float32 `(N, 3, H, W)` in [0, 1].

    Returns:
        float32 `(N, 3, H, W)`: Y in [16, 235], Cb and Cr in [16, 240].
    """
    return _linear(images, constant(_YCBCR_FROM_RGB, images), constant(_YCBCR_OFFSET, images))


def _normalize(
    images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    return (images - constant(mean, images)[:, None, None]) / constant(std, images)[:, None, None]


def normalize_lab(images: Tensor) -> Tensor:
    """Normalize Lab images `(N, 3, H, W)` to about [-1, 1], with the constants of CMC."""
    return _normalize(images, _LAB_MEAN, _LAB_STD)


def normalize_ycbcr(images: Tensor) -> Tensor:
    """Normalize YCbCr images `(N, 3, H, W)` to about [-1, 1], with the constants of CMC."""
    return _normalize(images, _YCBCR_MEAN, _YCBCR_STD)
