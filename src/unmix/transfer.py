"""Small tensors on their way to the device, without the host waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(
    tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Give a tensor on a device, and of a type if one is named; itself if it is there already.

    From ordinary memory a copy to a GPU may wait for the work that the GPU still has; from pinned
    memory it does not.
    """
    device = torch.device(device)
    if dtype is not None:
        tensor = tensor.to(dtype)
    from_host = tensor.device.type == "cpu" and device.type == "cuda"
    if from_host and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
