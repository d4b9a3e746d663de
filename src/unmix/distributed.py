"""Tensors across the processes of a distributed run; of one process each is what it was.

A loss over the batches of all processes is the mean of what each computes for its own samples. What
is gathered with its gradient sends the other processes' share of it back (Chen et al. 2020, SimCLR,
released code; Bardes et al. 2022, VICReg, released code).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_reduce_sum", "gather", "gather_with_gradient", "rank", "world_size"]


def world_size() -> int:
    """The number of processes, 1 outside of a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """The rows of all processes, in their order, without a gradient: (N, ...) to (world N, ...).

    Every process must have as many rows.
    """
    if world_size() == 1:
        return tensor.detach()
    parts = [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())
    ]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


class _Gathered(torch.autograd.Function):
    """The rows of all processes; each gets back what all of them say of its own."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = len(gradient) // world_size()
        return all_reduce_sum(gradient.contiguous())[rank() * own :][:own]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """The rows of all processes, in their order: (N, ...) to (world N, ...); as many of each."""
    if world_size() == 1:
        return tensor
    return _Gathered.apply(tensor)


@torch.no_grad()
def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over the processes, without a gradient; the given tensor stays as it is."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total
