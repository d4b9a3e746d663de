"""Bad run folders and full disks end a run with one line, and lose nothing."""

from __future__ import annotations

import csv
import errno
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from unmix.cli import main
from unmix.errors import UserError
from unmix.training.run.checkpoints import AtomicCheckpoints

SMALL = shlex.split(
    "--size 8 --backbone resnet10 --width 0.125 --epochs 1 --knn_every 0 --no-evaluate "
    "--device cpu --precision 32 --logger none --workers 0"
)
DIGITS = [*SMALL, *shlex.split("--data digits --batch_size 256")]
MOCO = shlex.split("--queue_size 256 --bn_splits 1")

Refuse = Callable[..., str]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="session")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that was stopped after the first."""
    folder = tmp_path_factory.mktemp("stopped") / "r"
    save = AtomicCheckpoints.save_checkpoint

    def save_and_stop(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AtomicCheckpoints, "save_checkpoint", save_and_stop)
        assert main(["pretrain", *DIGITS, *MOCO, "--epochs", "2", "--run", str(folder)]) == 130
    return folder


@pytest.fixture
def stopped(one_epoch: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(one_epoch, tmp_path / "stopped")


# --- run folders ------------------------------------------------------------------------------


def test_a_folder_of_other_files_is_not_trained_into(refuse, tmp_path: Path):
    notes = tmp_path / "other" / "notes.txt"
    notes.parent.mkdir()
    notes.touch()
    line = refuse("pretrain", *DIGITS, *MOCO, "--run", notes.parent)
    assert line == (
        f"--run: {notes.parent} holds notes.txt but no config.yaml, so it is not a run folder; "
        "give a new or an empty one."
    )
    assert list(notes.parent.iterdir()) == [notes]


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        ("--lr 0.5", "its lr is 0.06, not 0.5"),
        ("--epochs 9", "its epochs is 2, not 9"),
        ("--IM", "its IM is False, not True"),
        ("--data photos", "its data is digits, not photos"),
        ("--method cmc", "its method is moco, not cmc"),
    ],
)
def test_a_run_folder_of_other_settings(refuse, stopped: Path, words: str, difference: str):
    before = (stopped / "config.yaml").read_bytes()
    line = refuse("pretrain", "--run", stopped, *shlex.split(words))
    assert line.startswith(f"--run: {stopped} holds another run: {difference}. Give another --run")
    assert (stopped / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "\x00"])
def test_a_damaged_config_of_a_run(refuse, stopped: Path, text: str):
    (stopped / "config.yaml").write_text(text)
    for command in ("pretrain --run", "knn"):
        line = refuse(*shlex.split(command), stopped)
        assert line.startswith(f"{stopped}/config.yaml: ")


DAMAGED: dict[str, tuple[str, bytes | None]] = {
    "no settings": ("config.yaml", b""),
    "settings cut off": ("config.yaml", b"method: [moco"),
    "settings that are no text": ("config.yaml", b"\xff\xfe\x00"),
    "settings without a method": ("config.yaml", b"epochs: 2\n"),
    "an unknown setting": ("config.yaml", b"method: moco\ndata: digits\nx\x1b[31m: 5\n"),
    "a setting of another type": ("config.yaml", b"method: moco\ndata: digits\nepochs: many\n"),
    "settings that explode": ("config.yaml", b"[" * 50_000),
    "settings as a folder": ("config.yaml", None),
    "no JSON": ("data.json", b"{"),
    "images without a digest": ("data.json", b'{"data": "digits", "splits": {"train": {}}}'),
    "a record that is nested": ("data.json", b"[" * 100_000),
    "a checkpoint that is no checkpoint": ("checkpoints/last.ckpt", b"PK\x03\x04"),
}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Of everything in a folder but its lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_run_is_refused_alike_again(refuse: Refuse, stopped: Path, damage: str) -> None:
    name, content = DAMAGED[damage]
    path = stopped / name
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    before = contents(stopped)
    lines = []
    for _ in range(2):
        lines.append(refuse("pretrain", "--run", stopped))
        assert contents(stopped) == before
    assert lines[0] == lines[1]
    assert "\x1b" not in lines[0]
    assert path.name in lines[0]


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_damaged_or_missing_metrics_file_is_made_anew_from_the_checkpoint(
    stopped: Path, content: bytes | None
):
    path = stopped / "metrics.csv"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    assert main(["pretrain", "--run", str(stopped)]) == 0
    with path.open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]


@pytest.mark.parametrize("keep", [0, 100, 20000])
def test_a_damaged_checkpoint(refuse, stopped: Path, keep: int):
    path = stopped / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:keep])
    line = refuse("pretrain", "--run", stopped)
    assert line.startswith(f"{path}: is not a checkpoint that can be read: it is damaged")
    assert "remove it to train from the start" in line


class Intruder:
    """An object whose unpickling makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("intruded",)


def test_a_checkpoint_cannot_run_code(refuse, stopped: Path):
    torch.save({"state_dict": Intruder()}, stopped / "checkpoints" / "last.ckpt")
    assert "is not a checkpoint that can be read" in refuse("pretrain", "--run", stopped)
    assert not Path("intruded").exists()


@pytest.mark.parametrize("part", ["state_dict", "optimizer_states", "epoch_sums"])
def test_a_checkpoint_that_lacks_a_part(refuse, stopped: Path, part: str):
    path = stopped / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    del content[part]
    torch.save(content, path)
    assert refuse("pretrain", "--run", stopped).startswith(f"{path}: has no {part}, so it is not")


@pytest.mark.parametrize(("setting", "value"), [("width", 0.25), ("head", "mlp")])
def test_a_checkpoint_of_another_architecture(refuse, stopped: Path, setting: str, value: Any):
    words = yaml.safe_load((stopped / "config.yaml").read_text())
    (stopped / "config.yaml").write_text(yaml.safe_dump({**words, setting: value}))
    line = refuse("pretrain", "--run", stopped)
    assert line.startswith(f"{stopped}/checkpoints/last.ckpt: does not match the run: method.")


def test_a_checkpoint_whose_optimizer_had_other_groups(refuse, stopped: Path):
    """As of versions that decayed DINO's gain, or SimMIM's class token, otherwise."""
    path = stopped / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["optimizer_states"][0]["param_groups"][0]["params"].pop()
    torch.save(content, path)
    line = refuse("pretrain", "--run", stopped)
    assert line.startswith(f"{stopped}: was begun by an earlier version, whose optimizer trained")
    assert line.endswith("so it cannot be continued; give another --run.")


# --- while training ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "archive", "fsync"])
def test_a_full_disk_keeps_the_last_checkpoint_bit_for_bit(
    refuse, stopped: Path, monkeypatch, call: str
):
    path = stopped / "checkpoints" / "last.ckpt"
    before = path.read_bytes()

    def full(*_: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            if call == "archive":  # as PyTorch's writer ends where a piece still fitted
                raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos")  # noqa: B904
            raise

    flush = "unmix.training.run.checkpoints.flush"
    monkeypatch.setattr(flush if call == "fsync" else "torch.save", full)
    line = refuse("pretrain", "--run", stopped)
    assert line.startswith(f"{path}: cannot be written (No space left on device); the file that")
    assert line.endswith("was there before is kept.")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    monkeypatch.undo()
    assert main(["pretrain", "--run", str(stopped)]) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a full device")
def test_a_device_that_is_full_is_told_as_such_behind_pytorchs_writer(tmp_path: Path):
    (tmp_path / f".x.ckpt.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"x\.ckpt: cannot be written \(No space left on device\)"):
        AtomicCheckpoints().save_checkpoint({"a": torch.zeros(10**6)}, tmp_path / "x.ckpt")
    assert list(tmp_path.glob("*.ckpt")) == []


def test_metrics_that_cannot_be_written_end_in_one_line(refuse, stopped: Path, monkeypatch):
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "metrics.csv")

    monkeypatch.setattr("unmix.training.loop.records.atomic_write", read_only)
    line = refuse("pretrain", "--run", stopped)
    assert line == "metrics.csv: cannot be written (Read-only file system)."


def test_a_run_folder_that_cannot_be_made(refuse, monkeypatch):
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    line = refuse("pretrain", *DIGITS, *MOCO, "--run", "r")
    assert line == "--run: r cannot be created (Read-only file system)."


def test_a_loss_that_is_no_number_stops_with_what_to_try(refuse):
    line = refuse("pretrain", *DIGITS, *MOCO, "--lr", "1e6", "--run", "r")
    assert line.startswith("the loss is nan at step ")
    assert "with learning rate " in line
    assert "try a smaller --lr" in line
    assert not Path("r").exists()
