"""SimCLR: NT-Xent against a loop over pairs and the golden value; heads; chance level."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import DCLLoss, DCLWLoss
from torch import Tensor, nn

from unmix import backbones
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.losses import decoupled_contrast, nt_xent
from unmix.methods import SimCLR
from unmix.mixtures import UnMix
from unmix.step import Mixture, objective
from unmix.stepper import Stepper


def simclr(**options: Any) -> SimCLR:
    return SimCLR(backbones.build("resnet10", width=0.125, size=8), **{"dim": 8} | options)


def unit_vectors(n: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1)


def by_hand(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """Eq. 1: the mean over all 2 N ordered pairs, with its denominators spelt out."""
    z = torch.cat([z1, z2]).tolist()
    n = len(z1)

    def s(i: int, j: int) -> float:
        return math.exp(sum(a * b for a, b in zip(z[i], z[j], strict=True)) / temperature)

    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        losses.append(-math.log(s(i, j) / sum(s(i, k) for k in range(2 * n) if k != i)))
    return sum(losses) / (2 * n)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**31), st.sampled_from([0.1, 0.5, 1.0]))
def test_the_loss_is_the_papers_sum_over_pairs(n: int, seed: int, temperature: float) -> None:
    z1, z2 = unit_vectors(n, 5, seed), unit_vectors(n, 5, seed + 1)
    loss = simclr(temperature=temperature).compare(z1, z2)
    assert loss.shape == (n,)
    assert loss.mean().item() == pytest.approx(by_hand(z1, z2, temperature), rel=1e-6)


def test_value_and_gradients_are_the_published_ones(golden):
    g = golden("simclr_ntxent")
    method = simclr(temperature=float(g["temperature"]))
    z0, z1 = g["z0"].requires_grad_(), g["z1"].requires_grad_()
    loss = method.compare(F.normalize(z0, dim=1), F.normalize(z1, dim=1)).mean()
    loss.backward()
    for ours, theirs in ((loss, g["loss"]), (z0.grad, g["grad0"]), (z1.grad, g["grad1"])):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize(("decoupled", "judge"), [("dcl", DCLLoss), ("dclw", DCLWLoss)])
def test_decoupled_losses_and_gradients_are_those_of_lightly(
    decoupled: str, judge: type[DCLLoss], n: int
) -> None:
    method = simclr(decoupled=decoupled, temperature=0.1)
    found, expected = [], []
    for values, of in ((found, method.compare), (expected, judge(temperature=0.1))):
        z1, z2 = (unit_vectors(n, 5, seed).requires_grad_() for seed in (1, 2))
        loss = of(z1, z2).mean()
        values += [loss, *torch.autograd.grad(loss, (z1, z2))]
    for ours, theirs in zip(found, expected, strict=True):
        # lightly normalizes once more, which takes the part along z from the gradient.
        if ours.ndim:
            z = unit_vectors(n, 5, 1 if ours is found[1] else 2)
            ours = ours - (ours * z).sum(dim=1, keepdim=True) * z
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**31), st.sampled_from([0.02, 0.1, 0.5]))
def test_what_is_decoupled_is_the_positive_in_the_denominator(n: int, seed: int, T: float) -> None:
    """Of the same others: ln(exp(positive) + negatives) in NT-Xent, ln(negatives) in DCL."""
    z1, z2 = unit_vectors(n, 5, seed), unit_vectors(n, 5, seed + 1)
    coupled, decoupled = (nt_xent(z1, z2, T), decoupled_contrast(z1, z2, T))
    positive = (z1 * z2).sum(dim=1) / T
    torch.testing.assert_close(coupled, torch.logaddexp(decoupled + positive, positive) - positive)


@pytest.mark.parametrize("sigma", [1e-3, 0.5, 1e3])
def test_weights_of_positives_have_mean_1_and_do_not_overflow(sigma: float) -> None:
    """So that the loss at chance level is that of DCL; equal pairs have weight 1."""
    z1, z2 = unit_vectors(6, 5, 0), unit_vectors(6, 5, 1)
    positive = (z1 * z2).sum(dim=1)
    weight = (
        1 - (decoupled_contrast(z1, z2, 1.0, sigma) - decoupled_contrast(z1, z2, 1.0)) / positive
    )
    assert weight.mean().item() == pytest.approx(1)
    if sigma == 0.5:
        assert torch.equal(weight.argsort(), positive.argsort(descending=True))
    same = decoupled_contrast(z1, z1, 1.0, sigma)
    torch.testing.assert_close(same, decoupled_contrast(z1, z1, 1.0))


@pytest.mark.parametrize("decoupled", ["dcl", "dclw"])
def test_decoupled_losses_have_no_probabilities_that_a_rule_could_soften(decoupled: str) -> None:
    """i-Mix weights the losses then; rules that need a softmax are refused, as is RegionCL."""
    method = simclr(decoupled=decoupled)
    assert {name for name, rule in RULES.items() if rule.refusal(method)} == {
        *{name for name, rule in RULES.items() if rule.refusal(simclr())},
        "mixco", "sdmp_released", "patchmix",
    }  # fmt: skip
    with pytest.raises(UserError, match="With the method's default options it does"):
        Stepper(method, steps_per_epoch=1, epochs=1, mixture=UnMix(), rule="mixco")
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    draw = UnMix().draw(views[0].shape, torch.Generator().manual_seed(0))
    losses = [
        objective(
            method.eval(), views, torch.arange(6), torch.Generator(), Mixture(draw, RULES[name])
        ).loss.item()
        for name in ("imix", "replace")
    ]
    assert losses[0] == pytest.approx(losses[1])


def test_the_gradient_reaches_both_views() -> None:
    method = simclr().eval()
    views = [torch.randn(6, 3, 8, 8).requires_grad_() for _ in range(2)]
    objective(method, views, torch.arange(6), torch.Generator()).loss.backward()
    for view in views:
        assert view.grad is not None
        assert view.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({}, [nn.Linear, nn.ReLU, nn.Linear]),
        ({"layers": 1}, [nn.Linear]),
        (
            {"head_bn": True},
            [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d],
        ),
    ],
)
def test_heads(options: dict[str, Any], kinds: list[type]) -> None:
    """The paper's two layers as wide as the backbone, and the whitening code's with batch norm."""
    method = simclr(**options)
    assert [type(layer) for layer in method.g] == kinds
    assert method.g[0].out_features == (8 if options.get("layers") == 1 else 64)


@pytest.mark.parametrize(("decoupled", "candidates"), [("none", 11), ("dcl", 10), ("dclw", 10)])
def test_chance_level_is_ln_of_the_other_views(decoupled: str, candidates: int) -> None:
    """Exactly so where all features are the same."""
    method = simclr(decoupled=decoupled)
    assert method.chance_loss is None
    method.check_batch(6)
    same = unit_vectors(1, 8, 0).expand(6, -1)
    assert method.chance_loss == pytest.approx(math.log(candidates))
    assert method.compare(same, same).mean().item() == pytest.approx(math.log(candidates))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "--temperature: 0 is out of range; it must be greater than 0."),
        ({"hidden": -1}, "--hidden: -1 is out of range; it must be at least 0."),
        (
            {"decoupled": "dcw"},
            "--decoupled: 'dcw' is unknown. Did you mean 'dclw'? Known: none, dcl, dclw.",
        ),
    ],
)
def test_bad_numbers_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        simclr(**options)
    assert caught.value.on_command_line() == message


def test_the_head_may_see_all_views_in_one_batch() -> None:
    """Then its batch norm has one batch of twice the size, and the backbone's still one a view."""
    sizes: dict[bool, tuple[list[int], list[int]]] = {}
    for joint in (False, True):
        method = simclr(joint_head=joint, head_bn=True)
        sizes[joint] = ([], [])
        for part, found in zip((method.f, method.g), sizes[joint], strict=True):
            part.register_forward_hook(lambda m, x, y, found=found: found.append(len(x[0])))
        views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
        queries = method.queries(views)
        loss = objective(method, views, torch.arange(6), torch.Generator()).loss
        assert loss.isfinite()
    assert sizes[False] == ([6] * 4, [6] * 4)
    assert sizes[True] == ([6] * 4, [12] * 2)
    method.eval()
    torch.testing.assert_close(method.queries(views)[1], method.query(views[1], 1))
    assert queries[0].shape == queries[1].shape


@pytest.mark.parametrize("joint", [False, True])
def test_a_replacing_mixture_does_not_encode_the_first_view_for_nothing(joint: bool) -> None:
    """The second view alone is a target; only a head of all views needs the first one too."""
    method, sizes = simclr(joint_head=joint), []
    method.f.register_forward_hook(lambda m, x, y: sizes.append(len(x[0])))
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    draw = UnMix().draw(views[0].shape, torch.Generator().manual_seed(0))
    mixture = Mixture(draw, RULES["replace"])
    objective(method, views, torch.arange(6), torch.Generator(), mixture)
    assert len(sizes) == 2 + joint
