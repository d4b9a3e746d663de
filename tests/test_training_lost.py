"""A process that is killed ends the run with a line that names it, and nothing hangs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmix.cli import main
from unmix.errors import MachineError, lost_worker
from unmix.training.loop.module import Pretraining

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 small PNGs."""
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(24):
        pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def words(data: Path, run: Path) -> list[str]:
    return ["--data", str(data), "--method", "simclr", "--size", "12", "--backbone", "resnet10",
            "--width", "0.125", "--batch_size", "8", "--epochs", "3", "--workers", "2",
            "--resident", "no", "--checkpoint_steps", "1", "--device", "cpu", "--logger", "none",
            "--run", str(run)]  # fmt: skip


def test_a_killed_data_worker_is_named_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    step, killed, run = Pretraining.training_step, list[int](), tmp_path / "r"

    def wrapped(self: Pretraining, *arguments: Any) -> Any:
        if self.global_step == 4:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
                killed.append(child.pid)  # type: ignore[arg-type]
                child.join()
        return step(self, *arguments)

    monkeypatch.setattr(Pretraining, "training_step", wrapped)
    assert main(["pretrain", *words(photos, run)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(("unmix: error: a data worker (", "unmix: error: data workers ("))
    assert any(str(number) in error for number in killed)
    assert "To go on from step " in error
    assert f": unmix pretrain --run {run}." in error
    assert multiprocessing.active_children() == []
    monkeypatch.undo()
    assert main(["pretrain", "--run", str(run)]) == 0


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ",
         r"^a data worker \(process 12\) was killed \(SIGKILL\), as happens when memory runs out"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly",
         r"^data workers \(processes 12, 13\) ended unexpectedly\.$"),
        ("DataLoader worker (pid 12) is killed by signal: Bus error. It ", r"\(/dev/shm\) is full"),
        ("DataLoader worker (pid 12) is killed by signal: Segmentation fault. ",
         r"\(process 12\) was ended by a signal: Segmentation fault\."),
    ],
)  # fmt: skip
def test_how_a_data_worker_ended_is_told(said: str, line: str) -> None:
    error = lost_worker(RuntimeError(said))
    with pytest.raises(MachineError, match=line):
        raise error  # type: ignore[misc]
    assert lost_worker(RuntimeError("another")) is None
