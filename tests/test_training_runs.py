"""A run depends on its seed and its training images alone."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unmix.data import FileImages, ImageSet, TensorImages, load
from unmix.results import RunResults
from unmix.training import RunFolder, pretrain
from unmix.training.run import parts

TINY: dict[str, Any] = {
    "data": "digits",
    "limit": 150,
    "backbone": "resnet10",
    "width": 0.25,
    "size": 8,
    "batch_size": 32,
    "epochs": 2,
    "knn_every": 1,
    "knn_k": 10,
    "evaluate": False,
    "logger": "none",
    "device": "cpu",
    "precision": "32",
    "workers": 0,
}
METHODS: dict[str, dict[str, Any]] = {
    "moco": {"method": "moco", "queue_size": 64, "bn_splits": 2, "IM": True, "g_prob": 0.5},
    "moco-unmix": {"method": "moco", "queue_size": 64, "bn_splits": 1, "unmix": True},
    "insdis": {"method": "insdis", "negatives": 32, "IM": True, "IM_type": "Cutout"},
    "cmc": {"method": "cmc", "negatives": 32, "unmix": True, "beta": 0.5},
}


def run(folder: Path, **words: Any) -> tuple[dict[str, Tensor], RunResults]:
    """The weights and memories that a run ends with, and its results."""
    results = pretrain(run=str(folder), **{**TINY, **words})
    last = torch.load(RunFolder(folder).last, weights_only=True)
    return last["state_dict"], results


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def losses(folder: Path) -> list[float]:
    with RunFolder(folder).metrics.open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bits_and_another_one_others(
    name: str, tmp_path: Path
) -> None:
    """Weights, momentum encoder, memory and accuracies; the global generator is not asked."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first, results = run(tmp_path / "first", **METHODS[name])
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        again, repeated = run(tmp_path / "again", **METHODS[name])
        other, _ = run(tmp_path / "other", seed=1, **METHODS[name])
    assert same(first, again)
    assert results.evaluations == repeated.evaluations
    assert losses(tmp_path / "first") == losses(tmp_path / "again")
    assert not same(first, other)


def test_measuring_on_the_way_changes_nothing_of_the_training(tmp_path: Path) -> None:
    measured, _ = run(tmp_path / "measured", linear_every=1, **METHODS["moco"])
    unmeasured, _ = run(tmp_path / "unmeasured", knn_every=0, **METHODS["moco"])
    assert same(measured, unmeasured)


def test_nothing_of_the_test_images_and_of_the_labels_reaches_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other test images and wrong training labels: other accuracies, the same weights."""
    weights, results = run(tmp_path / "a", **METHODS["moco"])

    def spoilt(data: str, split: str, **options: Any) -> ImageSet:
        images = load(data, split, **options)
        assert isinstance(images, TensorImages)
        assert images.labels is not None
        if split == "test":
            return replace(images, images=images.images.flip(0)[:50], labels=images.labels[:50])
        return replace(images, labels=images.labels.flip(0))

    monkeypatch.setattr(parts, "load", spoilt)
    others, changed = run(tmp_path / "b", **METHODS["moco"])
    assert same(weights, others)
    assert [row.top1 for row in results.evaluations] != [row.top1 for row in changed.evaluations]
    assert changed.evaluations[0].details["test_images"] == 50


@pytest.fixture(scope="module")
def pictures() -> TensorImages:
    """144 photographs of 9 classes, 24 pixels a side."""
    found = load("photos", "train")
    assert isinstance(found, TensorImages)
    assert found.labels is not None
    index = torch.cat([(found.labels == label).nonzero()[:16, 0] for label in range(9)])
    return replace(
        found, images=found.images[index, :, ::2, ::2].contiguous(), labels=found.labels[index]
    )


@pytest.fixture(scope="module")
def files(pictures: TensorImages, tmp_path_factory: pytest.TempPathFactory) -> FileImages:
    """The same photographs, in the same order, as files."""
    root = tmp_path_factory.mktemp("files")
    paths = [root / f"{i:03d}.png" for i in range(len(pictures))]
    for path, image in zip(paths, pictures.images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    shared = {
        name: getattr(pictures, name) for name in ("name", "labels", "classes", "mean", "std")
    }
    return FileImages(split="train", paths=paths, **shared)


def test_training_from_files_is_as_from_memory(
    pictures: TensorImages,
    files: FileImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same order and steps; the crops are other draws, so the losses agree but roughly."""
    words = {
        **METHODS["moco-unmix"],
        "size": 16,
        "epochs": 3,
        "batch_size": 24,
        "limit": None,
        "resident": "no",
    }
    found = {}
    for name, images in (("memory", pictures), ("files", files)):
        monkeypatch.setattr(parts, "load", lambda *_, images=images, **__: images)
        found[name] = run(tmp_path / name, **words)
    for a, b in zip(losses(tmp_path / "memory"), losses(tmp_path / "files"), strict=True):
        assert math.isfinite(a)
        assert b == pytest.approx(a, rel=0.15)
    weights, results = found["files"]
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert not same(weights, found["memory"][0])
    assert results.training["steps"] == found["memory"][1].training["steps"] == 18
    first, second = (found[name][1].of("knn")[0] for name in ("memory", "files"))
    assert first.details == second.details
    assert abs(first.top1 - second.top1) < 25


def test_where_the_images_are_changes_no_bit(
    pictures: TensorImages,
    files: FileImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Held on the device, streamed from memory, or decoded once from files: the same weights."""
    words = {**METHODS["moco-unmix"], "size": 16, "knn_every": 0, "limit": None}
    places = {"held": (pictures, "yes"), "memory": (pictures, "no"), "files": (files, "yes")}
    found = {}
    for name, (images, resident) in places.items():
        monkeypatch.setattr(parts, "load", lambda *_, images=images, **__: images)
        found[name], _ = run(tmp_path / name, **words, resident=resident)
    assert same(found["held"], found["memory"])
    assert same(found["held"], found["files"])


def test_a_resumed_run_keeps_its_images_where_they_were(
    files: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops of files are other draws than crops of tensors, so `auto` is settled at the start."""
    monkeypatch.setattr(parts, "load", lambda *_, **__: files)
    run(tmp_path / "r", **METHODS["moco"], size=16, knn_every=0, limit=64)
    assert RunFolder(tmp_path / "r").words()["resident"] == "yes"
    run(tmp_path / "s", **METHODS["moco"], size=16, knn_every=0, limit=64, resident="no")
    assert RunFolder(tmp_path / "s").words()["resident"] == "no"


def test_the_number_of_workers_changes_no_bit(
    files: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "load", lambda *_, **__: files)
    words = {**METHODS["moco"], "size": 16, "knn_every": 0, "limit": 64, "resident": "no"}
    none, _ = run(tmp_path / "none", **words)
    two, _ = run(tmp_path / "two", **{**words, "workers": 2})
    assert same(none, two)
