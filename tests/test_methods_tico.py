"""TiCo: its loss against lightly's, its covariance over steps, and who is in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import TiCoLoss
from torch import Tensor

from unmix import backbones
from unmix.credit import IMix, UnMixRule
from unmix.errors import UserError
from unmix.methods import TiCo
from unmix.mixtures import UnMix
from unmix.step import Mixture, objective


def tico(**options: Any) -> TiCo:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    return TiCo(backbone, **{"dim": 5, "hidden": 16} | options)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(seed: int = 0) -> list[Tensor]:
    return [normal(6, 3, 8, 8, seed=seed + v) for v in range(2)]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(2, 12), st.floats(0, 1), st.floats(0, 20), st.integers(1, 3), st.integers(0, 2**31)
)
def test_losses_gradients_and_covariances_of_steps_are_those_of_lightly(
    n: int, beta: float, rho: float, steps: int, seed: int
) -> None:
    """Of projections as they are before normalization."""
    method, theirs = tico(covariance=rho, covariance_momentum=beta), TiCoLoss(beta=beta, rho=rho)
    for number in range(steps):
        a = (2 * normal(n, 5, seed=seed + number) + 0.3).requires_grad_()
        b = normal(n, 5, seed=seed + number + 7)
        expected = theirs(a, b)
        z, target = F.normalize(a, dim=1), F.normalize(b, dim=1)
        found = method.compare(z, target).mean()
        if method.regularized_views(2):
            found = found + method.regularizer([z], {})
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        (ours,) = torch.autograd.grad(found, a)
        (other,) = torch.autograd.grad(expected, a)
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)
        method.update_memory({0: z.detach()}, {1: target}, torch.arange(n))
        torch.testing.assert_close(method.C, theirs.C, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [None, UnMixRule(), UnMixRule(keeps_clean=False), IMix()])
def test_the_covariance_sees_the_clean_first_view_alone(
    rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the loss and in the memory, which changes after the backward pass."""
    method = tico().eval()
    views, seen = images(), []
    regularizer = method.regularizer
    monkeypatch.setattr(method, "regularizer", lambda q, t: seen.append(q) or regularizer(q, t))
    mixture = None if rule is None else Mixture(UnMix(1.0), rule)
    found = objective(method, views, torch.arange(6), torch.Generator().manual_seed(0), mixture)
    z = F.normalize(method.projections(views[0]), dim=1)
    ((only,),) = seen
    torch.testing.assert_close(only, z)
    assert not method.C.any()
    found.loss.backward()
    found.update_memory()
    torch.testing.assert_close(method.C, (0.1 * z.T @ z / 6).detach())


def test_mixtures_would_take_directions_for_crowded_that_no_image_has() -> None:
    """Of two images at right angles the mean is near both: its contrast with C is the smallest.

    The gradient would so draw images together, which is what the term is against.
    """
    method = tico(covariance=1.0, covariance_momentum=1.0)
    method.C.copy_(torch.diag(torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])))
    a, b = torch.eye(5)[:1], torch.eye(5)[1:2]
    mixture = F.normalize(a + b, dim=1)
    spread = method.covariance_with(torch.cat([a, b]))
    torch.testing.assert_close(method.regularizer([mixture], {}), torch.tensor(0.5))
    method.beta = 0.0
    with_mixtures = method.covariance_with(torch.cat([a, b, mixture, mixture]))
    assert spread[0, 1] == 0
    assert with_mixtures[0, 1] == pytest.approx(0.25)


def test_a_mixture_is_compared_with_both_images_targets() -> None:
    method = tico().eval()
    views = images()
    draw = UnMix(1.0).draw((6, 3, 8, 8), torch.Generator().manual_seed(5))
    found = objective(method, views, torch.arange(6), torch.Generator(), Mixture(draw))
    z_mix = F.normalize(method.projections(draw.apply(views[0])), dim=1)
    target = F.normalize(method.g_k(method.f_k(views[1])), dim=1)
    w, p = draw.shares[:, 0], draw.owners[:, 1]
    # Linear in the target, so it is the loss with the mean of both.
    mean = w[:, None] * target + (1 - w)[:, None] * target[p]
    expected = (1 - (z_mix * mean).sum(1)).mean()
    torch.testing.assert_close(found.mixed, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [
        ("covariance", -1.0, "it must be at least 0"),
        ("covariance_momentum", 1.5, "it must be at least 0 and at most 1"),
        ("encoder_momentum", 2.0, "it must be at least 0 and at most 1"),
        ("hidden", 0, "it must be at least 1"),
    ],
)
def test_values_out_of_range_are_told(flag: str, value: float, bound: str) -> None:
    with pytest.raises(UserError) as caught:
        tico(**{flag: value})
    assert bound in caught.value.on_command_line()
