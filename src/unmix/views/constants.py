"""Small constant tensors on the device of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmix.transfer import to_device

__all__ = ["constant"]


def constant(values: Sequence[float] | Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Return `values` as a float32 tensor on the device of `like`.

    Unlike `like.new_tensor(values)`, this does not synchronize with a CUDA device.
    """
    return to_device(torch.tensor(values, dtype=torch.float32, device="cpu"), like.device)
