"""Collective operations; without a distributed run they return their argument.

A loss over the batches of all processes is the mean of their losses over their own samples.
Gathering with a gradient sums the gradients of all processes (Chen et al. 2020, SimCLR, released
code; Bardes et al. 2022, VICReg, released code).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_reduce_sum", "gather", "gather_with_gradient", "local", "rank", "world_size"]


def world_size() -> int:
    """The number of processes, 1 outside of a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """All-gather without a gradient, in rank order: (N, ...) to (world N, ...).

    N must be equal on all processes.
    """
    if world_size() == 1:
        return tensor.detach()
    parts = [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())
    ]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


class _Gathered(torch.autograd.Function):
    """All-gather whose backward pass sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = len(gradient) // world_size()
        return all_reduce_sum(gradient.contiguous())[rank() * own :][:own]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """All-gather with a gradient, in rank order: (N, ...) to (world N, ...); equal N on each."""
    if world_size() == 1:
        return tensor
    return _Gathered.apply(tensor)


@torch.no_grad()
def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over the processes, without a gradient; the given tensor is not changed."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor (a DTensor) that this process holds; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
