"""Measures without labels, against published code and what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmix.errors import UserError
from unmix.evaluation import effective_rank
from unmix.evaluation.quality import alignment, alpha_req, lidar, of_features, rankme, uniformity


@pytest.fixture(scope="module")
def numbers() -> tuple[Tensor, Tensor]:
    """Features (300, 128) with a power law, and (200, 6, 24) of views; NumPy keeps its streams."""
    g = np.random.default_rng(0)
    x = g.standard_normal((300, 128)) @ np.diag(np.arange(1, 129) ** -0.6) + 0.3
    clean = g.standard_normal((200, 1, 24)) * np.arange(1, 25) ** -0.5
    return torch.tensor(x), torch.tensor(clean + 0.3 * g.standard_normal((200, 6, 24)))


def test_published_code_gives_the_same_values(numbers: tuple[Tensor, Tensor]) -> None:
    """reptrix (of the authors of alpha-ReQ), align_uniform (of Wang and Isola), SciPy's eigh."""
    x, views = numbers
    assert rankme(x) == pytest.approx(62.28227237674187, rel=1e-5)
    assert rankme(x[:50]) == pytest.approx(26.78254593873414, rel=1e-5)
    assert alpha_req(x) == pytest.approx(1.377348415583858, rel=1e-5)
    unit = torch.nn.functional.normalize(x[:, :40], dim=1)
    assert uniformity(x[:, :40]) == pytest.approx(-1.6104716252196496, rel=1e-5)
    assert uniformity(unit) == pytest.approx(-1.6104716252196496, rel=1e-5)
    pairs = torch.stack([x[:, :40], x[:, 40:80]], dim=1)
    assert alignment(pairs) == pytest.approx(0.5843186820337416, rel=1e-5)
    # The generalized eigenvalues of the two covariance matrices.
    assert lidar(views) == pytest.approx(14.96758752267291, rel=1e-5)
    assert lidar(views, delta=1e-6, eps=1e-6) == pytest.approx(14.968455649917559, rel=1e-5)


def test_rankme_is_the_effective_rank_up_to_its_epsilon(numbers: tuple[Tensor, Tensor]) -> None:
    x = numbers[0]
    assert rankme(x, eps=0.0) == pytest.approx(effective_rank(x), rel=1e-9)
    assert rankme(x) == pytest.approx(effective_rank(x), rel=1e-3)


@given(st.floats(0.3, 2.5), st.integers(40, 150))
def test_alpha_is_the_exponent_of_a_power_law(alpha: float, d: int) -> None:
    """Orthogonal centered columns with variances j^-alpha; for any scale."""
    g = torch.Generator().manual_seed(d)
    x = torch.randn(d + 60, d, generator=g, dtype=torch.float64)
    q = torch.linalg.qr(x - x.mean(dim=0))[0]
    scales = torch.arange(1, d + 1, dtype=torch.float64).pow(-alpha / 2)
    assert alpha_req(7 * q * scales) == pytest.approx(alpha, rel=1e-6)


def test_too_few_directions_have_no_exponent() -> None:
    few = torch.randn(100, 15, generator=torch.Generator().manual_seed(0))
    assert math.isnan(alpha_req(few))
    assert math.isnan(alpha_req(torch.ones(10, 30)))
    assert set(of_features(few)) == {"rankme", "uniformity"}


def test_the_ends_of_the_scales() -> None:
    g = torch.Generator().manual_seed(0)
    same = torch.ones(8, 5, 4)
    assert alignment(same) == pytest.approx(0, abs=1e-12)
    opposite = torch.stack([torch.eye(4), -torch.eye(4)], dim=1)
    assert alignment(opposite) == pytest.approx(4)
    assert uniformity(torch.ones(10, 3)) == pytest.approx(0, abs=1e-12)
    two = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(two) == pytest.approx(-8)  # -4 t
    on_sphere = torch.randn(2000, 64, generator=g)
    assert -4 < uniformity(on_sphere) < -3.7
    # Views that differ in one direction only as much as images do: it hardly counts.
    clean = torch.randn(500, 1, 8, generator=g).expand(-1, 10, -1).clone()
    noise = torch.randn(500, 10, 8, generator=g)
    assert lidar(clean + 0.1 * noise) == pytest.approx(8, rel=0.02)
    noise[..., 4:] *= 20
    assert lidar(clean + 0.1 * noise) == pytest.approx(4, rel=0.05)
    assert rankme((clean + 0.1 * noise).flatten(0, 1)) > 6


def test_uniformity_in_parts_is_that_of_all_pairs() -> None:
    x = torch.randn(1500, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = torch.nn.functional.normalize(x, dim=1)
    whole = torch.pdist(unit).square().mul(-2).exp().mean().log().item()
    assert uniformity(x) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("bad", [torch.ones(1, 4), torch.ones(4), torch.full((3, 4), math.nan)])
def test_what_is_no_matrix_of_features_is_refused(bad: Tensor) -> None:
    for measure in (rankme, alpha_req, uniformity):
        with pytest.raises(UserError, match="at least 2"):
            measure(bad)
    with pytest.raises(UserError, match="must be \\(N, views, D\\)"):
        lidar(torch.ones(4, 1, 3))
