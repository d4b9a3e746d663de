"""Barlow Twins: correlations against PyTorch's own, and the two parts of the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmix import backbones
from unmix.credit import MixBT
from unmix.errors import UserError
from unmix.methods import BarlowTwins
from unmix.mixtures import PairDraw
from unmix.mixtures.draws import whole_image
from unmix.step import Mixture, objective


def barlow(**options: Any) -> BarlowTwins:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    return BarlowTwins(backbone, **{"dim": 5, "hidden": 16} | options)


def random(n: int, dim: int, seed: int) -> Tensor:
    return 3 * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 1


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 20), st.integers(0, 2**31))
def test_correlations_are_those_of_pytorch(n: int, seed: int) -> None:
    """torch.corrcoef of both views' features side by side; a variance of 1e-5 is added here."""
    # Large features, of which also three have a variance that dwarfs what is added.
    a, b = 100 * random(n, 5, seed), 100 * random(n, 5, seed + 1)
    expected = torch.corrcoef(torch.cat([a, b], dim=1).T)[:5, 5:]
    torch.testing.assert_close(barlow().correlation(a, b), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("off_diagonal", "scale"), [(0.0051, 1.0), (0.5, 0.1), (0.0, 1.0)])
def test_the_loss_is_the_papers_sum(off_diagonal: float, scale: float) -> None:
    """Eq. 1 by a loop over the entries of C."""
    method = barlow(off_diagonal=off_diagonal, scale=scale)
    a, b = random(9, 5, 0), random(9, 5, 1)
    C = method.correlation(a, b)
    expected = 0.0
    for i in range(5):
        for j in range(5):
            c = C[i, j].item()
            expected += (1 - c) ** 2 if i == j else off_diagonal * c**2
    loss = method.compare(a, b)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(scale * expected, rel=1e-5)
    assert method.penalty == pytest.approx(scale * off_diagonal)


def test_as_mix_bts_code_standardises() -> None:
    """The unbiased deviation without an epsilon, and products over N; a constant feature is 0."""
    method = barlow(unbiased=True, off_diagonal=1 / 128)
    a, b = random(9, 5, 0), random(9, 5, 1)
    c = ((a - a.mean(0)) / a.std(0)).T @ ((b - b.mean(0)) / b.std(0)) / 9
    on, off = (c.diagonal() - 1).square().sum(), (c - c.diagonal().diag()).square().sum()
    torch.testing.assert_close(method.compare(a, b), on + off / 128)
    a = a.clone()
    a[:, 2] = 0.1
    a.requires_grad_()
    loss = method.compare(a, b)
    loss.backward()
    assert loss.isfinite()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_identical_uncorrelated_views_cost_nothing() -> None:
    """Columns of a Hadamard matrix have mean 0 and no correlation."""
    two = torch.tensor([[1.0, 1], [1, -1]])
    hadamard = torch.kron(torch.kron(two, two), two)[:, 1:6]
    assert barlow().compare(hadamard, hadamard).item() == pytest.approx(0, abs=1e-4)


def test_the_gradient_reaches_both_views() -> None:
    method = barlow()
    views = [torch.randn(6, 3, 8, 8).requires_grad_() for _ in range(2)]
    objective(method, views, torch.arange(6), torch.Generator()).loss.backward()
    for view in views:
        assert view.grad is not None
        assert view.grad.abs().sum() > 0


def test_its_own_rule_for_mixtures_finds_what_it_needs() -> None:
    """Mix-BT at weight 1 and the mixture equal to the view: the correlations are as they should."""
    method = barlow().eval()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    for weight, nothing in ((1.0, True), (0.4, False)):
        partner, ratio = torch.arange(5, -1, -1), torch.full((6,), weight)
        draw = PairDraw(partner, whole_image(6, 8, 8), ratio, (8, 8), False)
        mixture = Mixture(draw, MixBT(), others=[views[1]])
        result = objective(method, views, torch.arange(6), torch.Generator(), mixture)
        assert result.mixed is not None
        assert (result.mixed.item() < 1e-6) is nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"off_diagonal": -1.0}, "--off_diagonal: -1 is out of range; it must be at least 0."),
        ({"scale": 0.0}, "--scale: 0 is out of range; it must be greater than 0."),
    ],
)
def test_bad_numbers_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        barlow(**options)
    assert caught.value.on_command_line() == message
