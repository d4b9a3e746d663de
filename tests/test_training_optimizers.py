"""LARS against its formula written out; learning rates against PyTorch's own schedules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unmix.training.optimizers import Lars, build_optimizer, learning_rate_factor
from unmix.training.settings import OptimizerSettings

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
    decay = optimizer.decay if isinstance(optimizer, Lars) else group["weight_decay"]
    assert decay == 0.02


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
