"""The order of images in shards: every image once, by seed and epoch alone, from any batch on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmix.training.loading import loaders, shard_order
from unmix.training.loading.shard_order import ShardOrder, side_by_side


def epoch_of(order: ShardOrder, epoch: int = 0, start: int = 0, of: int = 0) -> list[list[int]]:
    """The batches of one process."""
    order.position = lambda: (epoch, start)
    with mock.patch.object(shard_order, "rank", return_value=of):
        return [index.tolist() for _, index in order]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def shards_of(order: ShardOrder, ids: list[int]) -> list[int]:
    return (np.searchsorted(order.first_ids, ids, side="right") - 1).tolist()


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=9),
    batch=st.integers(1, 6),
    buffer=st.integers(1, 60),
    lanes=st.integers(1, 12),
    processes=st.sampled_from([1, 2, 3, 4]),
    epoch=st.integers(0, 3),
)
def test_every_image_is_seen_once_by_one_process(counts, batch, buffer, lanes, processes, epoch):
    n = sum(counts)

    def order(p: int) -> ShardOrder:
        return ShardOrder(counts, batch * processes, 3, 1, p, buffer=buffer, lanes=lanes)

    alone = epoch_of(order(1), epoch)
    assert sorted(flat(alone)) == list(range(n))
    shares = [epoch_of(order(processes), epoch, of=rank) for rank in range(processes)]
    # Equally many batches, of equal sizes, on all; together they are the batches of one process.
    assert len({tuple(map(len, share)) for share in shares}) == 1
    seen = flat(map(flat, shares))
    assert len(seen) == len(set(seen))
    assert n - len(seen) < processes
    for number, parts in enumerate(zip(*shares, strict=True)):
        whole = len(alone[number]) // processes * processes
        assert sorted(flat(parts)) == sorted(alone[number][:whole])


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=9),
    buffer=st.integers(1, 60),
    lanes=st.integers(1, 12),
    start=st.integers(0, 20),
)
def test_an_epoch_goes_on_from_any_batch(counts, buffer, lanes, start):
    order = ShardOrder(counts, 4, 1, 1, buffer=buffer, lanes=lanes)
    whole = epoch_of(order, 2)
    fresh = ShardOrder(counts, 4, 1, 1, buffer=buffer, lanes=lanes)
    assert epoch_of(fresh, 2, start) == whole[start:]


def test_epochs_and_seeds_differ():
    counts = [50] * 6
    orders = {
        tuple(flat(epoch_of(ShardOrder(counts, 10, seed, buffer=64, lanes=4), epoch)))
        for seed in (0, 1) for epoch in (0, 1)
    }  # fmt: skip
    assert len(orders) == 4


def test_a_batch_is_of_the_shards_that_are_read_side_by_side():
    order = ShardOrder([1000] * 64, 64, 0, buffer=4000, lanes=8)
    batches = epoch_of(order)
    counts = [len(set(shards_of(order, batch))) for batch in batches]
    assert min(counts) >= 8
    assert max(counts) <= 16
    # A shard is read within a short part of the epoch, once.
    first = {
        s: n for n, batch in reversed(list(enumerate(batches))) for s in shards_of(order, batch)
    }
    last = {s: n for n, batch in enumerate(batches) for s in shards_of(order, batch)}
    assert max(last[s] - first[s] for s in first) <= 2 * 1000 * 8 / 64 + 1


def test_a_device_reads_shards_of_its_own():
    orders = [ShardOrder([100] * 32, 32, 0, 2, 4, buffer=800, lanes=8) for _ in range(4)]
    own = [set(shards_of(o, flat(epoch_of(o, of=r)))) for r, o in enumerate(orders)]
    assert sum(map(len, own)) == 32
    assert set.union(*own) == set(range(32))


def test_images_are_shuffled_well_within_the_buffer():
    order = ShardOrder([500] * 8, 100, 0, buffer=4000, lanes=8)
    ids = torch.tensor(flat(epoch_of(order)))
    within = ids % 500
    # The position in its shard says nothing of when an image is seen.
    correlation = np.corrcoef(within.numpy(), np.arange(4000))[0, 1]
    assert abs(correlation) < 0.05


def test_the_order_is_the_same_in_every_version():
    order = ShardOrder([3, 4, 5], 4, 0, buffer=6, lanes=2)
    assert epoch_of(order) == GOLDEN


GOLDEN = [[5, 10, 4, 9], [3, 11, 8, 0], [6, 2, 7, 1]]


def test_a_billion_images_need_no_memory():
    order = ShardOrder([10_000] * 100_000, 4096, 0, buffer=32_768, lanes=8)
    order.position = lambda: (3, 200_000)
    _, index = next(iter(order))
    assert len(set(index.tolist())) == 4096
    assert max(index.tolist()) < 10**9


def test_the_shards_that_follow_are_known():
    order = ShardOrder([100] * 16, 32, 0, buffer=200, lanes=2)
    batches = epoch_of(order)
    for number, batch in enumerate(batches[:-10]):
        soon = set(order.after(0, batch)) | set(shards_of(order, batch))
        assert set(shards_of(order, flat(batches[number : number + 3]))) <= soon
    following = order.after(0, batches[-1])
    assert set(shards_of(order, epoch_of(order, 1)[0])) & set(following)


@pytest.mark.parametrize(("processes", "lanes"), [(1, 8), (2, 8), (3, 9), (8, 8), (16, 16)])
def test_side_by_side_is_a_multiple_of_the_devices(processes: int, lanes: int):
    assert side_by_side(processes) == lanes


def test_a_last_batch_that_is_too_small_is_dropped():
    assert len(epoch_of(ShardOrder([5, 4], 4, 0, 2, buffer=4, lanes=2))) == 2
    assert len(epoch_of(ShardOrder([5, 5], 4, 0, 2, buffer=4, lanes=2))) == 3
    assert len(epoch_of(ShardOrder([5, 5], 4, 0, 2, 1, True, buffer=4, lanes=2))) == 2
    assert loaders.EpochOrder(10, 4, 0, 2).length == 3
