"""A run that is killed at any moment and given again has the records of an undisturbed one."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import killing
from killing import TINY, outcome, run, run_and_die

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")


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
    "name",
    [
        "before _measure", "after _measure", "before atomic_write", "after atomic_write",
        "half of metrics.csv", "before the rename to metrics.csv", "after the rename to last.ckpt",
    ],
)  # fmt: skip
def test_a_kill_between_an_epochs_end_and_its_row_loses_neither(
    whole: Any, tmp_path: Path, name: str
) -> None:
    expected, seen = whole
    run_and_die(tmp_path / "r", seen.index(name) + 1)
    run(tmp_path / "r")
    assert outcome(tmp_path / "r") == expected


@pytest.mark.parametrize(
    "name",
    [
        "half of config.yaml", "after the rename to config.yaml", "half of data.json",
        "half of last.ckpt", "before the rename to last.ckpt", "before the rename to previous.ckpt",
        "after the rename to previous.ckpt", "half of encoder.safetensors",
        "before the rename to encoder.safetensors", "after the rename to encoder.safetensors",
        "half of results.json", "before the rename to results.json",
        "after the rename to results.json", "half of correct.json",
        "after the rename to correct.json",
    ],
)  # fmt: skip
def test_a_kill_in_the_write_of_any_file_loses_nothing(
    whole: Any, tmp_path: Path, name: str
) -> None:
    """At the last time that it is written."""
    expected, seen = whole
    run_and_die(tmp_path / "r", len(seen) - seen[::-1].index(name))
    run(tmp_path / "r")
    assert outcome(tmp_path / "r") == expected
    left = [path.name for path in (tmp_path / "r").rglob(".*.tmp")]
    assert left == []


@pytest.mark.parametrize("saves", [2, 3, 4])
def test_a_run_with_data_workers_goes_on_with_the_right_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """Within an epoch, at its end, and after the next one's first step: workers read ahead."""
    draw = np.random.default_rng(0)
    for i in range(48):
        folder = tmp_path / "images" / ("train" if i % 2 else "val") / "ab"[i % 4 // 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    words = {name: value for name, value in TINY.items() if name not in ("queue_size", "bn_splits")}
    words |= {"method": "simclr", "data": str(tmp_path / "images"), "batch_size": 8, "limit": 24,
              "workers": 1, "resident": "no"}  # fmt: skip
    monkeypatch.setattr(killing, "TINY", words)
    seen = run(tmp_path / "whole")
    moments = [n for n, name in enumerate(seen, start=1) if name == "after save_checkpoint"]
    run_and_die(tmp_path / "r", moments[saves - 1])
    run(tmp_path / "r")
    assert outcome(tmp_path / "r") == outcome(tmp_path / "whole")
