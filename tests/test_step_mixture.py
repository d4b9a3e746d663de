"""`objective` with a `Mixture` is the step of a `Stepper`, and refuses what that refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unmix
from harness import N, build, views_of
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.methods import Method, Progress
from unmix.step import Mixture, Objective, objective, step_generator

OF_RULE = {
    rule: next(
        name
        for name in ("moco", "barlow", "swav", "dino", "distill", "simclr")
        if RULES[rule].refusal(build(name)) is None
    )
    for rule in RULES
}
BY_PLACE = [("unmix", "ibot"), ("unmix", "mae"), ("unmix", "densecl")]


def found(method: Method, mixture: Any, count: int | None = None) -> Objective:
    views, index = views_of(method, 0)[: count or method.views], torch.arange(N)
    return objective(method, views, index, step_generator(0, 0), mixture)


@pytest.mark.parametrize(("rule", "name"), [*OF_RULE.items(), *BY_PLACE])
def test_the_objective_of_a_mixture_is_the_loss_of_the_steppers_first_step(
    rule: str, name: str
) -> None:
    """Also of rules that take the partner's pixels from another view, and of whole patches."""
    mixture = RULES[rule].mixture or unmix.UnMix()
    if isinstance(mixture, unmix.mixtures.PatchMixture):  # of a ViT's patches
        mixture = unmix.UnMix()
    step = unmix.Stepper(build(name), steps_per_epoch=4, epochs=2, mixture=mixture, rule=rule)
    expected = step(views_of(step.method, 0)[: step.method.views], torch.arange(N))
    method = build(name)
    method.begin_step(Progress(0, 8, 4, 0))
    assert step.operator is not None
    assert torch.equal(found(method, Mixture(step.operator, RULES[rule])).loss, expected)


@pytest.mark.parametrize(
    ("name", "mixture", "says"),
    [
        ("simsiam", unmix.Mixture(unmix.UnMix(pairing="second_view")), "others: this mixture is"),
        ("simsiam", unmix.Mixture(unmix.ScaleMix()), "others: this mixture is of several views"),
        ("simsiam", unmix.Mixture(unmix.CropMix()), r"unmix.Mixture\(operator, others=views\)"),
        ("barlow", unmix.Mixture(unmix.UnMix(), RULES["imix"]), "scalar per batch"),
        ("barlow", unmix.Mixture(unmix.UnMix(per="sample")), "per: sample does not apply"),
        ("simsiam", unmix.UnMix(), r"mixture: UnMix\(.*; give a Mixture\(operator, rule\)"),
        ("simsiam", "unmix", "mixture: 'unmix'; give a Mixture"),
        ("simclr", unmix.Mixture(unmix.UnMix(), RULES["swav_released"]), "does not apply to"),
        ("ibot", unmix.Mixture(unmix.ResizeMix()), "does not leave an image's pixels"),
    ],
)
def test_what_a_stepper_refuses_the_objective_does_too(name: str, mixture: Any, says: str) -> None:
    with pytest.raises(unmix.UserError, match=says) as caught:
        found(build(name), mixture)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "rule", "operator", "says"),
    [
        ("barlow", "mixbt", unmix.UnMix(per="sample"), "per: sample does not apply to"),
        ("moco", "sdmp", unmix.DirichletMixture(), "is for mixtures of two images"),
        ("moco", "sdmp", unmix.UnMix(pairing="halves"), "pairing: halves does not apply to"),
        ("moco", "sdmp", unmix.UnMix(pairing="second_view"), "pairing: second_view does not"),
        ("moco", "sdmp", unmix.ManifoldMixture("f_q.backbone.bn"), "mixes features of the"),
        ("moco", "regioncl", unmix.MixUp(), "leaves no part of a mixture to one image"),
        ("moco", "regioncl", unmix.ManifoldMixture("f_q.backbone.bn"), "leaves no part of a"),
        ("ibot", "unmix", unmix.ResizeMix(), "does not leave an image's pixels in their place"),
        ("ibot", "unmix", unmix.ScaleMix(), "does not (leave|apply)"),
        ("dino", "esvit", unmix.ScaleMix(), "needs further crops"),
    ],
)
def test_a_finished_draw_is_refused_where_its_operator_is(
    name: str, rule: str, operator: Any, says: str
) -> None:
    """Its shares would have been read as another mixture's, or a layer's pixels mixed."""
    method = build(name)
    views = views_of(method, 0)
    others = [views[1]] if operator.extra else []
    with pytest.raises(UserError, match=says):
        found(method, Mixture(operator, RULES[rule], others))
    draw = operator.draw(views[0].shape, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=says):
        found(method, Mixture(draw, RULES[rule], others))


@pytest.mark.parametrize("operator", [unmix.ScaleMix(), unmix.CropMix(), unmix.CutMix()])
def test_a_finished_draw_for_images_of_another_size_is_scaled(operator: Any) -> None:
    method = build("simsiam")
    views = views_of(method, 0)
    n, channels, height, width = views[0].shape
    draw = operator.draw((n, channels, 2 * height, 2 * width), torch.Generator().manual_seed(0))
    others = [views[1] for _ in operator.extra]
    assert found(method, Mixture(draw, others=others)).loss.isfinite()


@pytest.mark.parametrize("operator", [unmix.CutMix(), unmix.GridMix(), unmix.ResizeMix()])
def test_boxes_and_masks_are_drawn_for_parts(operator: Any) -> None:
    method = build("moco")
    draw = operator.draw(views_of(method, 0)[0].shape, torch.Generator().manual_seed(0))
    assert found(method, Mixture(draw, RULES["regioncl"])).loss.isfinite()


def test_a_draw_of_a_layer_is_not_mixed_in_pixels_by_a_rule_of_one_forward() -> None:
    """MixCo encodes clean and mixed images together, which a layer's mixtures cannot be."""
    operator = unmix.ManifoldMixture("f_q.backbone.bn")
    losses = []
    shape = views_of(build("moco"), 0)[0].shape
    for given in (operator, operator.draw(shape, torch.Generator().manual_seed(3))):
        method = build("moco")
        mixture = Mixture(given, RULES["mixco"], generator=torch.Generator().manual_seed(3))
        losses.append(found(method, mixture).loss)
    assert torch.equal(*losses)


def test_parts_that_are_no_mixture_and_no_rule_are_named() -> None:
    makes: list[tuple[Any, Any, str]] = [
        (unmix.ImageMixture(), RULES["unmix"], "mixture: ImageMixture is no label-space mixture"),
        (unmix.UnMix, RULES["unmix"], "mixture: UnMix is no label-space mixture"),
        (unmix.UnMix(), "imix", "rule: 'imix' is no rule; give one, such as unmix.rule"),
    ]
    for operator, rule, says in makes:
        with pytest.raises(unmix.UserError, match=says):
            Mixture(operator, rule)


def test_too_few_views_and_no_generator_are_named() -> None:
    method = build("moco")
    with pytest.raises(unmix.UserError, match="views: 1 were given; MoCo needs 2"):
        found(method, None, 1)
    with pytest.raises(unmix.UserError, match="generator: None is none of PyTorch"):
        objective(method, views_of(method, 0), torch.arange(N), None)  # type: ignore[arg-type]


def test_a_loss_of_all_processes_needs_one_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmix.step_mixture.world_size", lambda: 2)
    with pytest.raises(unmix.UserError, match="generator: barlow has one loss for the batches"):
        found(build("barlow"), Mixture(unmix.UnMix()))


def test_an_image_space_of_several_views_is_not_left_unmixed() -> None:
    step = unmix.Stepper(
        build("simsiam"), steps_per_epoch=2, epochs=1, image_space=unmix.ScaleMix()
    )
    with pytest.raises(unmix.UserError, match="others: this mixture is of several views"):
        step(views_of(step.method, 0))


def test_batches_that_a_run_refuses_a_loop_does_too() -> None:
    """A queue of less than a batch; and the loss of chance is known after a step."""
    for options, says in (({"queue_size": 4}, "4 keys are fewer"), ({"bn_splits": 8}, "8 sub-bat")):
        step = unmix.Stepper(build("moco", **options), steps_per_epoch=2, epochs=1)
        with pytest.raises(unmix.UserError, match=says):
            step(views_of(step.method, 0), torch.arange(N))
    step = unmix.Stepper(build("simclr"), steps_per_epoch=2, epochs=1)
    step(views_of(step.method, 0)).backward()
    assert step.method.chance_loss is not None
    last = [view[:2] for view in views_of(step.method, 1)]
    step(last).backward()


@pytest.mark.parametrize("name", ["moco", "all4one", "tico", "insdis"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_methods_with_a_memory_step_in_other_precisions(name: str, dtype: torch.dtype) -> None:
    method = build(name)
    step = unmix.Stepper(method, steps_per_epoch=4, epochs=1, mixture=unmix.UnMix()).to(dtype)
    for number in range(2):
        views = [view.to(dtype) for view in views_of(method, number)]
        loss = step(views, torch.arange(N))
        loss.backward()
        assert loss.isfinite()
    kept = torch.float32 if dtype == torch.bfloat16 else dtype
    memories = [m for m in method.modules() if isinstance(m, unmix.memory.Queue)]
    assert all(memory.keys.dtype == kept for memory in memories)
