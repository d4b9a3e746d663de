"""A process that is killed ends the run with a line that names it, and nothing hangs."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from forked import Forked, program
from unmix.cli import main
from unmix.errors import MachineError, UserError, lost_worker
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


def losing(patch: pytest.MonkeyPatch, who: int, how: str) -> None:
    """A rank is lost in the sixth step."""
    step, move = Pretraining.training_step, Pretraining.transfer_batch_to_device

    def wrapped(self: Pretraining, *arguments: Any) -> Any:
        if self.global_step == 5 and self.global_rank == who:
            if how in ("SIGKILL", "SIGSTOP", "SIGSEGV"):
                os.kill(os.getpid(), getattr(signal, how))
            elif how == "hang":  # while the others wait for its part of the negatives
                time.sleep(600)
            elif how == "exit":
                os._exit(3)
            elif how == "UserError":
                raise UserError("--data: this is wrong.")
            elif how == "bug":
                raise ZeroDivisionError("a bug")
        return step(self, *arguments)

    def slow(self: Pretraining, *arguments: Any) -> Any:
        if how == "data" and self.trainer.global_step >= 5 and self.global_rank == who:
            time.sleep(600)
        return move(self, *arguments)

    patch.setattr(Pretraining, "training_step", wrapped)
    patch.setattr(Pretraining, "transfer_batch_to_device", slow)


@pytest.mark.parametrize(
    ("rank", "how", "status", "line"),
    [
        (1, "SIGKILL", 1, r"rank 1 of 2 \(process \d+ on HOST\) was killed \(SIGKILL\)"),
        (1, "SIGSTOP", 1, r"rank 1 of 2 \(process \d+ on HOST\) has not answered for \d+ s\."),
        (1, "hang", 1, r"rank 1 of 2 .* is stuck: the others have waited for it for \d+ s\."),
        (0, "data", 1, r"rank 0 of 2 .* is stuck: the others have waited for it for \d+ s\."),
        (1, "exit", 1, r"rank 1 of 2 \(process \d+ on HOST\) ended with status 3\."),
        (1, "UserError", 2, r"--data: this is wrong\."),
        (1, "bug", 1, r"rank 1 of 2 .* ended with an error: ZeroDivisionError: a bug"),
        (0, "UserError", 2, r"--data: this is wrong\."),
        (0, "SIGKILL", -9, r"rank 0 of 2 \(process \d+ on HOST\) is gone\."),
    ],
)
def test_the_loss_of_a_rank_ends_all_with_a_line_that_names_it(
    tmp_path: Path, rank: int, how: str, status: int, line: str
) -> None:
    """Within the time-out, here of 4 s, no process is left, and the same command goes on."""
    run = tmp_path / "Run"
    command = ["pretrain", "--data", "digits", "--limit", "64", "--method", "simclr", "--size", "8",
               "--backbone", "resnet10", "--width", "0.125", "--batch_size", "16", "--epochs", "2",
               "--knn_every", "0", "--no-evaluate", "--devices", "2", "--device", "cpu",
               "--logger", "none", "--run", str(run)]  # fmt: skip
    found, output = ended(
        program(command, tmp_path / "said", devices=2, UNMIX_TIMEOUT="4",
              change=lambda patch: losing(patch, rank, how)), tmp_path / "said"
    )  # fmt: skip
    assert found == status, output
    assert len(re.findall(line.replace("HOST", socket.gethostname()), output)) == 1, output
    assert output.count("unmix: error: ") == 1, output
    assert ("Traceback" in output) == (how == "bug"), output
    if status == 1:
        assert f" To go on from step 4: unmix pretrain --run {run}." in output
    if status == -9:  # rank 0 alone knows the step
        assert f" To go on: unmix pretrain --run {run}." in output
    assert (run / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("how", "counts"),
    [
        ("added", r"25 training images, rank 0 \(on HOST\) 24\. All"),
        (
            "renamed",
            r"24 training images, rank 0 \(on HOST\) 24; names or labels, or which can be",
        ),
    ],
)
def test_processes_that_list_other_images_end_with_a_line_that_names_the_rank(
    photos: Path, tmp_path: Path, how: str, counts: str
) -> None:
    run, images = tmp_path / "Run", sorted(photos.glob("*.png"))

    def other_files(_: pytest.MonkeyPatch) -> None:
        if os.environ.get("LOCAL_RANK") == "1":  # the first process has listed them already
            new = images[0].with_name("new.png")
            shutil.copy(images[0], new) if how == "added" else images[0].rename(new)

    command = ["pretrain", *words(photos, run), "--devices", "2"]
    status, output = ended(
        program(command, tmp_path / "said", devices=2, change=other_files), tmp_path / "said"
    )
    assert status == 2
    line = rf"unmix: error: --data: rank 1 of 2 \(on HOST\) found {counts}"
    assert re.search(line.replace("HOST", socket.gethostname()), output), output
    assert output.count("unmix: error: ") == 1, output
    assert "Traceback" not in output
    assert not run.exists()


def ended(process: Forked, said: Path) -> tuple[int, str]:
    """The status of a run and its output, when no process of its group is left."""
    status = process.wait(240)
    until = time.monotonic() + 40
    while (left := of_group(process.pid)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []
    return status, said.read_text()


def of_group(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(number) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


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


def test_a_data_worker_that_starts_after_its_trainer_was_killed_ends(tmp_path: Path) -> None:
    """Found by `tests/jobs/kills.py --workers`: such a worker was left for ever."""
    note = tmp_path / "worker"
    program = f"""
import multiprocessing, os, signal, time
from pathlib import Path
from unmix.training.loading import loaders

def begin():
    while os.getppid() == trainer:
        time.sleep(0.01)
    Path({str(note)!r}).write_text("begins")
    loaders._outlast_signals(0)
    Path({str(note)!r}).write_text("waits for ever")

trainer = os.getpid()
multiprocessing.get_context("fork").Process(target=begin).start()
os.kill(trainer, signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    end = time.monotonic() + 60
    while not note.exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    assert note.read_text() == "begins"
