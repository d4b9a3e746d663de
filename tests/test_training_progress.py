"""A run shows that it lives where no bar can."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmix.display import rate
from unmix.training.console import Estimate
from unmix.training.loop.callbacks import Reporter
from unmix.training.loop.module import Pretraining
from unmix.training.loop.progress import Bar, Lines


class Told:
    """A run of fake steps, and what it says."""

    def __init__(self, total: int, every: float | None, leader: bool) -> None:
        self.said: list[str] = []
        self.now = 0.0
        self.reporter: Any = SimpleNamespace(say=self.said.append, epoch_start=0.0, before=0)
        module: Any = Pretraining.__new__(Pretraining)
        torch.nn.Module.__init__(module)
        module.samples, module.epochs = 0, total
        module.order = SizedOrder()
        module.own_means = lambda: {"loss": 4.25}
        self.module = module
        self.lines = Lines(self.reporter, every, clock=lambda: self.now)
        self.trainer: Any = SimpleNamespace(
            global_step=0, world_size=1, current_epoch=2, is_global_zero=leader
        )
        self.lines.on_train_start(self.trainer, module)

    def steps(self, count: int, seconds: float = 0.5) -> None:
        for _ in range(count):
            self.now += seconds
            self.trainer.global_step += 1
            self.module.samples += 32
            self.lines.on_train_batch_end(self.trainer, self.module)

    def epoch_ends(self, seconds: float) -> None:
        """After an evaluation of some seconds."""
        self.now += seconds
        self.lines.on_train_epoch_end(self.trainer, self.module)
        self.lines.on_train_epoch_start(self.trainer, self.module)
        self.reporter.epoch_start, self.module.samples = self.now, 0


class SizedOrder:
    batch_size = 32

    def __len__(self) -> int:
        return 1


@pytest.fixture
def told() -> Callable[..., Told]:
    def make(total: int = 1000, every: float | None = 30.0, leader: bool = True) -> Told:
        return Told(total, every, leader)

    return make


@pytest.fixture
def run(told: Callable[..., Told]) -> Any:
    """Steps of 0.5 s each, of a run of 1,000."""

    def steps(count: int, every: float | None = 30.0) -> list[str]:
        one = told(every=every)
        one.steps(count)
        return one.said

    return steps


def test_the_whole_run_is_estimated_once_from_its_first_steps(run: Any) -> None:
    said = run(130)
    assert said[0] == "about 8:14 min for the 989 steps that are left, without evaluations"
    assert sum("that are left" in line for line in said) == 1


def test_a_line_at_most_every_thirty_seconds(run: Any) -> None:
    said = [line for line in run(130) if line.startswith("step")]
    assert said == [
        "step 60/1,000 (epoch 3)  loss 4.250  64 images/s  7:50 min left",
        "step 120/1,000 (epoch 3)  loss 4.250  64 images/s  7:20 min left",
    ]


def test_a_run_that_ends_at_once_is_not_estimated_and_a_bar_has_no_lines(run: Any) -> None:
    assert run(8) == []
    assert len(run(130, every=None)) == 1


def test_a_slow_first_step_is_followed_by_a_line(told: Callable[..., Told]) -> None:
    one = told()
    one.steps(1, seconds=40)
    assert len(one.said) == 1
    assert one.said[0].startswith("step 1/1,000")


def test_the_line_of_an_epoch_counts(told: Callable[..., Told]) -> None:
    one = told()
    for _ in range(5):
        one.steps(40)  # 20 s
        one.epoch_ends(0.0)
    assert [line for line in one.said if line.startswith("step")] == []


def test_evaluations_are_no_part_of_the_estimate(told: Callable[..., Told]) -> None:
    one = told()
    for _ in range(4):
        one.steps(4)
        one.epoch_ends(100.0)
    assert one.said[0] == "about 8:14 min for the 989 steps that are left, without evaluations"


def test_what_is_short_is_not_estimated(told: Callable[..., Told]) -> None:
    one = told(total=40)
    one.steps(40)
    assert one.said == []


def test_only_the_first_process_speaks(told: Callable[..., Told]) -> None:
    one = told(leader=False)
    one.module.own_means = lambda: pytest.fail("a loss was read, which waits for the device")
    one.steps(130)
    assert one.said == []


def test_time_left_of_a_run_that_is_resumed_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reporter: Any = Reporter.__new__(Reporter)
    reporter.fit_start, reporter.first_epoch, reporter.first_step = 0.0, 1, 190
    reporter.health = SimpleNamespace(chance_loss=None)
    monkeypatch.setattr("unmix.training.loop.callbacks.time.perf_counter", lambda: 10.0)
    module: Any = SimpleNamespace(epochs=4, total_steps=400)
    line = reporter._line(2, module, {"step": 200, "images_per_second": 32.0})
    assert line == "epoch 2/4  32 images/s  3:20 min left"  # 10 steps took 10 s, 200 are left


@pytest.mark.parametrize(
    ("images_per_second", "text"),
    [(12345.6, "12,346"), (56.4, "56"), (7.84, "7.8"), (0.34, "0.34"), (0.0341, "0.034")],
)
def test_a_slow_step_has_a_speed_other_than_zero(images_per_second, text):
    assert rate(images_per_second) == text


def estimated(said: list[str], what: str, unit: str, total: int, times: dict[int, float]) -> None:
    """Work of which so much is done at these seconds."""
    clock = iter([0.0, *(t for done, t in times.items() for _ in range(1 + (done == 0)))])
    estimate = Estimate(what, unit, said.append, clock=lambda: next(clock))
    for done in times:
        estimate(done, total)


def test_a_long_evaluation_says_once_how_long_it_takes():
    said: list[str] = []
    estimated(said, "test split", "images", 2560, {256: 1.0, 512: 2.5, 768: 4.0, 2560: 12.5})
    assert said == ["test split: about 10 s for the other 2,048 of 2,560 images"]


def test_a_short_evaluation_says_nothing():
    said: list[str] = []
    estimated(said, "test split", "images", 768, {256: 1.0, 512: 2.5, 768: 4.0})
    assert said == []


def test_the_clock_of_epochs_starts_with_the_first_one():
    said: list[str] = []
    estimated(said, "classifier", "epochs", 60, {0: 50.0, 1: 53.0})
    assert said == ["classifier: about 2:57 min for the other 59 of 60 epochs"]


def test_a_bar_that_is_closed_lets_lines_through(capsys):
    reporter: Any = SimpleNamespace(say=None, evaluator=SimpleNamespace(say=None))
    Bar(reporter)
    reporter.say("epoch 2/2")
    reporter.evaluator.say("long")
    assert capsys.readouterr().out == "epoch 2/2\nlong\n"
