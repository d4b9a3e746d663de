"""The queue is first in, first out; the bank moves towards features; both outlive a checkpoint."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from unmix.errors import UserError
from unmix.memory import MemoryBank, Queue, draw_candidates

pushes = st.lists(st.integers(0, 17), max_size=8)
seeds = st.integers(0, 2**31)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(start: int, n: int) -> Tensor:
    """Keys (n, 2) that carry their number, so that their order can be read."""
    return torch.arange(start, start + n).float()[:, None].expand(n, 2)


def oldest_first(queue: Queue) -> list[list[float]]:
    return queue.keys.roll(-int(queue.position), dims=0).tolist()


@settings(deadline=None)
@given(st.integers(1, 9), pushes)
def test_queue_is_a_deque_of_the_last_keys(size: int, counts: list[int]) -> None:
    """Batches of any size, none and more than the queue's included, wrap as a deque would."""
    queue = Queue(size, 2, seeded(0))
    model = deque(queue.keys.tolist(), maxlen=size)
    pushed = 0
    for n in counts:
        keys = numbered(pushed, n)
        queue.push(keys)
        model.extend(keys.tolist())
        pushed += n
        assert oldest_first(queue) == list(model)
        assert queue.fill == min(1.0, pushed / size)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), pushes, pushes)
def test_queue_goes_on_after_a_checkpoint(size: int, before: list[int], after: list[int]) -> None:
    """Keys, place and fill are in the state dict; a released library loses its queue on resume."""
    queue, fresh = Queue(size, 2, seeded(0)), Queue(size, 2, seeded(1))
    for n in before:
        queue.push(numbered(0, n))
    fresh.load_state_dict(queue.state_dict())
    for n in after:
        queue.push(numbered(100, n))
        fresh.push(numbered(100, n))
    assert torch.equal(queue.keys, fresh.keys)
    assert queue.fill == fresh.fill
    assert int(queue.position) == int(fresh.position)


def test_queue_starts_from_its_generators_unit_vectors() -> None:
    queue = Queue(300, 16, seeded(0))
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(300))
    assert torch.equal(queue.keys, Queue(300, 16, seeded(0)).keys)
    assert queue.keys.mean(dim=0).abs().max() < 4 / (16 * 300) ** 0.5
    assert queue.fill == 0


def test_queue_keeps_no_graph_and_its_own_precision() -> None:
    queue = Queue(4, 2)
    keys = torch.ones(2, 2, requires_grad=True)
    queue.push(keys.bfloat16())
    assert queue.keys.dtype == torch.float32
    assert not queue.keys.requires_grad


def test_queue_of_no_keys_is_told() -> None:
    with pytest.raises(UserError, match="Queue: size must be at least 1, got 0"):
        Queue(0, 2)


def unit_rows(n: int, dim: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=seeded(seed)), dim=1)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 20), st.integers(1, 8), st.floats(0, 1), seeds)
def test_bank_moves_rows_by_the_formula(n: int, dim: int, m: float, seed: int) -> None:
    """row <- (m row + (1 - m) feature) / its norm, for the given samples alone, in float64."""
    bank = MemoryBank(n, dim, m, seeded(seed))
    index = torch.randperm(n, generator=seeded(seed))[: n // 2]
    features = unit_rows(n // 2, dim, seed + 1)
    expected = bank.rows.double().clone()
    sums = m * expected[index] + (1 - m) * features.double()
    # Opposite vectors have no direction between them that rounding would leave.
    clear = sums.norm(dim=1) > 1e-3
    expected[index] = sums / sums.norm(dim=1, keepdim=True)
    bank.update(features, index)
    others = torch.ones(n, dtype=torch.bool)
    others[index[~clear]] = False
    torch.testing.assert_close(bank.rows[others].double(), expected[others], rtol=0, atol=1e-4)
    torch.testing.assert_close(bank.rows[others].norm(dim=1), torch.ones(int(others.sum())))


def test_bank_takes_bfloat16_features_without_losing_precision_of_its_rows() -> None:
    bank = MemoryBank(4, 8, 0.5, seeded(0))
    bank.update(unit_rows(2, 8, 1).bfloat16(), torch.tensor([0, 2]))
    assert bank.rows.dtype == torch.float32
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_bank_momentum_outside_0_to_1_is_told(momentum: float) -> None:
    with pytest.raises(UserError, match=rf"^MemoryBank: momentum must .* got {momentum:g}$"):
        MemoryBank(4, 2, momentum)


def test_bank_goes_on_after_a_checkpoint() -> None:
    bank, fresh = MemoryBank(6, 3, generator=seeded(0)), MemoryBank(6, 3, generator=seeded(1))
    bank.update(unit_rows(2, 3, 2), torch.tensor([4, 1]))
    fresh.load_state_dict(bank.state_dict())
    assert torch.equal(fresh.rows, bank.rows)


@pytest.mark.parametrize("n_data", [10, 400])
def test_scores_and_their_gradients_are_the_candidates_inner_products(n_data: int) -> None:
    """Both ways to compute them: the whole product of a small bank, picked rows of a large one."""
    bank = MemoryBank(n_data, 6, generator=seeded(0))
    candidates = torch.randint(n_data, (5, 8), generator=seeded(1))
    features = unit_rows(5, 6, 2).requires_grad_()
    bank.scores(features, candidates).square().sum().backward()
    ours = features.grad
    rows = bank.rows
    expected = [[features[i] @ rows[j] for j in row] for i, row in enumerate(candidates.tolist())]
    theirs = torch.stack([torch.stack(row) for row in expected])
    torch.testing.assert_close(bank.scores(features, candidates), theirs)
    (gradient,) = torch.autograd.grad(theirs.square().sum(), features)
    torch.testing.assert_close(ours, gradient)


def test_a_samples_first_candidate_is_itself_and_the_others_are_uniform() -> None:
    """Chi-square over 50 rows; the sample itself is among its negatives as often as any other."""
    n_data, negatives = 50, 4000
    index = torch.tensor([3, 49, 0, 3])
    candidates = draw_candidates(index, negatives, n_data, seeded(0))
    assert candidates.shape == (4, 1 + negatives)
    assert torch.equal(candidates[:, 0], index)
    counts = candidates[:, 1:].flatten().bincount(minlength=n_data)
    assert len(counts) == n_data
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert not torch.equal(candidates[0], candidates[3])


def test_candidates_follow_from_the_generator() -> None:
    index = torch.arange(4)
    first = draw_candidates(index, 20, 90, seeded(0))
    assert torch.equal(first, draw_candidates(index, 20, 90, seeded(0)))
    assert not torch.equal(first, draw_candidates(index, 20, 90, seeded(1)))
