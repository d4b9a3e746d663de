"""LARS against its formula; what is decayed and scheduled; rates against PyTorch's schedules."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unmix.config import OptimizerSettings
from unmix.errors import UserError
from unmix.training.loop.optimizers import (
    Larc,
    Lars,
    build_optimizer,
    build_schedule,
    learning_rate_factor,
    match_layouts,
)
from unmix.training.run.pretrain import settings_for

LR, MOMENTUM, DECAY, TRUST = 0.2, 0.9, 0.01, 0.02


def parameters() -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """A matrix, a kernel and a bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (2, 3, 3, 3), (5,))
    matrix, kernel, bias = (nn.Parameter(torch.randn(s, generator=generator)) for s in shapes)
    return matrix, kernel, bias


def gradients_of(step: int, like: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(x.shape, generator=generator) for x in like]


def test_lars_is_its_formula_over_several_steps() -> None:
    """v <- m v + eta |w| / |g + d w| (g + d w), w <- w - lr v; a bias takes g alone, unscaled."""
    ours = parameters()
    optimizer = Lars(ours, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, trust=TRUST)
    expected = [x.detach().double().clone() for x in ours]
    velocity = [torch.zeros_like(x) for x in expected]
    for step in range(4):
        gradients = gradients_of(step, ours)
        for parameter, gradient in zip(ours, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        for i, gradient in enumerate(gradients):
            g = gradient.double()
            if g.ndim > 1:
                g = g + DECAY * expected[i]
                g = g * TRUST * expected[i].norm() / g.norm()
            velocity[i] = MOMENTUM * velocity[i] + g
            expected[i] = expected[i] - LR * velocity[i]
    for parameter, value in zip(ours, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-2, 1.0])
def test_clipped_lars_moves_by_the_smaller_of_lr_and_the_trust_ratio(scale: float) -> None:
    """As solo-learn's LARS with clip_lr: eta |w| / (|g| + d |w|), not times lr, and at most lr."""
    chosen = OptimizerSettings(
        optimizer="lars", lr=LR, momentum=MOMENTUM, weight_decay=DECAY, trust=TRUST, trust_clip=True
    )
    ours = parameters()
    optimizer = build_optimizer(chosen, ours, torch.device("cpu"))
    expected = [x.detach().double().clone() for x in ours]
    velocity, clipped = [torch.zeros_like(x) for x in expected], set()
    for step in range(4):
        lr = LR * (1 - step / 8)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, (parameter, gradient) in enumerate(zip(ours, gradients_of(step, ours), strict=True)):
            parameter.grad = scale * gradient
            g, w = parameter.grad.double(), expected[i]
            if g.ndim > 1:
                rate = TRUST * w.norm() / (g.norm() + DECAY * w.norm())
                clipped.add(bool(rate > lr))
                g = min(rate / lr, 1) * (g + DECAY * w)
            velocity[i] = MOMENTUM * velocity[i] + g
            expected[i] = w - lr * velocity[i]
        optimizer.step()
    assert clipped == {scale < 1}
    for parameter, value in zip(ours, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["lars", "larc"])
@pytest.mark.parametrize("clip", [False, True])
def test_a_step_of_lars_is_of_all_layers_at_once_and_reads_no_number_back(
    optimizer: str, clip: bool
) -> None:
    """Fewer than seven operations a layer: one by one they would be the step of a fast GPU."""
    chosen = OptimizerSettings(optimizer=optimizer, lr=LR, weight_decay=DECAY, trust_clip=clip)
    net = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(40))
    built = build_optimizer(chosen, net.parameters(), torch.device("cpu"))
    for step in range(2):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        with Operations() as seen:
            built.step()
        if step:  # the first makes the momentum
            assert len(seen.names) < 7 * len(net)
        assert not any("_local_scalar_dense" in name for name in seen.names)


class Operations(TorchDispatchMode):
    """Notes the names of the operations within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_lars_moves_a_matrix_by_a_share_of_its_norm_whatever_the_scale_of_its_gradient() -> None:
    """Without momentum and decay a step is lr eta |w| long."""
    for scale in (1e-3, 1.0, 1e3):
        matrix = parameters()[0]
        before = matrix.detach().clone()
        matrix.grad = scale * torch.ones_like(matrix)
        Lars([matrix], lr=LR, momentum=0.0, trust=TRUST).step()
        moved = (matrix.detach() - before).norm()
        torch.testing.assert_close(moved, LR * TRUST * before.norm(), rtol=1e-3, atol=0)


def test_lars_steps_one_dimensional_parameters_as_sgd_without_decay() -> None:
    ours, theirs = parameters()[2], parameters()[2]
    lars = Lars([ours], lr=LR, momentum=MOMENTUM, weight_decay=0.5)
    sgd = torch.optim.SGD([theirs], lr=LR, momentum=MOMENTUM)
    for step in range(3):
        for parameter in (ours, theirs):
            parameter.grad = gradients_of(step, (parameter,))[0]
        lars.step()
        sgd.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("nothing", ["weight", "gradient"])
def test_lars_of_a_zero_norm_is_finite(nothing: str) -> None:
    """The ratio is 1 where one of the norms is 0, so a matrix of zeros can leave zero."""
    matrix = nn.Parameter(torch.full((2, 2), 0.0 if nothing == "weight" else 1.0))
    matrix.grad = torch.full((2, 2), 1.0 if nothing == "weight" else 0.0)
    Lars([matrix], lr=LR, momentum=0.0).step()
    expected = -LR if nothing == "weight" else 1.0
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), expected))


def test_lars_calls_a_closure_with_gradients_on_and_gives_its_loss_back() -> None:
    matrix = parameters()[0]

    def closure() -> float:
        matrix.grad = None
        loss = matrix.square().sum()
        loss.backward()
        return loss.item()

    expected = matrix.detach().square().sum().item()
    assert Lars([matrix], lr=LR).step(closure) == pytest.approx(expected)


def test_lars_skips_parameters_without_a_gradient() -> None:
    matrix, kernel, _ = parameters()
    before = kernel.detach().clone()
    matrix.grad = torch.ones_like(matrix)
    Lars([matrix, kernel], lr=LR, weight_decay=DECAY).step()
    assert torch.equal(kernel, before)


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("lars", Lars)]
)
def test_the_optimizer_has_the_settings_and_only_what_takes_a_gradient(
    name: str, kind: type[torch.optim.Optimizer]
) -> None:
    trained, frozen, _ = parameters()
    frozen.requires_grad_(False)
    chosen = OptimizerSettings(optimizer=name, lr=0.3, momentum=0.8, weight_decay=0.02)
    optimizer = build_optimizer(chosen, [trained, frozen], torch.device("cpu"))
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(trained)]
    assert group["lr"] == 0.3
    assert group.get("momentum", 0.8) == 0.8
    assert group["decay" if name == "lars" else "weight_decay"] == 0.02
    if name == "lars":
        assert optimizer.trust == 0.001


def test_larc_scales_all_parameters_as_apex_does() -> None:
    """g <- eta |w| / (|g| + d |w|) (g + d w), of a bias too; where a norm is 0 it stays g."""
    ours = parameters()
    bias = nn.Parameter(torch.zeros(3))
    everything = (*ours, bias)
    optimizer = build_optimizer(
        OptimizerSettings(optimizer="larc", lr=LR, weight_decay=DECAY, trust=TRUST),
        everything, torch.device("cpu"),
    )  # fmt: skip
    assert type(optimizer) is Larc
    expected = [x.detach().double().clone() for x in everything]
    velocity = [torch.zeros_like(x) for x in expected]
    for step in range(4):
        gradients = gradients_of(step, everything)
        for parameter, gradient in zip(everything, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        for i, gradient in enumerate(gradients):
            g, w = gradient.double(), expected[i]
            if w.norm() > 0:
                g = TRUST * w.norm() / (g.norm() + DECAY * w.norm()) * (g + DECAY * w)
            velocity[i] = MOMENTUM * velocity[i] + g
            expected[i] = expected[i] - LR * velocity[i]
    for parameter, value in zip(everything, expected, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "everything", "decays"),
    [
        ("sgd", None, True), ("adamw", None, False), ("lars", None, False), ("larc", None, True),
        ("sgd", False, False), ("adamw", True, True), ("lars", True, True),
    ],
)  # fmt: skip
def test_biases_and_norms_decay_as_asked_or_as_is_usual(
    name: str, everything: bool | None, decays: bool
) -> None:
    """With nearly no gradient only weight decay moves a parameter; matrices always decay."""
    matrix, _, bias = parameters()
    before = matrix.detach().clone(), bias.detach().clone()
    chosen = OptimizerSettings(
        optimizer=name, lr=0.1, weight_decay=0.5, decay_all=everything, trust=1.0
    )
    optimizer = build_optimizer(chosen, [matrix, bias], torch.device("cpu"))
    for parameter in (matrix, bias):
        parameter.grad = torch.full_like(parameter, 1e-12)
    optimizer.step()
    assert (matrix - before[0]).abs().max() > 1e-3
    assert ((bias - before[1]).abs().max().item() > 1e-3) is decays


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_what_has_no_decay_is_a_group_of_its_own(name: str) -> None:
    for everything, groups in ((True, 1), (False, 2)):
        chosen = OptimizerSettings(optimizer=name, weight_decay=0.3, decay_all=everything)
        optimizer = build_optimizer(chosen, parameters(), torch.device("cpu"))
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert decays == [0.3, 0.0][:groups]


def test_adamw_leaves_biases_and_norms_without_decay() -> None:
    """Against PyTorch's own AdamW with two groups, over several steps."""
    ours, theirs = parameters(), parameters()
    chosen = OptimizerSettings(optimizer="adamw", lr=0.1, weight_decay=0.3)
    optimizer = build_optimizer(chosen, ours, torch.device("cpu"))
    assert type(optimizer) is torch.optim.AdamW
    reference = torch.optim.AdamW(
        [{"params": theirs[:2]}, {"params": theirs[2:], "weight_decay": 0.0}], 0.1, weight_decay=0.3
    )
    for number in range(3):
        for parameter, gradient in zip(ours, gradients_of(number, ours), strict=True):
            parameter.grad = gradient
        for parameter, gradient in zip(theirs, gradients_of(number, theirs), strict=True):
            parameter.grad = gradient
        optimizer.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_parameter_that_gets_its_first_gradient_later_is_stepped_as_a_new_one() -> None:
    """PyTorch's fused SGD fails there; prototypes that are frozen at first are such parameters."""
    ours = parameters()
    optimizer = build_optimizer(OptimizerSettings(lr=0.1), ours, torch.device("cpu"))
    theirs = parameters()
    reference = torch.optim.SGD(theirs, 0.1, momentum=0.9, weight_decay=5e-4, foreach=False)
    for number in range(4):
        for i, gradient in enumerate(gradients_of(number, ours)):
            absent = i == 0 and number < 2
            ours[i].grad = None if absent else gradient.clone()
            theirs[i].grad = None if absent else gradient.clone()
        optimizer.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_steady_parts_keep_their_rate_while_the_others_follow_the_schedule(name: str) -> None:
    chosen = OptimizerSettings(optimizer=name, lr=0.4, final_lr=0.1, warmup_epochs=1)
    moving, steady = nn.Linear(2, 3), nn.Linear(3, 2)
    everything = [*moving.parameters(), *steady.parameters()]
    optimizer = build_optimizer(chosen, everything, torch.device("cpu"), [steady])
    schedule = build_schedule(optimizer, chosen, epochs=3, steps_per_epoch=2)
    factor = learning_rate_factor(chosen, 3, 2)
    held = {id(p) for p in steady.parameters()}
    for step in range(6):
        for group in optimizer.param_groups:
            fixed = {id(p) in held for p in group["params"]}
            assert len(fixed) == 1
            expected = 0.4 if fixed.pop() else 0.4 * factor(step)
            assert group["lr"] == pytest.approx(expected)
        optimizer.step()
        schedule.step()
    found = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert found == {id(p) for p in everything}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_weight_decay_goes_by_a_cosine_to_its_end_and_bare_parameters_have_none(name: str) -> None:
    chosen = OptimizerSettings(optimizer=name, lr=0.1, weight_decay=0.04, final_weight_decay=0.4)
    optimizer = build_optimizer(chosen, parameters(), torch.device("cpu"))
    schedule = build_schedule(optimizer, chosen, epochs=2, steps_per_epoch=4)
    word = "decay" if name == "lars" else "weight_decay"
    for step in range(9):
        expected = 0.4 - 0.36 * (1 + torch.cos(torch.tensor(torch.pi * step / 8)).item()) / 2
        for group in optimizer.param_groups:
            bare = name == "adamw" and group["params"][0].ndim == 1
            assert group[word] == pytest.approx(0.0 if bare else expected, abs=1e-6)
        optimizer.step()
        schedule.step()


def test_weight_decay_may_begin_at_nothing() -> None:
    chosen = OptimizerSettings(optimizer="adamw", weight_decay=0.0, final_weight_decay=0.2)
    optimizer = build_optimizer(chosen, parameters(), torch.device("cpu"))
    schedule = build_schedule(optimizer, chosen, epochs=1, steps_per_epoch=2)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    assert [g["weight_decay"] for g in optimizer.param_groups] == pytest.approx([0.2, 0.0])


def test_optimizer_and_schedule_go_on_from_their_states_which_hold_numbers_only() -> None:
    """Loaded as a checkpoint is, without running code, the next steps are the same to the bit."""
    chosen = OptimizerSettings(
        optimizer="adamw", lr=0.1, final_lr=0.01, weight_decay=0.1, final_weight_decay=0.5
    )

    def build() -> tuple[tuple[nn.Parameter, ...], torch.optim.Optimizer, object]:
        weights = parameters()
        optimizer = build_optimizer(chosen, weights, torch.device("cpu"))
        return weights, optimizer, build_schedule(optimizer, chosen, 2, 4)

    def run(weights: tuple, optimizer: torch.optim.Optimizer, schedule: object, at: int) -> None:
        for number in range(at, at + 3):
            for parameter, gradient in zip(weights, gradients_of(number, weights), strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()  # type: ignore[attr-defined]

    ours = build()
    run(*ours, 0)
    file = io.BytesIO()
    torch.save([ours[1].state_dict(), ours[2].state_dict()], file)  # type: ignore[attr-defined]
    file.seek(0)
    first, second = torch.load(file, weights_only=True)
    theirs = build()
    for a, b in zip(theirs[0], ours[0], strict=True):
        a.data.copy_(b.data)
    theirs[1].load_state_dict(first)
    theirs[2].load_state_dict(second)  # type: ignore[attr-defined]
    run(*ours, 3)
    run(*theirs, 3)
    for a, b in zip(theirs[0], ours[0], strict=True):
        assert torch.equal(a, b)
    assert [g["weight_decay"] for g in theirs[1].param_groups] == [
        g["weight_decay"] for g in ours[1].param_groups
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"optimizer": "adamv"}, "--optimizer: 'adamv' is unknown. Did you mean 'adam"),
        ({"final_lr": -1.0}, "--final_lr: -1 is out of range; it must be at least 0."),
        ({"final_lr": 0.1, "schedule": "constant"}, "--final_lr: 0.1 applies only to "
         "--schedule cosine, not to constant."),
        (
            {"trust_clip": True},
            "--trust_clip: applies only to --optimizer lars and larc, not to sgd; leave it out "
            "(--no-trust_clip).",
        ),
        ({"trust": 0.0}, "--trust: 0 is out of range; it must be greater than 0."),
        ({"final_weight_decay": -0.1}, "--final_weight_decay: -0.1 is out of range"),
    ],
)  # fmt: skip
def test_bad_settings_are_told(words: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        OptimizerSettings(**words)
    assert caught.value.on_command_line().startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"milestones": [1]}, "--milestones: does nothing with --schedule cosine; give --schedule "
         "step too, or leave it out."),
        ({"gamma": 0.5, "schedule": "constant"}, "--gamma: does nothing with --schedule constant; "
         "give --schedule step too, or leave it out."),
        ({"trust": 0.5, "optimizer": "sgd"}, "--trust: does nothing with --optimizer sgd; give "
         "--optimizer lars or --optimizer larc too, or leave it out."),
        ({"momentum": 0.9, "optimizer": "adamw"}, "--momentum: does nothing with --optimizer adamw;"
         " give --optimizer sgd, --optimizer lars or --optimizer larc too, or leave it out."),
    ],
)  # fmt: skip
def test_what_another_schedule_or_optimizer_takes_is_not_ignored(words: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_for({"method": "moco", "data": "digits", **words})
    assert caught.value.on_command_line() == message


def test_what_a_recipe_has_for_another_schedule_or_optimizer_may_stay() -> None:
    """Also no milestones may be asked for, of a recipe that has some."""
    own = {"schedule": "constant", "optimizer": "adamw"}
    found = settings_for(own, "moco-v1-imagenet")[0].optimizer
    assert found.milestones
    assert not settings_for({**own, "milestones": []}, "moco-v1-imagenet")[0].optimizer.milestones
    given = {"milestones": [1], "gamma": 0.5, "schedule": "step", "momentum": 0.8}
    settings_for({"method": "moco", "data": "digits", **given})


# --- learning rates ---------------------------------------------------------------------------


def rates_of(schedule: Callable[[torch.optim.Optimizer], object], steps: int) -> list[float]:
    """The learning rates of one of PyTorch's schedules, from a rate of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # type: ignore[attr-defined]
    return rates


def test_cosine_is_pytorchs_counted_in_steps() -> None:
    ours = learning_rate_factor(OptimizerSettings(schedule="cosine"), epochs=4, steps_per_epoch=5)
    theirs = rates_of(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20), 20)
    assert [ours(step) for step in range(20)] == pytest.approx(theirs, abs=1e-9)


def test_cosine_with_an_end_is_pytorchs_with_eta_min() -> None:
    chosen = OptimizerSettings(lr=0.5, final_lr=0.02)
    ours = learning_rate_factor(chosen, epochs=4, steps_per_epoch=5)
    theirs = rates_of(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.04), 20
    )
    assert [ours(step) for step in range(20)] == pytest.approx(theirs, abs=1e-9)
    assert ours(20) == pytest.approx(0.04)


def test_steps_are_pytorchs_with_milestones_in_epochs() -> None:
    chosen = OptimizerSettings(schedule="step", milestones=(2, 3), gamma=0.2)
    ours = learning_rate_factor(chosen, epochs=4, steps_per_epoch=5)
    theirs = rates_of(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 15], 0.2), 20)
    assert [ours(step) for step in range(20)] == pytest.approx(theirs, rel=1e-9)
    assert (ours(9), ours(10)) == (1.0, 0.2)


def test_a_warm_up_is_linear_and_ends_at_the_full_rate_then_cosine_takes_the_rest() -> None:
    """Warm-up may be a fraction of an epoch: 1.5 epochs of 4 steps are 6 steps."""
    chosen = OptimizerSettings(schedule="cosine", warmup_epochs=1.5)
    ours = learning_rate_factor(chosen, epochs=4, steps_per_epoch=4)
    assert [ours(step) for step in range(6)] == pytest.approx([i / 6 for i in range(1, 7)])
    theirs = rates_of(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10), 10)
    assert [ours(step) for step in range(6, 16)] == pytest.approx(theirs, abs=1e-9)


def test_a_warm_up_may_start_from_another_rate_than_nothing() -> None:
    """DeepCluster-v2's starts from .3 of 4.8."""
    chosen = OptimizerSettings(lr=4.8, warmup_epochs=2, warmup_start_lr=0.3)
    ours = learning_rate_factor(chosen, epochs=4, steps_per_epoch=4)
    rates = [4.8 * ours(step) for step in range(9)]
    assert rates[:8] == pytest.approx([0.3 + 4.5 * i / 8 for i in range(1, 9)])
    assert rates[8] == pytest.approx(4.8)
    with pytest.raises(UserError, match=r"warmup_start_lr: 0\.3 applies only to a warmup"):
        OptimizerSettings(warmup_start_lr=0.3)


def test_milestones_count_from_the_start_of_the_run_not_from_the_end_of_the_warm_up() -> None:
    chosen = OptimizerSettings(schedule="step", milestones=(3,), gamma=0.1, warmup_epochs=1)
    ours = learning_rate_factor(chosen, epochs=4, steps_per_epoch=2)
    expected = [0.5, 1, 1, 1, 1, 1, 0.1, 0.1]
    assert [ours(step) for step in range(8)] == pytest.approx(expected)


def test_a_constant_schedule_stays() -> None:
    ours = learning_rate_factor(OptimizerSettings(schedule="constant"), 3, 4)
    assert {ours(step) for step in range(12)} == {1.0}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 20), st.floats(0, 5))
def test_cosine_never_rises_after_the_warm_up_and_ends_near_zero(
    epochs: int, steps: int, warmup: float
) -> None:
    """At the last step the factor is at most that of one step before the end of a half cosine."""
    chosen = OptimizerSettings(schedule="cosine", warmup_epochs=warmup)
    factor = learning_rate_factor(chosen, epochs, steps)
    total, first = epochs * steps, round(warmup * steps)
    rates = [factor(step) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    after = rates[first:]
    assert after == sorted(after, reverse=True)
    if len(after) > 1:
        # 1 - cos(x) <= x^2 / 2, and the last step is pi / n before the end.
        assert after[-1] <= (torch.pi / len(after)) ** 2 / 4 + 1e-12
    assert factor(total) <= 1e-12 or first >= total


def test_a_loaded_state_is_laid_out_as_its_parameter():
    """Fused kernels take numbers as they lie in memory: another machine saved it channels last."""
    torch.manual_seed(0)
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        generator = torch.Generator().manual_seed(0)
        states = []
        for later in (torch.contiguous_format, layout):
            weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
            weight = nn.Parameter(weight.to(memory_format=later))
            optimizer = torch.optim.AdamW([weight], 0.1, fused=True)
            if states:
                optimizer.load_state_dict(states[0])
                match_layouts(optimizer)
            gradient = torch.randn(4, 3, 2, 2, generator=generator)
            weight.grad = gradient.to(memory_format=later)
            optimizer.step()
            states.append(optimizer.state_dict())
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1])
