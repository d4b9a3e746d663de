"""Gaussian blur as weights along an axis, to be multiplied into the resampling weights."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["blur_weights"]

# Below this many pixels a Gaussian is a single 1 in float32; zero would divide by zero.
_SHARP = 1e-3


def blur_weights(sigma: Tensor, size: int, kernel_size: int) -> Tensor:
    """Return the weights that blur an axis with a Gaussian, edges reflected.

    Blurring is `B X B^T`. It agrees with torchvision's `gaussian_blur`, with a sigma of its own for
    every sample. A kernel that is too large is cut to the largest that reflection
    padding allows, `2 size - 1`.

    Args:
        sigma: `(N,)`, standard deviation in pixels; 0 leaves a sample unchanged.
        size: Pixels on the axis.
        kernel_size: Kernel size in pixels, odd.

    Returns:
        float32 `(N, size, size)`; rows sum to 1.
    """
    radius = min(kernel_size // 2, size - 1)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (offset / sigma.float().clamp_min(_SHARP)[:, None]) ** 2)
    taps = taps / taps.sum(dim=1, keepdim=True)

    # Row i of the padded matrix holds the taps from column i on: a diagonal band.
    n, padded = len(sigma), size + 2 * radius
    weights = taps.new_zeros(n, size, padded)
    band = weights.as_strided((n, size, 2 * radius + 1), (size * padded, padded + 1, 1))
    band.copy_(taps[:, None, :])
    if radius == 0:
        return weights
    left, inside, right = weights.split([radius, size, radius], dim=2)
    inside[:, :, 1 : radius + 1] += left.flip(2)
    inside[:, :, -radius - 1 : -1] += right.flip(2)
    return inside
