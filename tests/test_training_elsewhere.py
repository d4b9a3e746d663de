"""A run goes on with other devices, workers, precision or threads, and says what is not exact."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from forked import program
from unmix.cli import main
from unmix.config import Settings
from unmix.errors import Interrupted
from unmix.results import load_results
from unmix.training import RunFolder, pretrain
from unmix.training.loop.module import Pretraining
from unmix.training.run.parts import build_parts
from unmix.training.run.resuming import check_machine

WORDS: dict[str, Any] = {
    "method": "simclr", "backbone": "resnet10", "width": 0.125, "dim": 8, "hidden": 8,
    "data": "digits", "size": 8, "limit": 72, "batch_size": 16, "epochs": 3, "device": "cpu",
    "precision": "32", "logger": "none", "knn_every": 0, "evaluate": False, "threads": 1,
    "workers": 0, "checkpoint_steps": 1,
}  # fmt: skip


def stopping(patch: pytest.MonkeyPatch) -> None:
    """Interrupt a run within its second epoch, after 7 steps of 15."""
    step = Pretraining.training_step

    def stop(self: Pretraining, *args: Any) -> Any:
        if self.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *args)

    patch.setattr(Pretraining, "training_step", stop)


def begin(run: Path, monkeypatch: pytest.MonkeyPatch, **words: Any) -> RunFolder:
    """A run that is interrupted after 7 steps of 15."""
    with monkeypatch.context() as patch:
        stopping(patch)
        with pytest.raises(Interrupted):
            pretrain(run=str(run), **{**WORDS, **words})
    return RunFolder(run)


def last(folder: RunFolder) -> dict[str, Any]:
    return torch.load(folder.last, weights_only=True)


def losses(folder: RunFolder) -> list[float]:
    with folder.metrics.open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def resume(folder: RunFolder, devices: int) -> str:
    """Resume by the command line in a process of its own, and return what it prints."""
    said = folder.path.with_name("said")
    words = ["pretrain", "--run", str(folder.path), "--devices", str(devices)]
    assert program(words, said, devices=devices).wait() == 0, said.read_text()
    return said.read_text()


def same_weights(a: RunFolder, b: RunFolder) -> bool:
    one, other = last(a)["state_dict"], last(b)["state_dict"]
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def whole(tmp_path: Path) -> RunFolder:
    pretrain(run=str(tmp_path / "whole"), **WORDS)
    return RunFolder(tmp_path / "whole")


def test_other_precision_goes_on_and_is_said(tmp_path, monkeypatch, capsys, whole):
    folder = begin(tmp_path / "run", monkeypatch)
    assert main(["pretrain", "--run", str(folder.path), "--precision", "bf16"]) == 0
    said = capsys.readouterr().out
    assert "note: resuming with precision bf16 instead of 32: weights, optimizer, mem" in said
    assert "from here on steps are computed in precision bf16" in said
    assert last(folder)["global_step"] == 15
    assert load_results(folder.path).hardware["precision"] == "bf16-mixed"
    assert folder.settings().machine.precision == "bf16"  # the same command without flags goes on
    assert losses(folder) == pytest.approx(losses(whole), rel=0.05)
    assert not same_weights(folder, whole)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_other_devices_go_on_with_the_same_steps_and_means(
    before, after, tmp_path, monkeypatch, whole
):
    folder = RunFolder(tmp_path / "run")
    if before == 1:
        begin(folder.path, monkeypatch)
    else:
        flags = [f"--{name}={value}" for name, value in WORDS.items() if name != "evaluate"]
        words = ["pretrain", *flags, "--no-evaluate", "--devices", "2", "--run", str(folder.path)]
        said = tmp_path / "said before"
        assert program(words, said, devices=2, change=stopping).wait() == 130, said.read_text()
    assert last(folder)["global_step"] == 7
    said = resume(folder, after)
    many = "2 devices instead of 1" if after == 2 else "1 device instead of 2"
    assert f"note: resuming with {many}: weights, optimizer" in said
    assert said.count("note: resuming") == 1
    assert last(folder)["global_step"] == 15
    assert folder.settings().machine.devices == after
    assert load_results(folder.path).training["steps"] == 15
    # Over the same images, with other crops: means that count a part twice would be far off.
    assert losses(folder) == pytest.approx(losses(whole), rel=0.1)


def test_the_sums_of_an_epoch_are_a_share_of_the_processes(tmp_path, monkeypatch):
    folder = begin(tmp_path / "run", monkeypatch)
    checkpoint = last(folder)
    module = Pretraining.__new__(Pretraining)
    torch.nn.Module.__init__(module)
    monkeypatch.setattr(Pretraining, "device", torch.device("cpu"))
    monkeypatch.setattr("unmix.training.loop.module.world_size", lambda: 2)
    module.on_load_checkpoint(checkpoint)
    assert checkpoint["epoch_samples"] == 32
    assert module.samples == 16
    assert torch.equal(module.means.sums["loss"] * 2, checkpoint["epoch_sums"]["loss"])


def test_devices_that_change_the_steps_of_an_epoch_are_refused(tmp_path, monkeypatch, refuse):
    """Of 67 images the last batch of 3 can be one step of one device, and none of two."""
    folder = begin(tmp_path / "run", monkeypatch, limit=67)
    monkeypatch.setattr("sys.argv", ["unmix"])
    before = folder.config.read_bytes()
    line = refuse("pretrain", "--run", folder.path, "--devices", "2")
    assert line.startswith("--devices: an epoch of the run has 5 steps with 1 device, but 4 with 2")
    assert folder.config.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"limit": 69, "drop_last": True}, " and the images of each step go on exactly; from here"),
        ({"limit": 70}, " and the images of each step go on exactly; from here on each device"),
        (
            {"limit": 69},
            " and the images of all other steps go on exactly; from here on the last step of an "
            "epoch has 4 images instead of 5; each device draws",
        ),
        (
            {"limit": 70, "unmix": True, "unmix_rule": "sdmp"},
            "from here on the last step of an epoch has 4 images instead of 6; each device draws",
        ),
    ],
)  # fmt: skip
def test_a_batch_that_devices_cannot_share_is_not_said_to_go_on(tmp_path, words, expected):
    """Of 21 images in batches of 8 one device has 8, 8 and 5 in a step, two have 8, 8 and 4."""
    settings = Settings.of({**WORDS, **words})
    folder, said = RunFolder(tmp_path / "run"), []
    folder.write_settings(settings)
    folder.checkpoints.mkdir()
    folder.last.touch()
    parts = build_parts(settings.with_changes(devices=2))
    check_machine(folder, parts, True, said.append)
    assert expected in said[0]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(72):
        place = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (10, 10, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place)
    return tmp_path / "photos"


def test_other_workers_and_a_moved_folder_end_with_the_same_bits(
    tmp_path, monkeypatch, photos, capsys
):
    words = {"data": str(photos), "limit": None, "resident": "no"}
    pretrain(run=str(tmp_path / "whole"), **{**WORDS, **words})
    folder = begin(tmp_path / "run", monkeypatch, **words)
    moved = tmp_path / "elsewhere" / "pictures"
    moved.parent.mkdir()
    shutil.move(photos, moved)
    shutil.move(folder.path, moved.parent / "run")
    monkeypatch.chdir(moved.parent)
    capsys.readouterr()
    assert main(["pretrain", "--run", "run", "--data", "pictures", "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert f"data: the same images, now in {moved}; the run goes on exactly" in said
    assert "note: resuming with" not in said
    assert same_weights(RunFolder(moved.parent / "run"), RunFolder(tmp_path / "whole"))


@pytest.mark.parametrize(("files", "images", "steps"), [(36, 32, 2), (144, 130, 9)])
def test_images_that_make_other_epochs_are_refused_and_nothing_is_changed(
    files: int, images: int, steps: int, tmp_path: Path, monkeypatch, photos: Path, refuse
) -> None:
    """The rate was 0 from there on, or never fell; momentum encoders moved on beyond the end."""
    folder = begin(tmp_path / "run", monkeypatch, data=str(photos), limit=None, resident="no")
    for number in range(min(files, 72), max(files, 72)):
        place = photos / "ab"[number % 2] / f"{number}.png"
        if files < 72:
            place.unlink()
        else:
            shutil.copy(photos / "a" / "0.png", place)
    kept = (folder.config, folder.path / "data.json", folder.path / "metrics.csv")
    before = [path.read_bytes() for path in kept]
    line = refuse("pretrain", "--run", folder.path)
    assert line == (
        f"--data: the data has {images} images, the run had 64: an epoch of the run has 4 steps, "
        f"and with the data as it is now {steps}, so neither the place in it nor the schedules "
        "would be the run's. Give --data with the folder that holds the run's images, or another "
        "--run."
    )
    assert [path.read_bytes() for path in kept] == before


def test_parts_of_a_batch_are_said_and_kept(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = begin(tmp_path / "run", monkeypatch)
    assert main(["pretrain", "--run", str(folder.path), "--accumulate", "4"]) == 0
    assert "note: resuming with 4 parts of a batch instead of 1: " in capsys.readouterr().out
    assert folder.settings().machine.accumulate == 4


def test_other_threads_are_said(tmp_path, monkeypatch, capsys):
    folder = begin(tmp_path / "run", monkeypatch)
    assert main(["pretrain", "--run", str(folder.path), "--threads", "2"]) == 0
    assert "resuming with 2 threads instead of 1" in capsys.readouterr().out
