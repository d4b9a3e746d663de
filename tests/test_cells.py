"""Every cell of the matrix that says yes: each rule for credit with each method it goes with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from cells import METHODS, YES, N, build, global_draw, gradients, settled, step, views_of
from unmix.credit import RULES, Mixed, Rule
from unmix.methods import Method, Progress
from unmix.mixtures import PairDraw

every_cell = pytest.mark.parametrize(("name", "rule"), YES, ids=[f"{m}-{r}" for m, r in YES])

# Linear in the weight: a mixture's loss is what it has of each owner's.
LINEAR = {"unmix", "replace", "imix", "mixco", "swav_released"}


class Fixed(PairDraw):
    """A draw with the shares it was made for, and always the same mixtures."""

    def apply(self, images: Tensor, others: Any = ()) -> Tensor:
        return 0.6 * images + 0.4 * images[self.partner]


def fixed(weight: float) -> Fixed:
    draw = global_draw(weight)
    return Fixed(draw.partner, draw.box, draw.ratio, draw.size, draw.per_sample)


def mixed_loss(method: Method, rule: Rule, draw: PairDraw, views: list[Tensor]) -> Tensor:
    found = step(method, views, rule, draw).mixed
    assert found is not None
    return found


@every_cell
def test_a_step_has_a_finite_loss_and_a_gradient_for_the_backbone(name: str, rule: str) -> None:
    method = settled(name).train()
    result = step(method, views_of(method), RULES[rule])
    result.loss.backward()
    result.keep()
    assert result.loss.ndim == 0
    assert result.loss.isfinite()
    found = gradients(method)
    assert all(gradient.isfinite().all() for gradient in found.values())
    for key, parameter in method.backbone.named_parameters():
        assert parameter.grad is not None, key
    assert all(x.isfinite().all() for x in method.state_dict().values())


@every_cell
def test_the_mixtures_loss_moves_with_the_weight(name: str, rule: str) -> None:
    """At weight 0.3 it is 0.3 of that at 1 and 0.7 of that at 0, the pixels being the same."""
    if rule not in LINEAR:
        pytest.skip("this rule's loss is not linear in the weight: see test_credit_rules.py")
    method = settled(name)
    views = views_of(method)
    own, part, others = (
        mixed_loss(method, RULES[rule], fixed(weight), views) for weight in (1.0, 0.3, 0.0)
    )
    torch.testing.assert_close(part, 0.3 * own + 0.7 * others, rtol=1e-4, atol=1e-5)
    assert (own - others).abs() > 1e-6 * own.abs()


@every_cell
def test_exchanging_the_images_and_the_weights_changes_nothing(name: str, rule: str) -> None:
    """w x_i + (1 - w) x_p is the partner's mixture at weight 1 - w."""
    if RULES[rule].partner_view:
        pytest.skip("the partner is of the other view: the two images cannot be exchanged")
    if rule == "swav_released":
        pytest.skip("the slip that this rule repeats: the prediction is not exchanged")
    if name in {"insdis", "cmc", "pirl"} and rule in {"imix", "mixco"}:
        pytest.skip("a sample's negatives are its own draws, which are not exchanged")
    if name == "wmse":
        pytest.skip("sub-batches go by the order of the samples, which is exchanged too")
    method = settled(name)
    views = views_of(method)
    one = mixed_loss(method, RULES[rule], global_draw(0.3), views)
    other = mixed_loss(method, RULES[rule], global_draw(0.7), views)
    if rule == "image_space":
        assert not torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@every_cell
def test_what_is_kept_is_what_a_clean_step_keeps(name: str, rule: str) -> None:
    """Queue, bank and centre: mixtures do not get into them."""
    clean, mixed = settled(name), settled(name)
    before = copy.deepcopy(clean.state_dict())
    step(clean, views_of(clean)).keep()
    step(mixed, views_of(mixed), RULES[rule]).keep()
    state = mixed.state_dict()
    for key, value in clean.state_dict().items():
        torch.testing.assert_close(state[key], value, msg=key)
    kept = any(not torch.equal(value, before[key]) for key, value in state.items())
    assert kept == (name in {"cmc", "deepclusterv2", "dino", "insdis", "moco", "nnclr", "pirl",
                             "swav"})  # fmt: skip


@every_cell
def test_the_partner_is_a_target(name: str, rule: str) -> None:
    """The loss depends on the partner's target, for the mixtures' part alone."""
    if rule == "image_space":
        pytest.skip("the partner gets no credit there, by definition")
    method = settled(name)
    views = views_of(method)
    inner = RULES[rule]
    seen: dict[str, Tensor] = {}

    class Probe(type(inner)):  # type: ignore[misc]
        def __call__(self, mixed: Mixed) -> Tensor:
            seen["whole"] = inner(mixed)
            owners = torch.arange(N)[:, None].repeat(1, 2)
            alone = Alone(owners, mixed.draw.shares)
            seen["own"] = inner(replace(mixed, draw=alone))
            return seen["whole"]

    from dataclasses import dataclass, replace

    @dataclass
    class Alone:
        owners: Tensor
        shares: Tensor
        per_sample: bool = False

    step(method, views, Probe(**changes_of(inner)), global_draw(0.4))
    assert (seen["whole"] - seen["own"]).abs() > 1e-6 * seen["whole"].abs()


def changes_of(rule: Rule) -> dict[str, Any]:
    from dataclasses import fields

    return {f.name: getattr(rule, f.name) for f in fields(rule) if f.init}


@every_cell
def test_bfloat16_autocast_moves_the_loss_by_little(name: str, rule: str) -> None:
    method = settled(name)
    views = views_of(method)
    exact = step(method, views, RULES[rule]).loss
    with torch.autocast("cpu", torch.bfloat16):
        result = step(method, views, RULES[rule])
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss, exact, rtol=0.08, atol=0.08)
    result.loss.backward()
    result.keep()
    assert all(x.dtype == torch.float32 for x in method.state_dict().values()
               if x.is_floating_point())  # fmt: skip


@every_cell
def test_a_saved_and_loaded_method_goes_on_the_same(name: str, rule: str) -> None:
    method, fresh = settled(name).train(), build(name, seed=1)
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    losses = []
    for one in (method, fresh):
        one.begin_step(Progress(4, 12, 3))
        result = step(one, views_of(one, 5), RULES[rule], seed=3)
        result.loss.backward()
        losses.append((result.loss.detach(), gradients(one)))
    assert torch.equal(losses[0][0], losses[1][0])
    for key, gradient in losses[0][1].items():
        assert torch.equal(gradient, losses[1][1][key]), key


@every_cell
def test_a_compiled_step_has_the_same_loss(name: str, rule: str) -> None:
    """Traced by the compiler's front end; test_training_compiling.py generates code."""
    method = settled(name)
    views = views_of(method)
    plain = step(method, views, RULES[rule]).loss
    torch.compiler.reset()
    compiled = torch.compile(lambda: step(method, views, RULES[rule]).loss, backend="eager")
    torch.testing.assert_close(compiled(), plain, rtol=1e-4, atol=1e-5)


def test_every_method_and_rule_is_in_the_matrix() -> None:
    assert {m for m, _ in YES} == set(METHODS)
    assert {r for _, r in YES} <= set(RULES)
