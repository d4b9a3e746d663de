"""Hugging Face data sets on disk, by `hf:PATH` and as an object in Python."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmix.data import Lists, load
from unmix.data.columns import Columns
from unmix.data.fingerprint import fingerprint
from unmix.data.from_python import from_python
from unmix.data.hf import HuggingFaceImages
from unmix.data.hf_address import Address
from unmix.errors import UserError
from unmix.training.run.data_record import located_data

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def encoded(number: int, form: str = "PNG", **words: Any) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form, **words)
    return file.getvalue()


def made(count: int = 20, image: str = "img", label: str | None = "fine_label") -> Any:
    rows: dict[str, list[Any]] = {image: [{"bytes": encoded(i), "path": f"{i}.png"}
                                          for i in range(count)]}  # fmt: skip
    features: dict[str, Any] = {image: datasets.Image()}
    if label is not None:
        rows[label] = [i % 2 for i in range(count)]
        features[label] = datasets.ClassLabel(names=["cat", "dog"])
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def read(path: Path | str, split: str = "train", **words: Any) -> HuggingFaceImages:
    found = load(f"hf:{path}", split, **words)
    assert isinstance(found, HuggingFaceImages)
    return found


def test_a_saved_data_set_has_its_images_classes_and_splits(tmp_path):
    parts = {"train": made(20), "validation": made(6), "test": made(4)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    train, test = read(tmp_path / "set"), read(tmp_path / "set", "test")
    assert (len(train), len(test), train.classes) == (20, 6, ("cat", "dog"))
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1] * 10
    assert train.notes == (
        "split: train 20 images in 2 classes (cat, dog) from train, evaluation on 6 from "
        "validation; not used: test (images from column img, labels from fine_label)",
    )
    assert train.read(3) == encoded(3)
    assert train.decode(3).size == (12, 8)
    assert train.place(3).name == "3.png"
    assert len(read(tmp_path / "set", "test", test_folder="test")) == 4
    assert (test.mean, test.std) == (train.mean, train.std)


def test_a_single_split_is_held_out_of_and_picked(tmp_path):
    made(20).save_to_disk(tmp_path / "set")
    train, test = read(tmp_path / "set"), read(tmp_path / "set", "test")
    assert (len(train), len(test)) == (18, 2)
    rows = [*train.numbers.tolist(), *test.numbers.tolist()]
    assert sorted(rows) == list(range(20))
    assert train.evenly(4).read(3) == encoded(int(train.numbers[-1]))


def test_the_layout_of_the_hub_and_a_parquet_file_are_the_same_images(tmp_path):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    made(20).to_parquet(folder / "train-00000-of-00001.parquet")
    made(4).to_parquet(folder / "test-00000-of-00001.parquet")
    made(20).save_to_disk(tmp_path / "set")
    whole, saved = read(tmp_path / "hub"), made(20)
    assert (len(whole), len(read(tmp_path / "hub", "test"))) == (20, 4)
    ours = from_python(saved, "train")
    assert isinstance(ours, HuggingFaceImages)
    assert fingerprint(whole) == fingerprint(ours)  # one concept, wherever it is read from
    file = read(folder / "train-00000-of-00001.parquet")
    assert len(file) == 18


def test_an_object_in_python_is_read_as_the_path_is(tmp_path):
    data = made(20)
    ours = from_python(data, "train")
    made(20).save_to_disk(tmp_path / "set")
    theirs = read(tmp_path / "set")
    assert isinstance(ours, HuggingFaceImages)
    assert ours.read(int(theirs.numbers[5])) == theirs.read(5)
    shuffled = from_python(data.shuffle(seed=1), "train")
    assert fingerprint(shuffled) != fingerprint(ours)
    assert fingerprint(from_python(data.select(range(20)), "train")) == fingerprint(ours)


def test_broken_turned_and_deep_images_are_as_in_folders(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 60).save(deep, "PNG")
    cells = [encoded(0, "JPEG", exif=exif), b"no image", deep.getvalue(), None, encoded(4)[:50]]
    rows = {"image": [cell and {"bytes": cell, "path": None} for cell in cells]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    images = read(tmp_path / "set")
    assert images.decode(0).size == (8, 12)
    assert images.decoding.range == (0, 63 * 60)
    assert np.asarray(images.decode(2)).max() == 255
    for i in (1, 3, 4):
        with pytest.raises(UserError, match=rf"set\[{i}\]"):
            images.decode(i)


def test_images_in_files_of_their_own_and_columns_of_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(0))
    rows = {"image": [str(tmp_path / "a.png")] * 4}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    assert from_python(data, "train").read(0) == encoded(0)  # type: ignore[attr-defined]
    rows = {"content": [encoded(i) for i in range(4)], "y": list("abab")}
    plain = datasets.Dataset.from_dict(rows)
    plain.save_to_disk(tmp_path / "plain")
    with pytest.raises(UserError, match=r"image_column: .*has the columns content, y"):
        read(tmp_path / "plain")
    found = read(tmp_path / "plain", lists=Lists(Columns("content", "y")))
    assert (found.classes, found.read(0)) == (("a", "b"), encoded(int(found.numbers[0])))
    with pytest.raises(UserError, match=r"no column 'contend'.*mean 'content'"):
        read(tmp_path / "plain", lists=Lists(Columns("contend")))
    with pytest.raises(UserError, match=r"column 'y' is of type string, which is no image"):
        read(tmp_path / "plain", lists=Lists(Columns("y")))


def test_hidden_labels_are_no_classes(tmp_path):
    data = made(6).remove_columns("fine_label").add_column("label", [0, 1, -1, 0, 1, 0])
    data.save_to_disk(tmp_path / "set")
    assert read(tmp_path / "set").classes is None


def test_a_worker_gets_no_copy_of_the_images(tmp_path):
    big = {"image": [{"bytes": encoded(i) + bytes(100_000), "path": None} for i in range(20)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(big, features=features).save_to_disk(tmp_path / "set")
    images = read(tmp_path / "set")
    sent = pickle.dumps(images)
    assert len(sent) < 100_000
    assert pickle.loads(sent).read(7) == images.read(7)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("hf:cifar10", ("cifar10", None, None, False)),
        ("hf:org/name:full@v1", ("org/name", "full", "v1", False)),
        ("hf:org/name@v1", ("org/name", None, "v1", False)),
        ("hf:org/name:full", ("org/name", "full", None, False)),
        ("hf:/some/where", ("/some/where", None, None, True)),
    ],
)
def test_addresses(data, parts):
    address = Address.of(data)
    assert (address.name, address.config, address.revision, address.local) == parts


def test_without_a_network_one_line_says_what_to_download(tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'org/name' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError) as caught:
        load("hf:org/name@v1", "train")
    line = str(caught.value)
    assert "hf download org/name --repo-type dataset --revision v1 --local-dir FOLDER" in line
    assert "give hf:FOLDER" in line
    assert "\n" not in line


def test_paths_are_absolute_in_a_run(tmp_path, monkeypatch):
    made(4).save_to_disk(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert located_data("hf:set") == f"hf:{tmp_path / 'set'}"
    assert located_data("hf:org/name") == "hf:org/name"
    with pytest.raises(UserError, match=r"there is no \./none"):
        load("hf:./none", "train")


def test_training_from_it(tmp_path, monkeypatch):
    from unmix.training import pretrain

    made(24, label="label").save_to_disk(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    found = pretrain(
        data="hf:set", run="run", method="simclr", backbone="resnet10", width=0.125, dim=8,
        hidden=8, size=8, batch_size=8, epochs=1, device="cpu", logger="none", knn_every=0,
        knn_k=3, workers=2,
    )  # fmt: skip
    assert len(found.evaluations) == 2
    assert torch.isfinite(torch.tensor(found.training["loss"]))


def twelve_bits(number: int) -> bytes:
    values = np.random.default_rng(number).integers(0, 4096, (8, 12)).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def test_a_dot_in_the_name_of_the_data_set_is_no_extension_of_its_images(tmp_path):
    """A Parquet file's images of more than 8 bits were not measured: nearly black."""
    rows = {"image": [{"bytes": twelve_bits(i), "path": None} for i in range(6)]}
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(tmp_path / "cells.parquet")
    data.save_to_disk(tmp_path / "cells")
    data.save_to_disk(tmp_path / "cells.v2")
    plain = read(tmp_path / "cells")
    assert plain.decoding.range is not None
    assert 0.4 < plain.mean[0] < 0.6
    for name in ("cells.parquet", "cells.v2"):
        other = read(tmp_path / name)
        assert (other.decoding, other.mean) == (plain.decoding, plain.mean)
        assert other.notes[-1] == plain.notes[-1]


def labeled(labels: list[Any], kind: Any = None) -> Any:
    data = made(len(labels), label=None).add_column("label", labels)
    return data if kind is None else data.cast_column("label", kind)


def test_a_test_split_without_one_of_the_classes_is_labeled_by_name(tmp_path):
    """It was refused, and there was nothing to do about it."""
    for name, values in (("numbers", [0, 1, 2]), ("names", ["a", "b", "c"])):
        parts = {"train": labeled(values * 4), "test": labeled(values[1:] * 2)}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / name)
        test = read(tmp_path / name, "test")
        assert test.classes == read(tmp_path / name).classes == tuple(map(str, values))
        assert test.labels is not None
        assert test.labels.tolist() == [1, 2] * 2
    parts["test"] = labeled(["a", "d"])
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "more")
    with pytest.raises(UserError, match="image of test has the label 'd', which no training"):
        read(tmp_path / "more", "test")


def test_a_tenth_is_held_out_where_the_test_labels_are_hidden(tmp_path):
    kind = datasets.ClassLabel(names=["cat", "dog"])
    parts = {"train": labeled([0, 1] * 10, kind), "test": labeled([-1] * 4, kind)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    train, test = read(tmp_path / "set"), read(tmp_path / "set", "test")
    assert (len(train), len(test)) == (18, 2)
    assert test.classes == train.classes == ("cat", "dog")
    assert "test 2 held out of these (a tenth of every class); not used: test" in train.notes[0]
    assert train.notes[1] == "note: test has no labels, so evaluation is not on it"
    with pytest.raises(UserError, match=r"test_folder: .*test has no labels; give a split that"):
        load(f"hf:{tmp_path / 'set'}", "train", test_folder="test")
