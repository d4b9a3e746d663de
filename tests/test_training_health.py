"""A run says when it has collapsed or does not learn, once, and is quiet when all is well."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from unmix.config import Settings
from unmix.display import duration
from unmix.methods import MoCo, projected
from unmix.training import pretrain
from unmix.training.loop.callbacks import Reporter
from unmix.training.loop.evaluator import Evaluator
from unmix.training.loop.health import Health
from unmix.training.run.parts import build_parts

TINY: dict[str, Any] = {
    "method": "moco",
    "data": "digits",
    "limit": 150,
    "backbone": "resnet10",
    "width": 0.25,
    "size": 8,
    "batch_size": 25,
    "epochs": 4,
    "knn_every": 1,
    "knn_k": 10,
    "evaluate": False,
    "queue_size": 50,
    "bn_splits": 1,
    "logger": "none",
    "device": "cpu",
    "precision": "32",
}
WELL = {"spread": 0.5, "effective_rank": 20.0, "queue_fill": 1.0, "loss": 3.0}
CHANCE = math.log(51)


@pytest.mark.parametrize("ill", [{"spread": 0.01}, {"effective_rank": 1.5}])
def test_features_that_are_nearly_the_same_for_all_images_are_a_collapse(
    ill: dict[str, float],
) -> None:
    (line,) = Health(CHANCE).warnings({**WELL, **ill}, 0.5)
    assert line.startswith("collapsed")
    assert "--lr" in line
    assert Health(CHANCE).warnings(WELL, 0.5) == []


@pytest.mark.parametrize(
    ("measured", "progress", "warned"),
    [
        ({"loss": CHANCE}, 0.5, True),
        ({"loss": CHANCE + 1}, 1.0, True),
        ({"loss": 0.9 * CHANCE}, 1.0, False),
        ({"loss": CHANCE}, 0.1, False),
        ({"loss": CHANCE, "queue_fill": 0.5}, 0.5, False),
        # A mixture adds as much again; only the clean part compares with chance level.
        ({"loss": 2 * CHANCE, "loss_clean": 0.5 * CHANCE}, 0.5, False),
        ({"loss": 2 * CHANCE, "loss_clean": CHANCE}, 0.5, True),
    ],
)
def test_a_loss_of_chance_level_is_told_once_it_can_be_known(
    measured: dict[str, float], progress: float, warned: bool
) -> None:
    """Not in the first fifth of a run, not while the queue holds random keys, and not at once."""
    health = Health(CHANCE)
    assert health.warnings({**WELL, **measured}, progress) == []
    lines = health.warnings({**WELL, **measured}, progress)
    assert bool(lines) == warned
    assert all("not learning" in line and f"{CHANCE:.2f}" in line for line in lines)


def test_an_epoch_that_learns_in_between_takes_the_suspicion_back() -> None:
    health = Health(CHANCE)
    for loss in (CHANCE, 0.5 * CHANCE, CHANCE):
        assert health.warnings({**WELL, "loss": loss}, 0.5) == []


def test_a_method_without_a_loss_of_chance_level_is_not_judged_by_it() -> None:
    assert Health(None).warnings({**WELL, "loss": 1e6}, 1.0) == []


def warnings_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("warning:")]


def test_a_healthy_run_warns_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(run=str(tmp_path / "run"), **{**TINY, "data": "photos", "size": 16})
    output = capsys.readouterr().out
    assert [line.split()[1] for line in output.splitlines() if line.startswith("epoch ")] == [
        "1/4", "2/4", "3/4", "4/4"
    ]  # fmt: skip
    assert warnings_of(output) == []


def test_an_encoder_that_has_become_constant_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def constant(self: MoCo, images: Tensor) -> Tensor:
        return torch.ones(len(images), 128) + 1e-3 * self.backbone(images)

    monkeypatch.setattr(MoCo, "features", constant)
    pretrain(run=str(tmp_path / "run"), **{**TINY, "data": "photos", "size": 16})
    (line,) = warnings_of(capsys.readouterr().out)
    assert "collapsed" in line


def test_a_run_that_cannot_learn_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a temperature of 50 all candidates look alike, and the loss is ln(K + 1)."""
    pretrain(run=str(tmp_path / "run"), **TINY, temperature=50.0)
    (line,) = warnings_of(capsys.readouterr().out)
    assert "not learning" in line
    assert f"{CHANCE:.2f}" in line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0.4 s"),
        (42.4, "42 s"),
        (187, "3:07 min"),
        (3599.4, "59:59 min"),
        (3600, "1:00 h"),
        (18_725, "5:12 h"),
        (7199, "2:00 h"),
    ],
)
def test_times_are_told_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_chance_level_is_is_known_once_the_processes_are_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SimCLR tells a sample apart from those of all processes: ln(2 x 2 x 8 - 1)."""
    words = {"method": "simclr", "data": "digits", "limit": 32, "batch_size": 8, "size": 8,
             "device": "cpu", "precision": "32"}  # fmt: skip
    parts = build_parts(Settings.of(words))
    monkeypatch.setattr(projected, "world_size", lambda: 2)
    evaluator = Evaluator(
        parts.module, parts.labeled, parts.test, parts.settings.evaluation, parts.machine
    )
    reporter = Reporter(evaluator, Health(None), parts.settings.evaluation, print)
    reporter.on_train_start(L.Trainer(logger=False, enable_checkpointing=False), parts.module)
    assert reporter.health.chance_loss == pytest.approx(math.log(31))
