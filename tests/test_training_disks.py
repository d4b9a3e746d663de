"""Disks that are full, read-only or gone: training goes on while it may help, and loses nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import killing
from killing import TINY, outcome
from unmix.cli import main
from unmix.errors import Interrupted, UserError
from unmix.training import pretrain
from unmix.training.loop.callbacks import Checkpoints, Reporter
from unmix.training.loop.saving import Saving
from unmix.training.loop.stopping import Stopping
from unmix.training.run import checkpoints
from unmix.training.run.checkpoints import AtomicCheckpoints
from unmix.training.run.lock import OWNER

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str], int]:
    """What an undisturbed run leaves, its moments, and how large it is at most."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    seen = killing.run(folder)
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return outcome(folder), seen, files + 2 * (folder / "checkpoints/last.ckpt").stat().st_size


def failing(patch: pytest.MonkeyPatch, fails: Any) -> None:
    """Make the writes of checkpoints fail whose number, from 1, `fails` says."""
    write, count = checkpoints._write, [0]

    def wrapped(*arguments: Any) -> None:
        count[0] += 1
        if fails(count[0]):
            raise FULL
        write(*arguments)

    patch.setattr(checkpoints, "_write", wrapped)


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, lambda n: 2 <= n <= 6)
        pretrain(run=str(tmp_path / "r"), **TINY)
    said = capsys.readouterr().out
    path = tmp_path / "r" / "checkpoints" / "last.ckpt"
    assert said.count("warning: ") - said.count("warning: not learning") == 1
    assert (
        f"warning: {path}: cannot be written (No space left on device); the file that was there "
        "before is kept. Training goes on; it is tried again each minute."
    ) in said
    assert "saved again, after" in said
    assert outcome(tmp_path / "r") == whole[0]


def test_what_could_not_be_saved_is_saved_before_the_next_epoch_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retry is after any step, not only where saves are due."""
    steps: list[int] = []
    save = Checkpoints.save

    def noted(self: Checkpoints, trainer: Any, *arguments: Any) -> None:
        steps.append(trainer.global_step)
        save(self, trainer, *arguments)

    monkeypatch.setattr(Checkpoints, "save", noted)
    monkeypatch.setattr(Saving, "AGAIN", 0.0)
    failing(monkeypatch, lambda n: n == 1)
    pretrain(run=str(tmp_path / "r"), **{**TINY, "checkpoint_steps": 0, "evaluate": False})
    assert steps == [3, 4, 6, 9]


def test_a_disk_that_stays_full_ends_the_run_in_a_line_and_keeps_what_was_saved(
    whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, kept = tmp_path / "r", []

    def full(n: int) -> bool:
        if n == 5:
            kept.append((run / "checkpoints" / "last.ckpt").read_bytes())
        return n >= 5

    with pytest.MonkeyPatch.context() as patch:
        failing(patch, full)
        with pytest.raises(UserError, match=r"last\.ckpt: cannot be written \(No space left"):
            pretrain(run=str(run), **TINY)
    assert "epoch 2/3" in capsys.readouterr().out  # it went on
    assert [(run / "checkpoints" / "last.ckpt").read_bytes()] == kept
    assert list(run.rglob(".*.tmp")) == []
    pretrain(run=str(run))
    assert outcome(run) == whole[0]


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "data.json", "metrics.csv", "encoder.safetensors", "correct.json",
     "results.json", "last.ckpt", "previous.ckpt"],
)  # fmt: skip
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_file_that_can_never_be_written_is_named_and_the_run_ends_as_it_would_have(
    whole: Any, tmp_path: Path, name: str, code: int
) -> None:
    run, replace = tmp_path / "r", Path.replace

    def refused(path: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(code, os.strerror(code))
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", refused)
        named = "last.ckpt" if name == "previous.ckpt" else name
        with pytest.raises(UserError, match=rf"{re.escape(named)}: cannot be written"):
            pretrain(run=str(run), **TINY)
    assert list(tmp_path.rglob(".*.tmp")) == []
    pretrain(run=str(run), **TINY)
    assert outcome(run) == whole[0]


def at_step(patch: pytest.MonkeyPatch, number: int, act: Any) -> None:
    """Do something after the given step, before it is saved."""
    end = Checkpoints.on_train_batch_end

    def wrapped(self: Checkpoints, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == number:
            act()
        end(self, trainer, *arguments)

    patch.setattr(Checkpoints, "on_train_batch_end", wrapped)


@pytest.mark.parametrize("what", ["", "checkpoints", "config.yaml"])
def test_a_folder_that_is_removed_while_training(
    whole: Any, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is not made again; missing checkpoints are."""
    run = tmp_path / "r"
    with pytest.MonkeyPatch.context() as patch:
        at_step(
            patch, 4,
            lambda: (run / what).unlink() if what == "config.yaml" else shutil.rmtree(run / what),
        )  # fmt: skip
        if what == "checkpoints":
            pretrain(run=str(run), **TINY)
            assert outcome(run) == whole[0]
            return
        with pytest.raises(UserError, match="it was removed while the run was trained"):
            pretrain(run=str(run), **TINY)
    said = capsys.readouterr().out
    assert f"warning: {run / what if what else run}: cannot be written (it was removed" in said
    assert "epoch 2/3" in said  # it went on
    assert run.exists() == bool(what)


def test_a_folder_that_comes_back_is_used_again(whole: Any, tmp_path: Path) -> None:
    """As after a network file system was away."""
    run, away = tmp_path / "r", tmp_path / "away"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 4, lambda: run.rename(away))
        ended = Reporter.on_train_epoch_end

        def back(self: Reporter, trainer: Any, module: Any) -> None:
            ended(self, trainer, module)
            if away.exists():
                away.rename(run)

        patch.setattr(Reporter, "on_train_epoch_end", back)
        pretrain(run=str(run), **TINY)
    assert outcome(run) == whole[0]


def test_a_folder_that_is_another_process_now_is_left_to_it(tmp_path: Path) -> None:
    run = tmp_path / "r"

    def taken() -> None:
        (run / OWNER).write_text('{"host": "elsewhere", "process": 7, "since": "today"}')

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 4, taken)
        with pytest.raises(UserError, match=r"is in use by process 7 on elsewhere.* this run stop"):
            pretrain(run=str(run), **TINY)


# --- how long it is tried -----------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now, self.said, self.slept = 0.0, list[str](), 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def saving(clock: Clock, stopping: Stopping | None = None) -> Saving:
    return Saving(
        100, stopping or Stopping(), tell=clock.said.append, clock=lambda: clock.now,
        sleep=clock.sleep,
    )  # fmt: skip


def refused() -> None:
    raise UserError("x: cannot be written (full).") from FULL


def test_it_is_tried_each_minute_for_an_hour() -> None:
    clock = Clock()
    it = saving(clock)
    it.save(1, lambda: None)
    tries: list[int] = []

    def train() -> None:
        for step in range(2, 100):
            it.save(step, refused)
            tries.append(step)
            assert not it.due
            clock.now += 60
            assert it.due

    with pytest.raises(UserError, match=r"x: cannot be written \(full\)"):
        train()
    assert len(tries) == 60
    assert len(clock.said) == 1
    assert it.stopping.saved == 1


def test_a_run_that_has_ended_waits_no_longer_than_the_unsaved_steps_took() -> None:
    clock = Clock()
    it = saving(clock)
    clock.now = 600
    with pytest.raises(UserError):
        it.save(100, refused)
    assert 540 <= clock.slept <= 600
    clock = Clock()
    it = saving(clock)
    clock.now = 30
    with pytest.raises(UserError):
        it.save(100, refused)
    assert clock.slept == 0


def test_a_run_that_has_ended_is_saved_when_there_is_room_and_obeys_a_signal() -> None:
    clock = Clock()
    it = saving(clock)
    clock.now = 3000

    def full_at_first() -> None:
        if clock.slept < 150:
            refused()

    it.save(100, full_at_first)
    assert it.stopping.saved == 100
    assert "saved again, after 3" in clock.said[-1]
    stopping = Stopping()
    it = saving(clock, stopping)
    clock.now += 3000
    stopping.received = 15
    with pytest.raises(Interrupted):
        it.save(100, refused)


def test_what_is_no_fault_of_the_disk_is_raised_at_once() -> None:
    def useless() -> None:
        raise UserError("the loss is nan")

    with pytest.raises(UserError, match="the loss is nan"):
        saving(Clock()).save(1, useless)


# --- real ones: of 13 sizes, and read-only ------------------------------------------------------


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, of 64 MB at first."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or not mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)):
        pytest.skip("no file system can be mounted here: that needs Linux and root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("twelfths", range(13))
def test_disks_of_thirteen_sizes(
    whole: Any, disk: Path, twelfths: int, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From nothing at all to all that is needed; with room the same command ends the run."""
    expected, _, size = whole
    room = max(4096, size * twelfths // 12)
    monkeypatch.setattr(Saving, "AGAIN", 0.05)
    assert mount("-o", f"remount,size={room}", str(disk))
    words = [f"--{name}={value}" for name, value in TINY.items() if value is not True]
    command = ["pretrain", *words, "--unmix", "--logger", "tensorboard", "--run", str(disk / "r")]
    status = main(command)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if status:
        assert status == 2
        assert error.count("\n") == 1
        assert "No space left on device" in error or "cannot" in error
    assert (status == 0) == (twelfths == 12) or twelfths > 6
    assert mount("-o", "remount,size=64m", str(disk))
    assert main(command) == 0
    assert outcome(disk / "r") == expected


@pytest.mark.parametrize("ended", [False, True])
def test_a_read_only_disk(
    whole: Any, disk: Path, ended: bool, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A run that has ended shows its results; one that has not ends in a line."""
    run = disk / "r"
    with pytest.MonkeyPatch.context() as patch:
        if not ended:
            failing(patch, lambda n: n == 4)
            patch.setattr(Saving, "save", lambda self, step, write: write())
        try:
            pretrain(run=str(run), **TINY)
        except UserError:
            assert not ended
    assert AtomicCheckpoints().load_checkpoint(run / "checkpoints" / "last.ckpt")
    assert mount("-o", "remount,ro", str(disk))
    capsys.readouterr()
    status = main(["pretrain", "--run", str(run)])
    out, error = capsys.readouterr()
    if ended:
        assert status == 0
        assert "is complete; nothing to do" in out
        return
    assert status == 2
    assert error == f"unmix: error: {run / '.lock'}: cannot be written (Read-only file system).\n"
    assert mount("-o", "remount,rw", str(disk))
    assert main(["pretrain", "--run", str(run)]) == 0
    assert outcome(run) == whole[0]
