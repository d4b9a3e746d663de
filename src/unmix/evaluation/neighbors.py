"""The nearest neighbors of features by cosine similarity, within a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unmix.errors import UserError, check_number

__all__ = ["Neighbors", "nearest_neighbors"]

# Larger blocks of queries do not make the matrix product faster.
_MAX_ROWS = 2048


@dataclass(frozen=True)
class Neighbors:
    """The nearest neighbors of some queries.

    Attributes:
        similarity: Cosine similarities, float32 (M, k), largest first, on the CPU.
        index: Rows of the bank, int64 (M, k).
    """

    similarity: Tensor
    index: Tensor


@torch.inference_mode()
def nearest_neighbors(
    bank: Tensor,
    queries: Tensor,
    k: int,
    *,
    exclude: Tensor | None = None,
    memory_budget: int = 2**28,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Neighbors:
    """Find the k rows of a bank that are most similar to each query.

    Args:
        bank: Features (N, D), which need not be normalized. They may be a file mapped into memory
            (`torch.from_numpy(numpy.load(path, mmap_mode="r"))`), which is read in blocks.
        queries: Features (M, D), likewise.
        k: Number of neighbors.
        exclude: For each query a row of the bank that is not its neighbor, as itself, int64 (M,);
            -1 for none.
        memory_budget: Bytes that may be allocated beside the result, which has M k rows.
        device: Where to compute; None for the device of the bank.
        progress: Called after each block of queries with the number of queries done, and of all.

    Raises:
        UserError: if there are fewer than k other rows, features do not match, or the budget is too
            small for one query and one row.
    """
    check_number("k", k, at_least=1)
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise UserError(
            f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} must have the same "
            "number of columns"
        )
    others = len(bank) - (exclude is not None and bool((exclude >= 0).any()))
    if k > others:
        raise UserError(
            f"{k} neighbors were asked for, and there are {max(others, 0):,} other images; give "
            f"{max(others, 0):,} or fewer, or more images.",
            parameter="k",
        )
    place = torch.device(device) if device is not None else bank.device
    rows, columns = _block_sizes(len(bank), len(queries), bank.shape[1], k, memory_budget)
    similarity = torch.empty(len(queries), k)
    index = torch.empty(len(queries), k, dtype=torch.int64)
    for start in range(0, len(queries), rows):
        stop = min(start + rows, len(queries))
        unit = normalize(queries[start:stop].to(place).float(), dim=1)
        left_out = None if exclude is None else exclude[start:stop].to(place)
        best, which = _search(bank, unit, k, columns, left_out)
        similarity[start:stop], index[start:stop] = best.cpu(), which.cpu()
        if progress is not None:
            progress(stop, len(queries))
    return Neighbors(similarity, index)


def _block_sizes(n: int, m: int, d: int, k: int, memory_budget: int) -> tuple[int, int]:
    """Numbers of queries and of rows of the bank that are compared at a time."""
    a_query, a_row = 8 * d + 40 * k, 8 * d
    rows = max(1, min(m, _MAX_ROWS, memory_budget // 4 // a_query))
    # A similarity, and what top-k sorts.
    columns = (memory_budget - rows * a_query) // (a_row + 16 * rows)
    if columns < 1:
        raise UserError(
            f"memory_budget: {memory_budget:,} bytes are too few for features of {d} numbers"
        )
    return rows, min(n, columns)


def _search(
    bank: Tensor, unit: Tensor, k: int, columns: int, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Similarities and rows of the k nearest, of normalized queries."""
    best = unit.new_empty(len(unit), 0)
    which = torch.empty(len(unit), 0, dtype=torch.int64, device=unit.device)
    for start in range(0, len(bank), columns):
        block = normalize(bank[start : start + columns].to(unit.device).float(), dim=1)
        similarity = unit @ block.T
        if exclude is not None:
            inside = (exclude >= start) & (exclude < start + len(block))
            queries = inside.nonzero().squeeze(1)
            similarity[queries, exclude[queries] - start] = -torch.inf
        count = min(k, len(block))
        found, column = similarity.topk(count, dim=1)
        best, which = torch.cat([best, found], 1), torch.cat([which, column + start], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        which = which.gather(1, order)
    return best, which
