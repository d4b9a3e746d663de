"""Memories of methods: a queue of keys, or a feature for every sample.

Both are buffers, so they are part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix.errors import check_number

__all__ = ["MemoryBank", "Queue", "draw_candidates"]


Memory = TypeVar("Memory", bound=nn.Module)


class Queue(nn.Module):
    """The last K keys, first in, first out (He et al. 2020, MoCo).

    Args:
        size: K, at least 1.
        dim: Length of a key.
        generator: For the random unit vectors that it starts with.

    Attributes:
        keys: float32 (K, dim); float64 in a module of float64, and never less than float32.
    """

    keys: Tensor
    position: Tensor
    seen: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_number("size", size, at_least=1, owner="Queue")
        self.register_buffer("keys", _unit_rows(size, dim, generator))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Queue:
        return _kept_in_float32(self, "keys", super()._apply, fn, recurse)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def fill(self) -> float:
        """Fraction of the queue that holds keys instead of its random start, in [0, 1]."""
        return min(1.0, self.seen.item() / len(self))

    @torch.no_grad()
    def nearest(self, vectors: Tensor, count: int | None = None) -> Tensor:
        """The nearest keys of unit vectors (N, dim), in the keys' precision under autocast too.

        Args:
            vectors: (N, dim).
            count: How many each, at most as many as the queue has.

        Returns:
            (N, dim), or, with `count`, (N, count, dim), the nearest first.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            similarities = vectors.to(self.keys.dtype) @ self.keys.T
            if count is None:
                return self.keys[similarities.argmax(dim=1)]
            return self.keys[similarities.topk(count, dim=1).indices]

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Put keys (N, dim) in, in order, over the oldest; N may be anything, and wraps.

        Of more than K keys the last K stay.
        """
        n, size = len(keys), len(self)
        last = keys[-size:].to(self.keys.dtype)
        skipped = n - len(last)
        where = torch.arange(skipped, n, device=self.keys.device)
        self.keys[(self.position + where) % size] = last
        self.position.copy_((self.position + n) % size)
        self.seen.add_(n)


class MemoryBank(nn.Module):
    """One running feature for every sample of the data set (Wu et al. 2018, InsDis).

    Args:
        n_data: Number of samples.
        dim: Length of a feature.
        momentum: Weight of the old feature in each update, in [0, 1].
        generator: For the random unit vectors that it starts with.

    Attributes:
        rows: (n_data, dim), unit vectors, float32 or float64 as `Queue.keys`.
    """

    rows: Tensor

    def __init__(
        self,
        n_data: int,
        dim: int,
        momentum: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_number("momentum", momentum, at_least=0, at_most=1, owner="MemoryBank")
        self.momentum = momentum
        self.register_buffer("rows", _unit_rows(n_data, dim, generator))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MemoryBank:
        return _kept_in_float32(self, "rows", super()._apply, fn, recurse)

    def __len__(self) -> int:
        return len(self.rows)

    def scores(self, features: Tensor, candidates: Tensor) -> Tensor:
        """Inner products of features (N, dim) with their candidates' rows (N, 1 + K): (N, 1 + K).

        A small bank is multiplied whole and the candidates are picked from the product; of a large
        one only the candidates' rows are read.
        """
        rows = self.rows.to(features.dtype)
        if len(self) <= 4 * candidates.shape[1]:
            return (features @ rows.T).gather(1, candidates)
        return torch.einsum("nkd,nd->nk", rows[candidates], features)

    @torch.no_grad()
    def update(self, features: Tensor, index: Tensor) -> None:
        """Move the rows of samples `index` (N,) toward their features (N, dim)."""
        moved = torch.lerp(features.to(self.rows.dtype), self.rows[index], self.momentum)
        self.rows[index] = F.normalize(moved, dim=1)


def _kept_in_float32(
    memory: Memory, name: str, apply: Callable[..., Memory], *given: Any
) -> Memory:
    """Move a memory, or change its type, but not to half precision, which would cost neighbors."""
    before = getattr(memory, name)
    moved = apply(*given)
    now = getattr(moved, name)
    if now.dtype in (torch.float16, torch.bfloat16):
        setattr(moved, name, before.to(now.device))
    return moved


def _unit_rows(count: int, dim: int, generator: torch.Generator | None) -> Tensor:
    """Random unit vectors (count, dim), where a module is made."""
    device = None if generator is None else generator.device
    drawn = torch.randn(count, dim, generator=generator, device=device)
    return F.normalize(drawn, dim=1).to(torch.get_default_device())


def draw_candidates(
    index: Tensor, negatives: int, n_data: int, generator: torch.Generator | None
) -> Tensor:
    """Each sample itself, then its negatives, uniform over the data set: int64 (N, 1 + K).

    A negative may be the sample itself, as published (Wu et al. 2018, released code).
    """
    candidates = torch.randint(
        n_data, (len(index), 1 + negatives), generator=generator, device=index.device
    )
    candidates[:, 0] = index
    return candidates
