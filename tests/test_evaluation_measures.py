"""Softness and health: extremes with known values, invariance, and the reference formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy as scipy_entropy

from unmix.errors import UserError
from unmix.evaluation import (
    effective_rank,
    softness,
    softness_summary,
    spread,
)

SCALE_FREE = ("entropy", "relative_entropy", "participation_ratio", "max_share")

# Nothing so small that its square, times the square of a scale, would lose digits.
ELEMENTS = st.just(0.0) | st.floats(1e-6, 1e3)

curves = arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(2, 20)), elements=ELEMENTS
).map(lambda x: torch.as_tensor(x + (x.sum(axis=1, keepdims=True) == 0)))


@settings(deadline=None)
@given(curves, st.floats(1e-100, 1e100))
def test_scale_changes_only_the_measures_with_units(x: torch.Tensor, scale: float):
    plain, scaled = softness(x), softness(x * scale)
    for name in SCALE_FREE:
        torch.testing.assert_close(scaled[name], plain[name], rtol=1e-9, atol=1e-9)
    for name in ("max", "sum", "norm"):
        torch.testing.assert_close(scaled[name], plain[name] * scale, rtol=1e-9, atol=0)


@settings(deadline=None)
@given(curves)
def test_measures_stay_in_their_ranges(x: torch.Tensor):
    d, slack = x.shape[1], 1e-9
    found = softness(x)
    assert ((found["entropy"] >= -slack) & (found["entropy"] <= math.log(d) + slack)).all()
    assert (
        (found["participation_ratio"] >= 1 - slack) & (found["participation_ratio"] <= d + slack)
    ).all()
    assert ((found["max_share"] >= 1 / d - slack) & (found["max_share"] <= 1 + slack)).all()


def test_one_hot_and_uniform_are_the_extremes():
    x = torch.zeros(2, 8)
    x[0, 3] = 5
    x[1] = 0.25
    found = {name: value.tolist() for name, value in softness(x).items()}
    assert found["entropy"] == pytest.approx([0, math.log(8)])
    assert found["relative_entropy"] == pytest.approx([0, 1])
    assert found["participation_ratio"] == pytest.approx([1, 8])
    assert found["max_share"] == pytest.approx([1, 1 / 8])
    assert found["max"] == [5, 0.25]
    assert found["sum"] == [5, 2]
    assert found["norm"] == pytest.approx([5, math.sqrt(0.5)])


def test_entropy_is_scipys(generator):
    x = torch.rand(5, 30, generator=generator, dtype=torch.float64)
    x[x < 0.4] = 0
    expected = torch.as_tensor(scipy_entropy(x.numpy(), axis=1))
    torch.testing.assert_close(softness(x)["entropy"], expected)


def test_zero_images_have_no_flatness_and_are_left_out_of_its_mean():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert all(softness(x)[name][0].isnan() for name in SCALE_FREE)
    summary = softness_summary(x)
    assert summary["participation_ratio"] == pytest.approx((2, 0))
    assert summary["sum"] == pytest.approx((1, 1))


def test_summary_is_mean_and_deviation_over_the_images(generator):
    x = torch.rand(40, 6, generator=generator)
    expected = softness(x)["entropy"].numpy()
    assert softness_summary(x)["entropy"] == pytest.approx((expected.mean(), expected.std()))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_features_before_the_relu_are_refused(value: float):
    with pytest.raises(UserError, match=r"softness: features go from .* last ReLU"):
        softness(torch.tensor([[1.0, value]]))


def test_softness_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"features \(0, 4\)"):
        softness(torch.zeros(0, 4))


def test_collapse_shows_in_every_measure():
    features = torch.tensor([1.0, 2.0, 3.0]).repeat(50, 1)
    assert spread(features) == pytest.approx(0, abs=1e-6)
    assert effective_rank(features) == pytest.approx(1, abs=1e-4)


def test_isotropic_features_have_spread_one_and_full_rank(generator):
    features = torch.randn(4000, 64, generator=generator)
    assert spread(features) == pytest.approx(1, abs=0.01)
    assert effective_rank(features) == pytest.approx(64, rel=0.01)


@pytest.mark.parametrize("shape", [(40, 9), (9, 40)])
def test_effective_rank_is_that_of_the_singular_values(shape, generator):
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    singular = np.linalg.svd(x.numpy(), compute_uv=False)
    assert effective_rank(x) == pytest.approx(math.exp(scipy_entropy(singular)))


def test_effective_rank_counts_equal_directions():
    assert effective_rank(torch.eye(5).repeat(3, 1)) == pytest.approx(5)
    assert effective_rank(torch.zeros(4, 5)) == 0


@given(st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=20)
def test_collapse_measures_do_not_depend_on_scale(scale: float):
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for measure in (spread, effective_rank):
        assert measure(x * scale) == pytest.approx(measure(x))


@pytest.mark.parametrize(
    "features", [torch.zeros(1, 3), torch.zeros(3), torch.full((3, 3), math.nan)]
)
def test_collapse_measures_need_two_finite_rows(features: torch.Tensor):
    for measure in (spread, effective_rank):
        with pytest.raises(UserError, match=r"features .* must be"):
            measure(features)
