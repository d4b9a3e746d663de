"""Every cell of the matrix that says yes: each rule for credit with each method it goes with."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import (
    METHODS,
    YES,
    N,
    Tiny,
    build,
    encoder_of,
    fixed,
    global_draw,
    gradients,
    mixture_of,
    published_draw,
    settled,
    step,
    views_of,
)  # fmt: skip
from unmix.credit import RULES, Mixed, Rule
from unmix.methods import Method, Progress
from unmix.mixtures import PairDraw
from unmix.step import Mixture, objective


def cells(which: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "rule"), which, ids=["-".join(c) for c in which])


every_cell = cells(YES)

# Linear in the weight: a mixture's loss is what it has of each owner's.
LINEAR = {"unmix", "replace", "imix", "mixco", "swav_released", "esvit"}


def mixed_loss(method: Method, rule: Rule, draw: PairDraw, views: list[Tensor]) -> Tensor:
    found = step(method, views, rule, draw).mixed
    assert found is not None
    return found


@every_cell
def test_a_step_has_a_finite_loss_and_a_gradient_for_the_backbone(name: str, rule: str) -> None:
    method = settled(name).train()
    result = step(method, views_of(method), RULES[rule])
    result.loss.backward()
    result.update_memory()
    assert result.loss.ndim == 0
    assert result.loss.isfinite()
    found = gradients(method)
    assert all(gradient.isfinite().all() for gradient in found.values())
    for key, parameter in method.backbone.named_parameters():
        assert parameter.grad is not None, key
    assert all(x.isfinite().all() for x in method.state_dict().values())


# The other rules' losses are not linear in the weight; test_credit_rules.py has their formulas.
@cells([(m, r) for m, r in YES if r in LINEAR])
def test_the_mixtures_loss_moves_with_the_weight(name: str, rule: str) -> None:
    """At weight 0.3 it is 0.3 of that at 1 and 0.7 of that at 0, the pixels being the same."""
    method = settled(name)
    views = views_of(method)
    own, part, others = (
        mixed_loss(method, RULES[rule], fixed(weight), views) for weight in (1.0, 0.3, 0.0)
    )
    torch.testing.assert_close(part, 0.3 * own + 0.7 * others, rtol=1e-4, atol=1e-5)
    assert (own - others).abs() > 1e-6 * own.abs()


@cells(list({rule: (name, rule) for name, rule in reversed(YES)}.values()))
def test_the_share_is_the_weight_of_the_mixtures_loss(name: str, rule: str) -> None:
    """Of every rule, with the first method that it goes with."""
    method = settled(name)
    views, draw = views_of(method), published_draw(RULES[rule], 0.3)
    once, more = (
        mixed_loss(method, each, draw, views)
        for each in (RULES[rule], replace(RULES[rule], share=2.5 * RULES[rule].share))
    )
    torch.testing.assert_close(more, 2.5 * once)


def can_be_exchanged(name: str, rule: str) -> bool:
    """Not where the partner is of another view, or what a sample draws is not exchanged with it.

    Nor with the slip of the released SwAV code, which is that the prediction is not exchanged.
    """
    drawn = name in {"ibot", "ijepa", "mae", "simmim", "wmse"} or (
        name in {"insdis", "cmc", "pirl"} and rule in {"imix", "mixco"}
    )
    return not (drawn or RULES[rule].partner_view or rule == "swav_released")


@cells([cell for cell in YES if can_be_exchanged(*cell)])
def test_exchanging_the_images_and_the_weights_changes_nothing(name: str, rule: str) -> None:
    """w x_i + (1 - w) x_p is the partner's mixture at weight 1 - w."""
    method = settled(name)
    views = views_of(method)
    one = mixed_loss(method, RULES[rule], global_draw(0.3), views)
    other = mixed_loss(method, RULES[rule], global_draw(0.7), views)
    if rule == "image_space":
        assert not torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Forwards of the trained backbone in a clean step; with small crops one for each size.
CLEAN = {
    "cmc": 1, "mae": 1, "insdis": 1, "ressl": 1, "tico": 1, "densecl": 1, "distill": 1,
    "ibot": 4, "ijepa": 1, "simmim": 1,
}  # fmt: skip
# Those of clean views beside a mixture that replaces the clean loss: with and without a graph.
REPLACED = {
    "distill": (0, 0), "ibot": (0, 0), "ijepa": (0, 0),
    "barlow": (1, 0), "byol": (0, 0), "cmc": (0, 1), "deepclusterv2": (0, 1), "dino": (0, 0),
    "insdis": (0, 1), "lejepa": (2, 0), "mae": (0, 0), "moco": (0, 0), "mocov3": (0, 0),
    "nnclr": (0, 2), "pirl": (1, 1), "simclr": (1, 0), "simsiam": (0, 2), "swav": (1, 0),
    "vicreg": (1, 0), "wmse": (1, 0), "ressl": (0, 0), "tico": (1, 0),
    "nnbyol": (0, 0), "all4one": (2, 0), "densecl": (0, 0),
    "simdino": (1, 0), "simmim": (0, 0),
}  # fmt: skip
# The loss of the perturbed first view needs the clean queries of the others.
IMAGE_SPACE = REPLACED | {
    "ibot": (3, 0),
    "nnbyol": (1, 0),
    "byol": (1, 0), "deepclusterv2": (2, 0), "dino": (2, 0), "moco": (1, 0), "mocov3": (1, 0),
    "nnclr": (1, 1), "simdino": (2, 0), "simsiam": (1, 1), "swav": (2, 0),
}  # fmt: skip
# With every crop mixed SwAV's clean views give codes alone, which need no graph.
EVERY_CROP = REPLACED | {"ibot": (2, 0), "swav": (0, 1)}  # iBOT encodes crops one by one
# SDMP's targets of the second view's mixtures.
OF_MIXTURES = {
    "lejepa": (1, 0), "nnclr": (0, 1), "simclr": (1, 0), "simsiam": (0, 1), "swav": (1, 0),
}  # fmt: skip


def forwards_of(method: Method) -> list[bool]:
    """The list of the trained backbone's forwards to come: whether each builds a graph."""
    encoder = encoder_of(method)
    graphs: list[bool] = []
    trained = encoder.l if method.color_space == "Lab" else encoder
    trained.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    return graphs


@every_cell
def test_a_step_encodes_what_is_declared_and_updating_the_memory_nothing(
    name: str, rule: str
) -> None:
    method = settled(name).train()
    graphs = forwards_of(method)
    with_graph, without = CLEAN.get(name, 2), 0
    if not RULES[rule].keeps_clean:
        counts = {"image_space": IMAGE_SPACE, "esvit": EVERY_CROP}.get(rule, REPLACED)
        with_graph, without = counts.get(name, (0, 0))
    if rule.startswith("sdmp") or rule == "patchmix":
        more = OF_MIXTURES.get(name, (0, 0))
        with_graph, without = with_graph + more[0], without + more[1]
    result = step(method, views_of(method), RULES[rule])
    # MixCo encodes clean and mixed images together.
    with_graph += rule != "mixco"
    with_graph += rule == "esvit"  # both views, or the crops of each of two sizes
    if name in REPLACED:  # the counts of a new method are not known
        assert (graphs.count(True), graphs.count(False)) == (with_graph, without)
    result.loss.backward()
    count = len(graphs)
    result.update_memory()
    assert len(graphs) == count


@pytest.mark.parametrize("name", METHODS)
def test_a_clean_step_encodes_each_view_once(name: str) -> None:
    method = settled(name).train()
    graphs = forwards_of(method)
    step(method, views_of(method)).update_memory()
    assert graphs == [True] * CLEAN.get(name, 2)


@pytest.mark.parametrize("name", ["simclr", "wmse"])
def test_a_projector_of_all_views_sees_them_all_under_every_rule(name: str) -> None:
    """One batch of its batch norm: the clean views; with one forward for all, the mixtures too."""
    for rule, joint, sizes in (
        ("unmix", False, [2 * N, N]), ("replace", False, [2 * N, N]), ("unmix", True, [3 * N]),
    ):  # fmt: skip
        method = settled(name, joint_head=True).train()
        seen: list[int] = []
        method.g.register_forward_hook(lambda m, x, y, seen=seen: seen.append(len(x[0])))  # type: ignore[union-attr]
        views, generator = views_of(method), torch.Generator().manual_seed(0)
        mixture = Mixture(global_draw(0.3), RULES[rule], joint=joint)
        objective(method, views, torch.arange(N), generator, mixture)
        assert seen == sizes


@every_cell
def test_what_is_kept_is_what_a_clean_step_keeps(name: str, rule: str) -> None:
    """Queue, bank and center: mixtures do not get into them."""
    clean, mixed = settled(name), settled(name)
    before = copy.deepcopy(clean.state_dict())
    step(clean, views_of(clean)).update_memory()
    step(mixed, views_of(mixed), RULES[rule]).update_memory()
    state = mixed.state_dict()
    for key, value in clean.state_dict().items():
        torch.testing.assert_close(state[key], value, msg=key)
    kept = any(not torch.equal(value, before[key]) for key, value in state.items())
    memories = {
        "distill", "ibot",
        "cmc", "deepclusterv2", "dino", "insdis", "moco", "nnclr", "pirl", "ressl", "swav", "tico",
        "nnbyol", "all4one", "densecl",
    }  # fmt: skip
    assert name not in REPLACED or kept == (name in memories)


# A teacher that sees the mixture has one target for it, of the mixture (test_methods_distill.py).
@cells([(m, r) for m, r in YES if r not in ("image_space", "exact")])
def test_the_partner_is_a_target(name: str, rule: str) -> None:
    """The loss depends on the partner's target, for the mixtures' part alone."""
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

        def shares_at(self, rows: int, columns: int) -> Tensor:
            return self.shares[:, :, None, None].expand(-1, -1, rows, columns)

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
    result.update_memory()
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
def test_compiled_encoders_give_the_same_step(name: str, rule: str) -> None:
    """What --compile compiles, traced; test_training_compiling.py generates code as well."""
    method = settled(name)
    views = views_of(method)
    plain = step(method, views, RULES[rule])
    for module in [m for m in method.modules() if isinstance(m, Tiny)]:
        module.compile(backend="eager")
    compiled = step(method, views, RULES[rule])
    torch.testing.assert_close(compiled.loss, plain.loss, rtol=1e-4, atol=1e-5)
    compiled.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(method).values())


WHOLE = [(m, r) for m, r in YES if r == "unmix" or m == ("barlow" if r == "mixbt" else "moco")]


@pytest.mark.parametrize(("name", "rule"), WHOLE, ids=[f"{m}-{r}" for m, r in WHOLE])
def test_a_whole_step_can_be_compiled(name: str, rule: str) -> None:
    """Every method with Un-Mix, and every rule: views to loss and gradients, traced.

    A rule with the draw of its mixture; a method with one of few operations, for all have the same
    mixtures (test_mixtures_operators.py compiles each). MoCo shuffles with Un-Mix alone: what it
    draws for that splits the graph, and each part is traced anew.
    """
    results, draw = [], fixed(0.3) if rule == "unmix" and name != "moco" else None
    options = {"shuffle_bn": False} if name == "moco" and rule != "unmix" else {}
    for compiled in (False, True):
        method = settled(name, **options)
        views, index, generator = views_of(method), torch.arange(N), torch.Generator()
        mixture = mixture_of(RULES[rule], views, draw)
        whole = partial(objective, method, views, index, generator.manual_seed(0), mixture)
        if compiled:
            torch.compiler.reset()
            whole = torch.compile(whole, backend="eager")
        loss = whole().loss
        loss.backward()
        results.append((loss.detach(), gradients(method)))
    (loss, expected), (traced, found) = results
    torch.testing.assert_close(traced, loss, rtol=1e-4, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * largest)


def test_a_compiled_step_with_a_mixture_is_one_graph() -> None:
    method = settled("simclr")
    views, index = views_of(method), torch.arange(N)
    mixture = mixture_of(RULES["unmix"], views, fixed(0.3))
    whole = partial(objective, method, views, index, torch.Generator().manual_seed(0), mixture)
    torch.compiler.reset()
    loss = torch.compile(whole, backend="eager", fullgraph=True)().loss
    torch.testing.assert_close(loss, whole().loss, rtol=1e-4, atol=1e-5)


def test_every_method_and_rule_is_in_the_matrix() -> None:
    assert {m for m, _ in YES} == set(METHODS)
    assert {r for _, r in YES} <= set(RULES)
