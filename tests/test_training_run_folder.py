"""The files of a run: enough to repeat it, readable by others, written atomically."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from safetensors.torch import load_file
from torch import nn

from runs import MOCO_RUN
from unmix.errors import UserError
from unmix.evaluation import load_encoder
from unmix.files import atomic_path, atomic_write
from unmix.results import load_results
from unmix.training import RunFolder, Settings, pretrain
from unmix.training.loop.module import Pretraining
from unmix.training.run.checkpoints import AtomicCheckpoints
from unmix.training.run.folder import begun_before

TINY: dict[str, Any] = {
    "data": "digits",
    "limit": 150,
    "backbone": "resnet10",
    "width": 0.25,
    "size": 8,
    "batch_size": 50,
    "epochs": 3,
    "knn_every": 1,
    "knn_k": 10,
    "device": "cpu",
    "precision": "32",
}
WORDS: dict[str, dict[str, Any]] = {
    "moco": {"queue_size": 64, "bn_splits": 2, "unmix": True, "jitter": (0.1, 0.2, 0.3, 0.05)},
    "cmc": {"negatives": 32, "IM": True, "schedule": "step", "milestones": (1, 2), "seed": 3},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MoCo run, with all that a run writes."""
    folder = tmp_path_factory.mktemp("runs") / "moco"
    pretrain(method="moco", run=str(folder), checkpoint_every=2, **TINY, **WORDS["moco"])
    return folder


@pytest.mark.parametrize("method", WORDS)
def test_the_written_settings_repeat_the_run(method: str, tmp_path: Path) -> None:
    """`pretrain(config=that file, run=another)` ends with the same weights, to the bit."""
    quick = {"epochs": 1, "logger": "none", "evaluate": False}
    first, again = RunFolder(tmp_path / "first"), RunFolder(tmp_path / "again")
    pretrain(method=method, run=str(first.path), **{**TINY, **WORDS[method], **quick})
    pretrain(config=str(first.config), run=str(again.path))
    a, b = load_file(first.encoder), load_file(again.encoder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {**first.words(), "run": None} == {**again.words(), "run": None}


def test_the_settings_are_plain_yaml_with_nothing_left_to_choose(finished: Path) -> None:
    words = yaml.safe_load((finished / "config.yaml").read_text())
    assert Settings.of(words).flat() == words
    assert (words["method"], words["queue_size"], words["size"]) == ("moco", 64, 8)
    assert words["jitter"] == [0.1, 0.2, 0.3, 0.05]
    assert words["precision"] == "32"


def test_the_results_are_as_the_plan_of_the_house_describes_them(finished: Path) -> None:
    found = json.loads((finished / "results.json").read_text())
    named = {key: found[key] for key in ("schema", "name", "method", "mixture", "data", "backbone")}
    assert named == {
        "schema": 1, "name": "moco", "method": "moco", "mixture": "Un-Mix", "data": "digits",
        "backbone": "resnet10",
    }  # fmt: skip
    numbers = {key: found[key] for key in ("width", "size", "epochs", "seed")}
    assert numbers == {"width": 0.25, "size": 8, "epochs": 3, "seed": 0}
    assert found["command"].startswith("unmix pretrain ")
    assert [(row["protocol"], row["epoch"]) for row in found["evaluations"]] == [
        ("knn", 1), ("knn", 2), ("knn", 3), ("linear", 3)
    ]  # fmt: skip
    for row in found["evaluations"]:
        assert 0 <= row["top1"] <= row["top5"] <= 100
        assert (row["features"], row["train_images"], row["test_images"]) == ("backbone", 150, 360)
    assert (found["evaluations"][0]["k"], found["evaluations"][0]["temperature"]) == (10, 0.1)
    training = found["training"]
    assert training["steps"] == 9
    assert training["images_per_second"] == pytest.approx(450 / training["seconds"])
    assert 0 < training["seconds"] <= training["total_seconds"]
    assert training["peak_memory_bytes"] > 10**7
    assert {"torch", "torchvision", "lightning", "python"} <= found["versions"].keys()
    assert (found["hardware"]["device"], found["hardware"]["precision"]) == ("cpu", "32-true")
    assert load_results(finished).mixture == "Un-Mix"


def test_metrics_have_a_row_an_epoch(finished: Path) -> None:
    with (finished / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "3"), ("1", "6"), ("2", "9")]
    for row in rows:
        parts = float(row["loss_clean"]) + float(row["loss_mixed"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-5)
        assert float(row["images_per_second"]) > 0
    assert float(rows[-1]["loss"]) == load_results(finished).training["loss"]
    measured = [row.top1 for row in load_results(finished).of("knn")[:2]]
    assert [float(row["knn"]) for row in rows[:2]] == pytest.approx(measured)
    assert [float(row["queue_fill"]) for row in rows] == [1.0, 1.0, 1.0]


def test_tensorboard_has_the_same_numbers(finished: Path) -> None:
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    with (finished / "metrics.csv").open(newline="") as file:
        expected = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [value for _, value in found] == pytest.approx([loss for _, loss in expected])


def test_checkpoints_are_kept_where_they_were_asked_for_and_last_is_the_end(finished: Path) -> None:
    folder = finished / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-0002.ckpt", "last.ckpt"]
    kept, last = (torch.load(path, weights_only=True) for path in sorted(folder.iterdir()))
    assert (kept["global_step"], last["global_step"]) == (6, 9)
    exported = load_file(finished / "encoder.safetensors")
    prefix = "method.f_q.backbone."
    of_last = {
        name.removeprefix(prefix): value
        for name, value in last["state_dict"].items()
        if name.startswith(prefix)
    }
    assert exported.keys() == of_last.keys()
    assert all(torch.equal(exported[name], of_last[name]) for name in exported)


@pytest.mark.parametrize("bn_splits", [1, 2])
def test_the_exported_resnet18_is_torchvisions(bn_splits: int, tmp_path: Path) -> None:
    """Only the classifier is missing, and the features are the same numbers."""
    pretrain(
        method="moco", run=str(tmp_path / "run"), data="photos", limit=8, batch_size=4, size=32,
        backbone="resnet18", width=1.0, stem="large", queue_size=8, bn_splits=bn_splits, epochs=1,
        evaluate=False, knn_every=0, logger="none", device="cpu", precision="32",
    )  # fmt: skip
    theirs = torchvision.models.resnet18()
    state = load_file(tmp_path / "run" / "encoder.safetensors")
    found = theirs.load_state_dict(state, strict=False)
    assert set(found.missing_keys) == {"fc.weight", "fc.bias"}
    assert found.unexpected_keys == []
    theirs.fc = nn.Identity()
    encoder = load_encoder(tmp_path / "run")
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs.eval()(encoder.views.plain(images))
    torch.testing.assert_close(encoder.encode(images), expected, rtol=1e-3, atol=1e-4)


# --- written atomically ----------------------------------------------------------------------


def refuse(self: Path, target: Path) -> Path:
    raise OSError(28, "No space left on device")


def interrupt(self: Path, target: Path) -> Path:
    raise KeyboardInterrupt


def test_a_file_whose_rename_fails_is_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    atomic_write(path, b"old")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match=r"results\.json.*No space left.*kept"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_between_writing_and_renaming_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpoints().save_checkpoint({"epoch": 2}, path)
    assert AtomicCheckpoints().load_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_encoder_whose_rename_fails_is_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, layer = RunFolder(tmp_path), nn.Linear(2, 2)
    folder.write_encoder(layer, {"size": 8})
    before = folder.encoder.read_bytes()
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match=r"encoder\.safetensors"):
        folder.write_encoder(nn.Linear(2, 2), {"size": 16})
    assert folder.encoder.read_bytes() == before
    assert list(tmp_path.iterdir()) == [folder.encoder]


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    """While it is written its place holds the old one, and what lies beside it is hidden."""
    path = tmp_path / "deep" / "file"
    atomic_write(path, b"old")
    with atomic_path(path) as beside:
        beside.write_bytes(b"ne")
        assert path.read_bytes() == b"old"
        assert beside.parent == path.parent
        assert beside.name.startswith(".")
        beside.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_run_that_0_1_0_began_goes_on_in_its_folder_and_another_seed_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default folder of 0.1.0 had no seed in its name: seed 1 met the folder of seed 0."""
    monkeypatch.chdir(tmp_path)
    settings = Settings.of({"method": "moco", "data": "photos", "size": 16})
    assert begun_before(settings) == settings
    old = RunFolder("runs/moco-photos-none")
    old.write_settings(settings)
    assert begun_before(settings).folder == Path("runs/moco-photos-none")
    other = settings.with_changes(seed=1)
    assert begun_before(other).folder == Path("runs/moco-photos-none-seed1")
    assert begun_before(settings.with_changes(lr=0.5)).folder == settings.folder
    assert begun_before(settings.with_changes(run="mine")).folder == Path("mine")
    RunFolder(settings.folder).write_settings(settings)
    assert begun_before(settings).folder == settings.folder


def test_memory_that_runs_out_in_the_first_step_leaves_the_folder_to_a_smaller_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "training_step", full)
        with pytest.raises(torch.OutOfMemoryError):
            pretrain(run=str(run), **MOCO_RUN)
    assert not (run / "config.yaml").exists()
    pretrain(run=str(run), **{**MOCO_RUN, "batch_size": 25})
    assert (run / "results.json").exists()
