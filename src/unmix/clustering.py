"""Spherical k-means, in chunks and distributed over the processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unmix.distributed import all_reduce_sum, rank, world_size

__all__ = ["spherical_kmeans"]

_NUMBERS_AT_ONCE = 2**22  # of a chunk's similarities, 16 MiB


@torch.no_grad()
def spherical_kmeans(
    rows: Tensor, clusters: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cluster unit vectors by their cosines (Caron et al. 2020, SwAV, appendix; released code).

    A cluster that loses all its rows keeps its centroid. Each process clusters its share of the
    rows, and what is summed over the processes is equal on all of them.

    Args:
        rows: Unit vectors, float32 (M, D), the same on every process.
        clusters: K, at most M.
        iterations: How often the centroids move.
        generator: For the K rows that are the first centroids; the same on every process.

    Returns:
        The centroids, unit vectors (K, D), and the number of each row's nearest, int64 (M,).
    """
    first = torch.randperm(len(rows), generator=generator, device=generator.device)[:clusters].to(
        rows.device
    )
    centroids = rows[first]
    for _ in range(iterations):
        sums, counts = torch.zeros_like(centroids), centroids.new_zeros(clusters)
        for own, nearest in _nearest(rows, centroids):
            # A product instead of scattered additions, whose order changes from run to run on CUDA.
            member = F.one_hot(nearest, clusters).to(rows.dtype)
            sums += member.T @ rows[own]
            counts += member.sum(dim=0)
        sums, counts = all_reduce_sum(sums), all_reduce_sum(counts)
        centroids = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), centroids)
    assignments = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for own, nearest in _nearest(rows, centroids):
        assignments[own] = nearest
    return centroids, all_reduce_sum(assignments)


def _nearest(rows: Tensor, centroids: Tensor) -> list[tuple[slice, Tensor]]:
    """This process's rows, in chunks, with the numbers of their nearest centroids."""
    size = max(1, _NUMBERS_AT_ONCE // len(centroids))
    starts = range(rank(), len(rows), size * world_size())
    chunks = [slice(start, start + size * world_size(), world_size()) for start in starts]
    return [(own, (rows[own] @ centroids.T).argmax(dim=1)) for own in chunks]
