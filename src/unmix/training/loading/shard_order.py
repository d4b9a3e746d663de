"""The order of images in shards: by shard, and shuffled in a buffer; computed, not remembered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmix.distributed import rank
from unmix.randomness import generator_for
from unmix.training.loading.loaders import EpochOrder

__all__ = ["SIDE_BY_SIDE", "ShardOrder", "side_by_side"]

SIDE_BY_SIDE = 8


def side_by_side(processes: int) -> int:
    """Default number of shards that are read side by side: 8, or the next multiple of devices."""
    return -(-SIDE_BY_SIDE // processes) * processes


@dataclass(frozen=True)
class _Plan:
    """The shards of an epoch, in order.

    Attributes:
        shards: Their numbers, int64 (S,).
        places: The inverse.
        starts: Where each begins in the sequence of the images, int64 (S + 1,).
    """

    shards: np.ndarray
    places: np.ndarray
    starts: np.ndarray


class ShardOrder(EpochOrder):
    """Batches of sample ids, of few shards at a time.

    The shards are shuffled. The sequence of their images is cut into `lanes` parts of equal length,
    wherever that is within a shard, and a lane is shuffled in blocks of `buffer / lanes` images.
    Image g of the epoch is the next one of lane g mod lanes. So an epoch has every image once, its
    order is a function of the seed, the epoch and these numbers, and any batch is computed without
    those before it.

    A device takes every n-th image of a batch, so that it reads its own lanes, and with them its
    own shards, if the number of devices divides that of the lanes. The order does not depend on it.

    Args:
        counts: Number of images of each shard, in the order of the sample ids.
        batch_size: Samples per batch, over all processes.
        seed: Seed of the run.
        smallest: Minimum number of samples of a batch, per process.
        processes: Number of processes; each gets an equal part of every batch.
        drop_last: Drop an incomplete last batch.
        buffer: Number of images that are shuffled together, over all lanes.
        lanes: Number of shards that are read side by side.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int,
        smallest: int = 2,
        processes: int = 1,
        drop_last: bool = False,
        *,
        buffer: int,
        lanes: int,
    ) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        super().__init__(int(self.counts.sum()), batch_size, seed, smallest, processes, drop_last)
        self.lanes = min(lanes, max(1, self.n))
        self.block = max(1, buffer // self.lanes)
        self.first_ids = np.concatenate([[0], np.cumsum(self.counts)])
        each, more = divmod(self.n, self.lanes)
        sizes = [each + (lane < more) for lane in range(self.lanes)]
        self.edges = np.concatenate([[0], np.cumsum(sizes)])
        self._plans: dict[int, _Plan] = {}
        self._shuffled: dict[int, tuple[int, int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        epoch, start = self.position()
        for number in range(start, self.length):
            first = number * self.batch_size
            count = min(self.batch_size, self.n - first)
            whole = count // self.processes * self.processes
            own = rank() if self.processes > 1 else 0
            yield epoch, self.at(epoch, np.arange(first + own, first + whole, self.processes))

    def at(self, epoch: int, positions: np.ndarray) -> Tensor:
        """The sample ids at positions of an epoch, int64 of any order."""
        plan = self._plan(epoch)
        sequence = np.empty(len(positions), dtype=np.int64)
        lanes, within = positions % self.lanes, positions // self.lanes
        blocks = within // self.block
        for lane, block in sorted({*zip(lanes.tolist(), blocks.tolist(), strict=True)}):
            here = (lanes == lane) & (blocks == block)
            shuffled = self._block(epoch, lane, block)
            sequence[here] = shuffled[within[here] - block * self.block]
        places = np.searchsorted(plan.starts, sequence, side="right") - 1
        ids = self.first_ids[plan.shards[places]] + sequence - plan.starts[places]
        return torch.from_numpy(ids)

    def after(self, epoch: int, ids: Sequence[int]) -> list[int]:
        """The shards that come next in the lanes in which these images are."""
        plan = self._plan(epoch)
        shards = np.unique(np.searchsorted(self.first_ids, np.asarray(ids), side="right") - 1)
        found: list[int] = []
        here = set(plan.places[shards].tolist())
        for place in sorted({place + 1 for place in here} - here):
            lane = self._lane(plan, place - 1)
            if place < len(plan.shards) and self._lane(plan, place) == lane:
                found.append(int(plan.shards[place]))
            else:  # the first shard of the lane in the next epoch
                later = self._plan(epoch + 1)
                first = np.searchsorted(later.starts, self.edges[lane], side="right") - 1
                found.append(int(later.shards[first]))
        return found

    def _lane(self, plan: _Plan, place: int) -> int:
        return int(np.searchsorted(self.edges, plan.starts[place], side="right")) - 1

    def _plan(self, epoch: int) -> _Plan:
        if epoch not in self._plans:
            generator = generator_for(self.seed, "shards", epoch)
            # Shards without an image would have the place of the next.
            shards = torch.randperm(len(self.counts), generator=generator).numpy()
            shards = shards[self.counts[shards] > 0]
            places = np.zeros(len(self.counts), dtype=np.int64)
            places[shards] = np.arange(len(shards))
            starts = np.concatenate([[0], np.cumsum(self.counts[shards])])
            self._plans = {e: p for e, p in self._plans.items() if abs(e - epoch) < 2}
            self._plans[epoch] = _Plan(shards, places, starts)
        return self._plans[epoch]

    def _block(self, epoch: int, lane: int, block: int) -> np.ndarray:
        """Places in the sequence of the images of a block, shuffled."""
        held = self._shuffled.get(lane)
        if held is None or held[:2] != (epoch, block):
            start = int(self.edges[lane]) + block * self.block
            count = min(self.block, int(self.edges[lane + 1]) - start)
            generator = generator_for(self.seed, "buffer", epoch, lane, block)
            order = torch.randperm(count, generator=generator).numpy() + start
            self._shuffled[lane] = held = epoch, block, order
        return held[2]
