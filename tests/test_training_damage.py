"""Damaged files are found before they are used, wherever the damage is."""

from __future__ import annotations

import os
import random
import shutil
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from unmix.checksums import safetensors_bytes
from unmix.errors import UserError
from unmix.evaluation import load_encoder
from unmix.files import atomic_write
from unmix.training import RunFolder, pretrain
from unmix.training.loop.callbacks import Reporter
from unmix.training.run.checkpoints import AtomicCheckpoints, latest_intact

TINY: dict[str, Any] = {
    "method": "moco", "data": "digits", "limit": 48, "backbone": "resnet10", "width": 0.125,
    "size": 8, "batch_size": 16, "epochs": 4, "knn_every": 0, "evaluate": False, "queue_size": 32,
    "bn_splits": 1, "logger": "none", "device": "cpu", "precision": "32",
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs that was stopped after the third; the first was kept."""
    folder = tmp_path_factory.mktemp("runs") / "r"
    complete = Reporter.complete

    def stop(self: Reporter, trainer: Any, module: Any) -> None:
        complete(self, trainer, module)
        if trainer.global_step == 9:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "complete", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(run=str(folder), checkpoint_every=2, **TINY)
    return folder


@pytest.fixture(scope="module")
def finished(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, gone on with to its end."""
    folder = shutil.copytree(stopped, tmp_path_factory.mktemp("finished") / "r")
    pretrain(run=str(folder))
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(stopped, tmp_path / "r"))


def test_the_last_two_checkpoints_are_kept_while_a_run_goes_on(
    stopped: Path, finished: Path
) -> None:
    names = sorted(path.name for path in (stopped / "checkpoints").iterdir())
    assert names == ["epoch-0002.ckpt", "last.ckpt", "previous.ckpt"]
    steps = [
        torch.load(stopped / "checkpoints" / name, weights_only=True)["global_step"]
        for name in names
    ]
    assert steps == [6, 9, 6]
    kept = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert kept == ["epoch-0002.ckpt", "epoch-0004.ckpt", "last.ckpt"]


def contents(folder: Path) -> dict[Path, bytes]:
    """All files of a folder but hidden ones."""
    files = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {path: path.read_bytes() for path in files}


def regions(size: int, count: int) -> list[int]:
    """A random place in each of `count` equal parts of a file, and its first and last bytes."""
    draw = random.Random(0)
    edges = [size * i // count for i in range(count + 1)]
    return [0, size - 1, *(draw.randrange(a, b) for a, b in pairwise(edges))]


def flipped(content: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_flipped_bit_in_any_region_of_a_checkpoint_is_refused_or_changes_nothing(
    run: RunFolder,
) -> None:
    """What is not checked is the archive's padding: it holds nothing."""
    whole, content = AtomicCheckpoints().load_checkpoint(run.last), run.last.read_bytes()
    refused, places = 0, regions(len(content), 200)
    for number, place in enumerate(places):
        run.last.write_bytes(flipped(content, place, number % 8))
        try:
            found = AtomicCheckpoints().load_checkpoint(run.last)
        except UserError as error:
            assert "it is damaged" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert same(found, whole)
    assert refused > 0.9 * len(places)


def test_zeros_in_any_region_of_a_checkpoint_are_refused(run: RunFolder) -> None:
    content = run.last.read_bytes()
    for place in regions(len(content) - 4096, 20):
        damaged = content[:place] + bytes(4096) + content[place + 4096 :]
        if damaged != content:
            run.last.write_bytes(damaged)
            with pytest.raises(UserError, match="it is damaged"):
                AtomicCheckpoints().load_checkpoint(run.last)


def test_a_flipped_bit_in_any_region_of_an_encoder_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    content = (finished / "encoder.safetensors").read_bytes()
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(content)
    whole = load_encoder(path)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*regions(len(content), 100), *regions(header, 60)]
    refused = 0
    for number, place in enumerate(places):
        path.write_bytes(flipped(content, place, number % 8))
        try:
            found = load_encoder(path)
        except UserError:
            refused += 1
        else:  # the word "sha256" itself was hit: no checksum, and nothing else is wrong
            assert {name: found.facts[name] for name in whole.facts} == whole.facts
            assert same(dict(found.backbone.state_dict()), dict(whole.backbone.state_dict()))
    assert refused >= len(places) - 2


def test_other_programs_read_what_carries_a_checksum(finished: Path) -> None:
    with safe_open(finished / "encoder.safetensors", framework="pt") as file:
        assert len(file.metadata()["sha256"]) == 66
        assert file.keys()
    assert "sha256" not in load_encoder(finished).facts
    assert torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("damaged", "used"),
    [(("last",), "previous"), (("last", "previous"), "epoch-0002")],
)
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_the_one_before_is_gone_on_from_and_ends_the_same(
    run: RunFolder, finished: Path, damaged: tuple[str, ...], used: str, how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in damaged:
        path = run.checkpoints / f"{name}.ckpt"
        content = path.read_bytes()
        path.unlink()  # not in place: the one before is the same file by another name
        half = len(content) // 2
        path.write_bytes(content[:half] if how == "truncate" else flipped(content, half, 3))
    pretrain(run=str(run.path))
    output = capsys.readouterr().out
    assert f"{run.last}: is not a checkpoint that can be read: it is damaged" in output
    assert f"resuming from {run.checkpoints / used}.ckpt, after 6 steps" in output
    for name in damaged:
        assert (run.checkpoints / f"{name}.ckpt.damaged").exists()
    a = torch.load(run.last, weights_only=True)
    b = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert same(a["state_dict"], b["state_dict"])
    assert a["global_step"] == 12


def test_without_a_whole_checkpoint_a_run_stops_and_changes_nothing(
    run: RunFolder, refuse: Any
) -> None:
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"PK")
    before = contents(run.path)
    line = refuse("pretrain", "--run", run.path)
    assert line.startswith(f"{run.last}: is not a checkpoint that can be read: it is damaged")
    assert line.endswith(
        f"and {run.checkpoints} holds no other that is intact. Put a copy in its place, or remove "
        "it to train from the start."
    )
    assert contents(run.path) == before


def test_a_file_of_weights_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    """The library orders the metadata anew in each call."""
    tensors = {
        "a": torch.randn(3, 5), "b": torch.arange(7), "é": torch.zeros(2, dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
    }  # fmt: skip
    metadata = {f"key-{i}": f'"\\u00e9 {i}"' for i in range(12)}
    contents = {safetensors_bytes(tensors, metadata) for _ in range(8)}
    assert len(contents) == 1
    path = tmp_path / "x.safetensors"
    path.write_bytes(contents.pop())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata
        assert same({name: file.get_tensor(name) for name in file.keys()}, tensors)  # noqa: SIM118
        assert all(file.get_tensor(name).dtype == tensors[name].dtype for name in tensors)


def test_the_encoders_of_identical_runs_are_identical_files(finished: Path, tmp_path: Path) -> None:
    pretrain(run=str(tmp_path / "r"), **TINY)
    encoder = (tmp_path / "r" / "encoder.safetensors").read_bytes()
    assert encoder == (finished / "encoder.safetensors").read_bytes()


def test_a_rename_is_flushed_with_the_file_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power failure finds is the old file or the new one."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    atomic_write(tmp_path / "results.json", b"{}")
    assert done == ["file", "rename", "folder"]
    done.clear()
    for _ in range(2):
        AtomicCheckpoints().save_checkpoint({}, tmp_path / "last.ckpt")
    # The one that is replaced gets its other name only when the new one is on the disk.
    again = done[done.index("folder") + 1 :]
    assert again[:2] == ["file", "rename"]
    assert again[-2:] == ["rename", "folder"]


@pytest.mark.parametrize("share", [*range(0, 100, 10), "missing"])
def test_a_checkpoint_cut_at_any_tenth_is_replaced_by_the_one_before(
    run: RunFolder, share: Any
) -> None:
    content = run.last.read_bytes()
    run.last.unlink()  # the one before may be the same file by another name
    if share != "missing":
        run.last.write_bytes(content[: len(content) * share // 100])
    path, checkpoint, damaged = latest_intact(run.checkpoints)
    assert path == run.previous
    assert checkpoint["global_step"] == 6
    assert len(damaged) == (share != "missing")
