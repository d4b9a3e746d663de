"""VICReg: its three terms, written out with PyTorch's own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unmix import backbones
from unmix.errors import UserError
from unmix.methods import VICReg
from unmix.step import objective


def vicreg(**options: Any) -> VICReg:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    return VICReg(backbone, **{"dim": 5, "hidden": 16} | options)


def random(n: int, dim: int, seed: int) -> Tensor:
    return 0.9 * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 1


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 12), st.integers(0, 2**31), st.sampled_from([(25, 25, 1), (1, 0, 0), (0, 2, 3)])
)
def test_the_loss_is_the_sum_of_its_three_terms(n: int, seed: int, weights: Any) -> None:
    """With PyTorch's mean squared error, standard deviation and covariance."""
    a, b = random(n, 5, seed), random(n, 5, seed + 1)
    s = nn.functional.mse_loss(a, b).item()
    v = c = 0.0
    for z in (a, b):
        v += (1 - (z.std(dim=0) ** 2 + 1e-4).sqrt()).clamp_min(0).mean().item()
        C = torch.cov(z.T)
        c += sum(C[i, j].item() ** 2 for i in range(5) for j in range(5) if i != j) / 5
    method = vicreg(invariance=weights[0], variance=weights[1], covariance=weights[2])
    loss = method.compare(a, b)
    assert loss.shape == ()
    expected = weights[0] * s + weights[1] * v / 2 + weights[2] * c
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_equal_features_cost_the_variance_term_alone() -> None:
    same = torch.ones(6, 5)
    assert vicreg().compare(same, same).item() == pytest.approx(25 * (1 - 1e-4**0.5), rel=1e-4)


def test_the_gradient_reaches_both_views_and_is_finite_at_equal_features() -> None:
    method = vicreg()
    views = [torch.zeros(6, 3, 8, 8).requires_grad_() for _ in range(2)]
    objective(method, views, torch.arange(6), torch.Generator()).loss.backward()
    for view in views:
        assert view.grad is not None
        assert view.grad.isfinite().all()


@pytest.mark.parametrize("flag", ["invariance", "variance", "covariance"])
def test_negative_weights_are_told(flag: str) -> None:
    with pytest.raises(UserError) as caught:
        vicreg(**{flag: -1.0})
    assert caught.value.on_command_line() == f"--{flag}: -1 is out of range; it must be at least 0."
