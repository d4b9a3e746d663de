"""Asynchronous copies of small tensors to the device, and where tensors are without being moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

__all__ = ["all_to_device", "to_device", "usual_defaults"]


def to_device(
    tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Copy a tensor to a device, through pinned memory, so that the host does not wait.

    Args:
        tensor: A tensor of any shape; returned as it is if it is already there.
        device: The target device.
        dtype: The target type; None keeps that of the tensor.
    """
    device = torch.device(device)
    if dtype is not None:
        tensor = tensor.to(dtype)
    from_host = tensor.device.type == "cpu" and device.type == "cuda"
    if from_host and not torch.compiler.is_compiling():
        tensor = _own_places(tensor).pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Within, new tensors are float32 and on the CPU, whatever defaults a program has set.

    For what reads and builds: files are read to the host, and weights are float32.
    """
    dtype, elsewhere = torch.get_default_dtype(), torch.get_default_device().type != "cpu"
    with torch.device("cpu") if elsewhere else nullcontext():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def all_to_device(
    tensors: Sequence[Tensor], device: torch.device | str, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """As `to_device`, of several tensors of one type in a single copy."""
    flat = to_device(torch.cat([each.flatten() for each in tensors]), device, dtype)
    parts = flat.split([each.numel() for each in tensors])
    return [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)]


def _own_places(tensor: Tensor) -> Tensor:
    """The same values, each in memory of its own, without which none can be pinned."""
    expanded = any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
    return tensor.clone() if expanded else tensor
