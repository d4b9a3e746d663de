"""A run shows that it lives where no bar can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmix.training.module import Pretraining
from unmix.training.progress import Lines


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Steps of 0.5 s each, of a run of 1,000."""

    def steps(count: int, every: float | None = 30.0) -> list[str]:
        said: list[str] = []
        now = SimpleNamespace(time=0.0)
        reporter: Any = SimpleNamespace(say=said.append, epoch_start=0.0, before=0)
        monkeypatch.setattr("unmix.training.progress.time.perf_counter", lambda: now.time)
        module: Any = Pretraining.__new__(Pretraining)
        torch.nn.Module.__init__(module)
        module.epochs, module.samples = 10, 0
        module.order = SimpleNamespace(batch_size=32, __len__=lambda: 100)
        monkeypatch.setattr(Pretraining, "total_steps", 1000)
        monkeypatch.setattr(Pretraining, "own_means", lambda self: {"loss": 4.25})
        lines = Lines(reporter, every, clock=lambda: now.time)
        trainer: Any = SimpleNamespace(global_step=0, world_size=1, current_epoch=2)
        lines.on_train_start(trainer, module)
        for _ in range(count):
            now.time += 0.5
            trainer.global_step += 1
            module.samples += 32
            lines.on_train_batch_end(trainer, module)
        return said

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
