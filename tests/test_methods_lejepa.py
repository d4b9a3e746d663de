"""LeJEPA: its loss against lightly's, SIGReg against what the test is about."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import LeJEPALoss
from scipy import integrate
from torch import Tensor

from unmix import backbones
from unmix.credit import IMix, UnMixRule
from unmix.errors import UserError
from unmix.methods import LeJEPA, Progress
from unmix.methods.lejepa import epps_pulley, unit_directions
from unmix.mixtures import UnMix
from unmix.step import Mixture, objective


def lejepa(**options: Any) -> LeJEPA:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    return LeJEPA(backbone, **{"dim": 5, "hidden": 16, "slices": 24} | options)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(method: LeJEPA, queries: Tensor) -> Tensor:
    """The clean loss, written out, of queries (V, N, dim)."""
    q = dict(enumerate(queries))
    t = method.targets([], q, torch.arange(queries.shape[1]), torch.Generator())
    pairs = method.pairs_of(len(queries))
    compared = sum(share * method.compare(q[a], t[b]).mean() for a, b, share in pairs)
    return compared + method.regularizer(list(queries), t)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_loss_and_gradient_are_those_of_lightly(n: int, local: int, weight: float, seed: int):
    method = lejepa(sigreg=weight)
    method.begin_step(Progress(3, 10, 10, seed))
    theirs: Any = LeJEPALoss(lambda_param=weight)
    theirs.sigreg._generate_unit_vectors = lambda *a, **k: method.directions
    z = (1.3 * normal(2 + local, n, 5, seed=seed) + 0.2).requires_grad_()
    (expected,) = torch.autograd.grad(theirs(local_proj=z[2:], global_proj=z[:2]), z)
    (found,) = torch.autograd.grad(loss_of(method, z), z)
    torch.testing.assert_close(
        loss_of(method, z), theirs(local_proj=z[2:], global_proj=z[:2]), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_statistic_is_the_integral_of_the_paper() -> None:
    """Of the squared distance of characteristic functions over [-3, 3], by SciPy's quadrature."""
    x = 1.5 * normal(30, 1) - 0.5

    def integrand(t: float) -> float:
        empirical = torch.complex((x * t).cos(), (x * t).sin()).mean()
        phi = torch.tensor(-t * t / 2).exp()
        return float(((empirical - phi).abs() ** 2 * phi).item())

    exact = 30 * integrate.quad(integrand, -3, 3)[0]
    assert epps_pulley(x, knots=301).item() == pytest.approx(exact, rel=1e-4)
    assert epps_pulley(x).item() == pytest.approx(exact, rel=2e-2)


def test_the_statistic_tells_gaussians_from_others() -> None:
    n = 4000
    gaussian = epps_pulley(normal(n, 8)).mean()
    for other in (normal(n, 8).sign(), 0.7 * normal(n, 8), normal(n, 8) + 0.3, torch.zeros(n, 8)):
        assert epps_pulley(other).mean() > 20 * gaussian


def test_sigreg_would_fight_mixtures_of_gaussian_embeddings() -> None:
    """w a + (1 - w) b has variance w^2 + (1 - w)^2 < 1: SIGReg's gradient would stretch it."""
    a, b = normal(2000, 5), normal(2000, 5, seed=1)
    scale = torch.ones((), requires_grad=True)
    method = lejepa(sigreg=1.0, slices=64)
    mixture = 0.5 * a + 0.5 * b
    assert mixture.var().item() == pytest.approx(0.5, abs=0.05)
    assert method.regularizer([mixture], {}) > 20 * method.regularizer([a], {})
    method.regularizer([scale * mixture], {}).backward()
    assert scale.grad is not None
    assert scale.grad < 0


@pytest.mark.parametrize("rule", [UnMixRule(), UnMixRule(keeps_clean=False), IMix()])
def test_sigreg_sees_clean_embeddings_alone(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the rule does with the clean loss."""
    method = lejepa().eval()
    views = [normal(6, 3, 8, 8, seed=v) for v in range(2)]
    seen: list[Tensor] = []
    regularizer = method.regularizer
    monkeypatch.setattr(method, "regularizer", lambda q, t: seen.extend(q) or regularizer(q, t))
    mixture = Mixture(UnMix(1.0), rule)
    found = objective(method, views, torch.arange(6), torch.Generator().manual_seed(0), mixture)
    assert found.mixed is not None
    assert found.clean is not None
    clean = method.queries(views)
    assert len(seen) == 2
    for v in (0, 1):
        torch.testing.assert_close(seen[v], clean[v])


def test_a_mixture_is_compared_with_both_images_centers() -> None:
    """w |z - c|^2 + (1 - w) |z - c[p]|^2, over dim, at the weight of the prediction."""
    method = lejepa(sigreg=0.2).eval()
    views = [normal(6, 3, 8, 8, seed=v) for v in range(2)]
    draw = UnMix(1.0).draw((6, 3, 8, 8), torch.Generator().manual_seed(5))
    found = objective(method, views, torch.arange(6), torch.Generator(), Mixture(draw))
    z, z_mix = method.queries(views), method.query(draw.apply(views[0]))
    c = (z[0] + z[1]) / 2
    w, p = draw.shares[:, 0], draw.owners[:, 1]
    own, other = (z_mix - c).square().mean(1), (z_mix - c[p]).square().mean(1)
    expected = 0.8 * (w * own + (1 - w) * other).mean()
    assert found.mixed is not None
    torch.testing.assert_close(found.mixed, expected.detach(), rtol=1e-5, atol=1e-6)


def test_directions_are_unit_and_a_function_of_seed_and_step() -> None:
    method = lejepa()
    drawn = {}
    for seed, step in ((0, 1), (0, 2), (1, 1), (0, 1)):
        method.begin_step(Progress(step, 10, 10, seed))
        drawn.setdefault((seed, step), []).append(method.directions)
    torch.testing.assert_close(method.directions.norm(dim=0), torch.ones(24))
    assert torch.equal(*drawn[0, 1])
    assert not torch.equal(drawn[0, 1][0], drawn[0, 2][0])
    assert not torch.equal(drawn[0, 1][0], drawn[1, 1][0])
    assert unit_directions(3, 7, torch.Generator()).shape == (3, 7)


@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [
        ("sigreg", 1.5, "it must be at least 0 and at most 1"),
        ("slices", 0, "it must be at least 1"),
        ("knots", 1, "it must be at least 2"),
        ("t_max", 0.0, "it must be greater than 0"),
        ("dim", 0, "it must be at least 1"),
    ],
)
def test_values_out_of_range_are_told(flag: str, value: float, bound: str) -> None:
    with pytest.raises(UserError) as caught:
        lejepa(**{flag: value})
    assert bound in caught.value.on_command_line()
