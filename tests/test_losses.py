"""The contrastive losses agree with PyTorch's and with the definitions, and stay finite."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmix.losses import nce_contrast, partition_constant, softmax_contrast

seeds = st.integers(0, 2**31)
temperatures = st.floats(0.05, 2.0)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 40))


def cosines(n: int, k: int, seed: int) -> Tensor:
    """Scores (n, 1 + k), uniform in [-1, 1]."""
    return torch.rand(n, 1 + k, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(deadline=None)
@given(sizes, seeds, temperatures)
def test_softmax_contrast_is_cross_entropy_with_the_first_candidate_as_class(
    size: tuple[int, int], seed: int, temperature: float
) -> None:
    scores = cosines(*size, seed).requires_grad_()
    theirs = scores.detach().double().requires_grad_()
    ours = softmax_contrast(scores, temperature)
    zeros = torch.zeros(size[0], dtype=torch.long)
    expected = F.cross_entropy(theirs / temperature, zeros, reduction="none")
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    expected.sum().backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


def naive_nce(scores: Tensor, temperature: float, z: float, n_data: int) -> list[float]:
    """Wu et al. 2018, Eqs. 4 to 7, one number at a time in double precision."""
    losses = []
    k = scores.shape[1] - 1
    noise = k / n_data
    for row in scores.double().tolist():
        p = [math.exp(score / temperature) / z for score in row]
        loss = -math.log(p[0] / (p[0] + noise + 1e-7))
        for negative in p[1:]:
            loss -= math.log(noise / (negative + noise + 1e-7))
        losses.append(loss)
    return losses


@settings(deadline=None)
@given(sizes, seeds, st.floats(0.07, 2.0), st.integers(50, 5000))
def test_nce_contrast_is_the_papers_formula(
    size: tuple[int, int], seed: int, temperature: float, n_data: int
) -> None:
    scores = cosines(*size, seed)
    z = partition_constant(scores, temperature, n_data)
    ours = nce_contrast(scores, temperature, z, n_data)
    expected = torch.tensor(naive_nce(scores, temperature, z.item(), n_data))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(sizes, seeds, temperatures, st.integers(1, 5000))
def test_partition_constant_is_the_papers_estimate_and_takes_no_gradient(
    size: tuple[int, int], seed: int, temperature: float, n: int
) -> None:
    """Z = n * mean(exp(scores / T)) (Wu et al. 2018, Eq. 8)."""
    scores = cosines(*size, seed).requires_grad_()
    z = partition_constant(scores, temperature, n)
    values = [math.exp(s / temperature) for row in scores.tolist() for s in row]
    assert not z.requires_grad
    assert z.item() == pytest.approx(n * sum(values) / len(values), rel=1e-4)


def extreme(positive: float, negatives: float) -> Tensor:
    """Scores of 4,096 negatives that are all as unlike or as alike as can be."""
    scores = torch.full((2, 4097), negatives)
    scores[:, 0] = positive
    return scores.requires_grad_()


@pytest.mark.parametrize("temperature", [0.005, 0.07])
@pytest.mark.parametrize("positive", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("negatives", [-1.0, 0.0, 1.0])
def test_softmax_loss_and_gradient_are_finite_at_extreme_scores(
    temperature: float, positive: float, negatives: float
) -> None:
    """At T 0.005 exp(scores / T) alone would overflow."""
    scores = extreme(positive, negatives)
    losses = softmax_contrast(scores, temperature)
    losses.mean().backward()
    assert losses.isfinite().all()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.05, 0.07])
@pytest.mark.parametrize("positive", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("negatives", [-1.0, 0.0, 1.0])
def test_nce_loss_and_gradient_are_finite_at_extreme_scores(
    temperature: float, positive: float, negatives: float
) -> None:
    """With a data set of ImageNet's size, and the constant of that very batch."""
    n_data = 1_281_167
    scores = extreme(positive, negatives)
    z = partition_constant(scores, temperature, n_data)
    losses = nce_contrast(scores, temperature, z, n_data)
    losses.mean().backward()
    assert losses.isfinite().all()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_divided_in_single_precision(dtype: torch.dtype) -> None:
    """At T 0.07 NCE's exp(scores / T) would overflow float16; nothing but the scores is rounded."""
    scores = cosines(4, 20, 0).to(dtype)
    z = partition_constant(scores, 0.07, 100)
    assert z.dtype == torch.float32
    for half, single in (
        (softmax_contrast(scores, 0.07), softmax_contrast(scores.float(), 0.07)),
        (nce_contrast(scores, 0.07, z, 100), nce_contrast(scores.float(), 0.07, z, 100)),
    ):
        assert half.dtype == torch.float32
        assert torch.equal(half, single)


@pytest.mark.parametrize("kind", ["softmax", "nce"])
def test_gradient_pulls_the_positive_and_pushes_the_negatives(kind: str) -> None:
    scores = cosines(3, 10, 1).requires_grad_()
    z = partition_constant(scores, 0.5, 30)
    losses = (
        softmax_contrast(scores, 0.5) if kind == "softmax" else nce_contrast(scores, 0.5, z, 30)
    )
    losses.sum().backward()
    assert scores.grad is not None
    assert (scores.grad[:, 0] < 0).all()
    assert (scores.grad[:, 1:] > 0).all()
