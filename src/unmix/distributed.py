"""Collective operations; without a distributed run they return their argument.

A loss over the batches of all processes is the mean of their losses over their own samples.
Gathering with a gradient sums the gradients of all processes (Chen et al. 2020, SimCLR, released
code; Bardes et al. 2022, VICReg, released code).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "Pace",
    "all_reduce_sum",
    "from_first",
    "gather",
    "gather_in_first",
    "gather_with_gradient",
    "local",
    "pace",
    "rank",
    "world_size",
]


class Pace:
    """How far this process is, for those who watch several: see `unmix.training.run.ranks`.

    Attributes:
        ticks: Grows alike in all processes that do the same, by one before each operation in which
            they wait for each other: so who waits is ahead of who is waited for.
        alone: Whether this process does what the others wait for, for as long as it takes.
    """

    def __init__(self) -> None:
        self.ticks, self.alone = 0, False

    def tick(self, *_: Any) -> None:
        """Go a step forward."""
        self.ticks += 1

    @contextmanager
    def at_own_pace(self, ticks: int) -> Iterator[None]:
        """Within this context a process ticks as it goes on; afterwards all are even.

        Args:
            ticks: The most that a process ticks within, alike in all.
        """
        after = self.ticks + ticks
        yield
        self.ticks = after

    @contextmanager
    def by_itself(self) -> Iterator[None]:
        """Within this context, which all enter, the others may wait for this process."""
        before, self.alone = self.alone, True
        try:
            yield
        finally:
            self.tick()
            self.alone = before


# Bytes of each process that are gathered at a time, so that a device has room for all.
_EXCHANGED = 2**26

pace = Pace()
"""Of this process."""


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
    pace.tick()
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def from_first(tensor: Tensor) -> Tensor:
    """The first process's tensor, in all; the others give one of its shape, which is changed."""
    if world_size() > 1:
        pace.tick()
        dist.broadcast(tensor, src=0)
    return tensor


@torch.no_grad()
def gather_in_first(rows: Tensor, device: torch.device | str) -> Tensor | None:
    """Gather the rows of all processes in the first one, in rank order.

    Args:
        rows: `(n, D)` on the CPU; n may differ, and D may be another where n is 0.
        device: What the processes exchange tensors on, some of the rows at a time.

    Returns:
        `(sum of all n, D)` on the CPU in the first process, None in the others.
    """
    if world_size() == 1:
        return rows
    shapes = gather(torch.tensor([rows.shape], device=device)).tolist()
    longest, width = (max(sizes) for sizes in zip(*shapes, strict=True))
    step = max(1, _EXCHANGED // max(1, width * rows.itemsize))
    parts: list[list[Tensor]] = [[] for _ in shapes]
    for start in range(0, longest, step):
        some = rows[start : start + step]
        sent = torch.zeros(min(step, longest - start), width, dtype=rows.dtype, device=device)
        if len(some):
            sent[: len(some)] = some.to(device)
        received = [torch.empty_like(sent) for _ in shapes] if rank() == 0 else None
        pace.tick()
        dist.gather(sent, received, dst=0)
        for part, (n, _), theirs in zip(parts, shapes, received or (), strict=False):
            part.append(theirs[: max(0, n - start)].cpu())
    if rank() > 0:
        return None
    return torch.cat([each for part in parts for each in part]) if longest else rows


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
    pace.tick()
    dist.all_reduce(total)
    return total


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor (a DTensor) that this process holds; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
