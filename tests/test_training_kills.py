"""A run that is killed at any moment and given again has the records of an undisturbed one."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unmix import results
from unmix.training import pretrain
from unmix.training.loop import callbacks, records
from unmix.training.loop.module import Pretraining
from unmix.training.run import checkpoints

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")

TINY: dict[str, Any] = {
    "method": "moco", "data": "digits", "limit": 48, "backbone": "resnet10", "width": 0.125,
    "size": 8, "batch_size": 16, "epochs": 3, "knn_every": 1, "knn_k": 10, "queue_size": 32,
    "bn_splits": 1, "logger": "none", "device": "cpu", "precision": "32", "unmix": True,
    "checkpoint_steps": 1,
}  # fmt: skip
TIMES = {"seconds", "total_seconds", "images_per_second", "peak_memory_bytes"}


def moments(patch: pytest.MonkeyPatch, die_at: int) -> list[str]:
    """Number the moments at which something has just been done, or is about to be; die at one."""
    seen: list[str] = []

    def reached(name: str) -> None:
        seen.append(name)
        if len(seen) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            reached(f"before {name}")
            value = call(*arguments, **options)
            reached(f"after {name}")
            return value

        patch.setattr(owner, name, wrapped)

    around(Pretraining, "training_step")
    around(checkpoints, "_write")
    around(checkpoints, "_keep_as_previous")
    around(checkpoints.AtomicCheckpoints, "save_checkpoint")
    around(callbacks.Reporter, "_measure")
    around(callbacks.Reporter, "complete")
    around(records, "atomic_write")
    around(results, "atomic_write")
    return seen


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves behind, without what tells the time."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    found = json.loads((folder / "results.json").read_text())
    for record in (found["training"], *found["evaluations"]):
        for name in TIMES & record.keys():
            del record[name]
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    sums = {name: value.double().sum().item() for name, value in weights.items()}
    return {"rows": rows, "results": {**found, "name": "", "command": ""}, "weights": sums}


def run(folder: Path) -> list[str]:
    """Run to the end; the moments that were passed."""
    with pytest.MonkeyPatch.context() as patch:
        seen = moments(patch, 0)
        pretrain(run=str(folder), **TINY)
    return seen


def run_and_die(folder: Path, die_at: int) -> None:
    """Run in a process of its own, which is killed at a moment (or ends before it)."""
    child = os.fork()  # not a new Python, whose imports take longer than the run
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                moments(patch, die_at)
                pretrain(run=str(folder), **TINY)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    seen = run(folder)
    return outcome(folder), seen


def test_an_undisturbed_run_has_a_row_and_a_measurement_an_epoch(whole: Any) -> None:
    found, seen = whole
    assert [row["epoch"] for row in found["rows"]] == ["0", "1", "2"]
    assert [row["knn"] != "" for row in found["rows"]] == [True, True, False]
    assert [row["epoch"] for row in found["results"]["evaluations"]] == [1, 2, 3, 3]
    assert {"before _measure", "after _keep_as_previous", "after atomic_write"} <= set(seen)


@pytest.mark.parametrize("seed", range(12))
def test_a_run_killed_at_random_moments_leaves_what_an_undisturbed_one_does(
    whole: Any, tmp_path: Path, seed: int
) -> None:
    """Up to three kills, each at a moment drawn from the whole run."""
    expected, seen = whole
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 3)):
        run_and_die(tmp_path / "r", draw.randint(1, len(seen)))
    run(tmp_path / "r")
    assert outcome(tmp_path / "r") == expected


@pytest.mark.parametrize(
    "name", ["before _measure", "after _measure", "before atomic_write", "after atomic_write"]
)
def test_a_kill_between_an_epochs_end_and_its_row_loses_neither(
    whole: Any, tmp_path: Path, name: str
) -> None:
    expected, seen = whole
    run_and_die(tmp_path / "r", seen.index(name) + 1)
    run(tmp_path / "r")
    assert outcome(tmp_path / "r") == expected
