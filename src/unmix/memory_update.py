"""What a method remembers of a step, once its backward pass is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from unmix.credit import per_tensor
from unmix.methods.base import Method

__all__ = ["MemoryUpdate"]


# Without eq: torch.compile asks for the hash of an instance before its fields are set.
@dataclass(frozen=True, eq=False)
class MemoryUpdate:
    """What a method remembers of a batch: call it after the backward pass.

    Attributes:
        method: The method.
        queries: The clean queries, by view.
        targets: The clean targets, by view.
        index: Sample ids, int64 (N,).
    """

    method: Method
    queries: Mapping[int, Any]
    targets: Mapping[int, Any]
    index: Tensor

    def __call__(self) -> None:
        """Update queue, memory bank or center."""
        self.method.update_memory(self.queries, self.targets, self.index)

    def kept(self) -> MemoryUpdate:
        """What is needed until the last part of a step is done, without the graphs."""
        needed = {v: q for v, q in self.queries.items() if v in self.method.memory_queries}
        queries, targets = per_tensor((needed, dict(self.targets)), Tensor.detach)
        return MemoryUpdate(self.method, queries, targets, self.index)

    @staticmethod
    def joined(parts: Sequence[MemoryUpdate]) -> MemoryUpdate:
        """One update of the parts of a batch, in their order: what the whole batch would leave."""
        if len(parts) == 1:
            return parts[0]

        def side_by_side(*rows: Any) -> Any:
            return None if rows[0] is None else torch.cat(rows)

        kept = [part.kept() for part in parts]
        queries = tree_map(side_by_side, *(part.queries for part in kept))
        targets = tree_map(side_by_side, *(part.targets for part in kept))
        index = torch.cat([part.index for part in kept])
        return MemoryUpdate(parts[0].method, queries, targets, index)
