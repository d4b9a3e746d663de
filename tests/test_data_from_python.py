"""Pretraining on what a researcher has in Python: data sets, pixels, lists of paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

import unmix
from runs import TINY_RUN
from unmix.commands import knn
from unmix.data import TensorImages, estimate_mean_std, load, read_uint8
from unmix.data.fingerprint import fingerprint
from unmix.data.from_python import check_sendable, evaluation_images, from_python
from unmix.training.run.folder import RunFolder

N, SIDE = 24, 12
PIXELS = torch.randint(
    256, (N, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS = torch.arange(N) % 3
TINY: dict[str, Any] = {**TINY_RUN, "method": "simclr", "dim": 8, "hidden": 8, "batch_size": 8}


def pil(i: int) -> Image.Image:
    return Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy())


class Pictures(Dataset):
    """As users write them: images, labels, and nothing else."""

    def __init__(self, form: str = "pil", labels: str | None = "item", n: int = N) -> None:
        self.form, self.n, self.asked = form, n, 0
        self.labels_in = labels
        if labels == "attribute":
            self.targets = LABELS[:n].tolist()
            self.classes = ["ant", "bee", "cat"]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        if i >= self.n:
            raise IndexError(i)
        self.asked += 1
        forms = {
            "pil": lambda: pil(i),
            "tensor": lambda: PIXELS[i],
            "array": lambda: PIXELS[i].permute(1, 2, 0).numpy(),
            "dict": lambda: pil(i),
        }
        image = forms[self.form]()
        if self.form == "dict":
            return {"id": f"x{i}", "image": image, "label": int(LABELS[i])}
        return image if self.labels_in is None else (image, int(LABELS[i]))


class ClassLabel:
    names = ("ant", "bee", "cat")


class Hugging:
    """What is asked of a `datasets.Dataset`: columns, features, items that are dicts."""

    def __init__(self) -> None:
        image = type("Image", (), {})()
        self.features = {"text": object(), "photo": image, "kind": ClassLabel()}
        self.column_names = list(self.features)

    def __len__(self) -> int:
        return N

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return {"kind": LABELS.tolist()}[key]
        return {"text": "a", "photo": pil(key), "kind": int(LABELS[key])}


def pixels_of(images: Any) -> torch.Tensor:
    if isinstance(images, TensorImages):
        return images.images
    return read_uint8(images, range(len(images)), SIDE)[0]


PAIRS = [(pil(i), int(LABELS[i])) for i in range(N)]
FORMS: dict[str, Any] = {
    "pil": Pictures(),
    "tensor": Pictures("tensor"),
    "array": Pictures("array"),
    "dict": Pictures("dict"),
    "attribute": Pictures(labels="attribute"),
    "subset": Subset(Pictures(labels="attribute"), range(N)),
    "concat": ConcatDataset([Subset(Pictures(labels="attribute"), range(5)),
                             Subset(Pictures(labels="attribute"), range(5, N))]),
    "hugging face": Hugging(),
    "list of pairs": PAIRS,
    "pixels and labels": (PIXELS, LABELS),
    "channels last": (PIXELS.permute(0, 2, 3, 1).numpy(), LABELS.numpy()),
    "tensor data set": TensorDataset(PIXELS, LABELS),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels_and_labels(form: str) -> None:
    images = from_python(FORMS[form], "train")
    assert torch.equal(pixels_of(images), PIXELS)
    assert images.labels is not None
    assert images.labels.tolist() == LABELS.tolist()
    named = form in ("attribute", "subset", "concat", "hugging face")
    assert images.classes == (("ant", "bee", "cat") if named else ("0", "1", "2"))
    assert images.name.startswith("python:")
    # The run's normalization is that of these pixels.
    np.testing.assert_allclose(images.mean, PIXELS.float().mean(dim=(0, 2, 3)) / 255, atol=1e-3)


@pytest.mark.parametrize("data", [Pictures(labels=None), PIXELS, [pil(i) for i in range(N)]])
def test_without_labels(data: Any) -> None:
    images = from_python(data, "train")
    assert images.labels is None
    assert torch.equal(pixels_of(images), PIXELS)


def test_gray_pixels_are_repeated() -> None:
    images = from_python(PIXELS[:, :1], "train")
    assert torch.equal(pixels_of(images), PIXELS[:, :1].repeat(1, 3, 1, 1))


def test_paths_with_and_without_labels(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(N)]
    for i, path in enumerate(paths):
        pil(i).save(path)
    assert torch.equal(pixels_of(from_python(paths, "train")), PIXELS)
    labeled = from_python([(str(p), "ab"[i % 2]) for i, p in enumerate(paths)], "train")
    assert labeled.classes == ("a", "b")
    with pytest.raises(unmix.UserError, match=r"data: there is no file .*none.png"):
        from_python([*paths, tmp_path / "none.png"], "train")


def test_arrays_of_paths_and_lists_of_names_are_as_lists_and_numbers(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(N)]
    for i, path in enumerate(paths):
        pil(i).save(path)
    for dtype in (str, bytes, object):
        assert torch.equal(pixels_of(from_python(np.array(paths, dtype), "train")), PIXELS)
    names = [["ant", "bee", "cat"][i] for i in LABELS.tolist()]
    table = np.array([paths, names]).T
    for data in (table, (PIXELS, names), (PIXELS.numpy(), np.array(names))):
        images = from_python(data, "train")
        assert images.classes == ("ant", "bee", "cat")
        assert torch.equal(images.labels, LABELS)  # type: ignore[arg-type]
        assert torch.equal(pixels_of(images), PIXELS)


def test_labels_of_paths_are_as_those_of_other_data(tmp_path: Path) -> None:
    """Each tensor was a class of its own, and an array's -1 a class."""
    paths = [tmp_path / f"{i}.png" for i in range(N)]
    for i, path in enumerate(paths):
        pil(i).save(path)
    given = [LABELS, LABELS.numpy(), list(LABELS), LABELS.tolist()]
    for labels in given:
        images = from_python(list(zip(paths, labels, strict=True)), "train")
        assert images.classes == ("0", "1", "2")
        assert torch.equal(images.labels, LABELS)  # type: ignore[arg-type]
        assert images.notes == ()


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (LABELS.numpy() - 1, "some are negative"),
        ([*LABELS[1:].tolist(), None], "they must be whole numbers or names"),
        (LABELS.numpy() / 2, "they must be whole numbers or names"),
    ],
)
@pytest.mark.parametrize("form", ["paths", "pictures", "attribute"])
def test_labels_that_are_not_used_are_told(
    form: str, labels: Any, why: str, tmp_path: Path
) -> None:
    data: Any = [(pil(i), labels[i]) for i in range(N)]
    if form == "paths":
        for i in range(N):
            pil(i).save(tmp_path / f"{i}.png")
        data = [(tmp_path / f"{i}.png", labels[i]) for i in range(N)]
    if form == "attribute":
        data = Pictures(labels=None)
        data.targets = labels
    images = from_python(data, "train")
    assert images.labels is None
    if form == "pictures" and isinstance(labels[0], float):  # no label: what an item has besides
        assert images.notes == ()
        return
    (note,) = images.notes
    assert note.startswith(f"note: the labels of data are not used: {why}")


def test_test_images_have_the_classes_of_the_training_images() -> None:
    train = from_python(Pictures(labels="attribute"), "train")
    test = evaluation_images([(pil(i), ["cat", "ant"][i % 2]) for i in range(4)], train)
    assert test.classes == ("ant", "bee", "cat")
    assert test.labels is not None
    assert test.labels.tolist() == [2, 0, 2, 0]
    by_number = evaluation_images((PIXELS[:4], torch.tensor([2, 0, 1, 1])), train)
    assert by_number.labels is not None
    assert by_number.labels.tolist() == [2, 0, 1, 1]
    with pytest.raises(unmix.UserError, match="test_data: has a class 'dog'"):
        evaluation_images([(pil(0), "dog"), (pil(1), "ant")], train)
    with pytest.raises(unmix.UserError, match="test_data: has no labels"):
        evaluation_images(PIXELS, train)
    with pytest.raises(unmix.UserError, match="test_data: data has no labels"):
        evaluation_images((PIXELS, LABELS), from_python(PIXELS, "train"))


def test_a_number_is_no_index_where_classes_are_numbers() -> None:
    """It became the class of that index: the second, `2`."""
    train = from_python((PIXELS, LABELS // 2 * 2), "train")
    assert train.classes == ("0", "2")
    with pytest.raises(unmix.UserError, match="test_data: has a class '1', which data does not"):
        evaluation_images((PIXELS[:4], torch.tensor([0, 1, 0, 1])), train)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(PAIRS)


class Table:
    """As of pandas: its keys are the names of columns."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, key: Any) -> Any:
        return {"path": ["a.png"] * N}[key]


class Floats(Pictures):
    def __getitem__(self, i: int) -> Any:
        return PIXELS[i] / 255, 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PIXELS / 255, r"data: torch.float32 \(24, 3, 12, 12\) must be uint8.*255 \* x"),
        (PIXELS.numpy().astype(np.float64), "data: float64"),
        (PIXELS[:, :, :, :3], r"\(24, 3, 12, 3\) is ambiguous"),
        (PIXELS[:, 0], r"\(24, 12, 12\) is not \(N, C, H, W\) or \(N, H, W, C\)"),
        (PIXELS.repeat(1, 2, 1, 1), "with 1 or 3 channels"),
        (Floats(), r"data\[0\]: .*float32.*leave ToTensor, Normalize"),
        (Stream(), "data: a Stream cannot be indexed by integers"),
        (DataLoader(Pictures()), "a DataLoader; give its data set, data=loader.dataset"),
        ({"train": 1, "test": 2}, r"dict of train, test.*data=x\['train'\], 'test' as test_data"),
        ([], "data: holds no images"),
        ([1, 2], r"data\[0\]: its picture: is a int"),
        ([{"a": pil(0)}], "its items have a, of which none"),
        (7, "data: a int cannot be indexed"),
        ((PIXELS, LABELS[:5]), r"its labels are torch.int64 \(5,\)"),
        ((PIXELS, ["cat"]), r"its labels are object \(1,\); they must be whole numbers or names"),
        ((PIXELS, 5), r"its labels are object \(\); they must be"),
        (np.full((4, 3, 9, 9), None), "its picture: is a list; give a PIL image"),
        ([np.full((9, 9, 3), None)], r"its picture: object \(9, 9, 3\) must be uint8"),
        (Table(), "data: a Table without an item 0; its items must be numbered"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(data: Any, message: str) -> None:
    with pytest.raises(unmix.UserError, match=message) as found:
        unmix.pretrain(data=data, run="never", **TINY)
    assert "\n" not in str(found.value)
    assert not Path("never").exists()


def test_test_data_goes_with_data_of_python(tmp_path: Path) -> None:
    with pytest.raises(unmix.UserError, match="test_data: goes with data that is given in Python"):
        unmix.pretrain(data="digits", test_data=PAIRS, run=tmp_path / "a", **TINY)


def test_a_large_data_set_without_targets_is_not_read_for_its_labels() -> None:
    data = Pictures()
    data.n = 20_001
    data.__class__ = type("Large", (Pictures,), {"__getitem__": lambda s, i: (pil(i % N), 1)})
    images = from_python(data, "train")
    assert images.labels is None
    assert "attribute `targets`" in images.notes[0]


def test_what_is_broken_is_skipped_by_its_number() -> None:
    class Broken(Pictures):
        def __getitem__(self, i: int) -> Any:
            if i == 5:
                raise OSError("image file is truncated")
            return super().__getitem__(i)

    images = from_python(Broken(labels=None), "train")
    read_uint8(images, range(N), SIDE)
    assert images.skipped.line().endswith("python:Broken[5]: image file is truncated")  # type: ignore[attr-defined]


class Runs:
    def __init__(self) -> None:
        self.function = lambda: None

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return pil(i)


def test_what_cannot_be_sent_to_workers_is_said_where_they_are_spawned(monkeypatch: Any) -> None:
    images = from_python(Runs(), "train")
    check_sendable(images, None)
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda: "spawn")
    check_sendable(images, 0)
    with pytest.raises(unmix.UserError, match=r"workers: .*cannot be sent.*workers=0"):
        check_sendable(images, 2)


def test_a_run_on_a_data_set_is_measured_and_says_where_its_images_were_from(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    results = unmix.pretrain(data=Pictures(), test_data=PAIRS[:9], run=run, **TINY)
    assert results.data == "python:Pictures"
    assert {row.protocol for row in results.evaluations} == {"knn", "linear"}
    assert results.evaluations[0].details["test_images"] == 9
    text = RunFolder(run).config.read_text()
    assert "data: python:Pictures" in text
    assert "# The images were given in Python" in text
    assert unmix.pretrain(data=Pictures(), run=run, **TINY).evaluations  # complete: nothing to do
    with pytest.raises(unmix.UserError, match=r"run: .+ holds a complete run on other images: the"):
        unmix.pretrain(data=Pictures(n=9), run=run, **TINY)
    with pytest.raises(unmix.UserError, match=r"given in Python \(python:Pictures\).*give a fol"):
        knn(run, device="cpu")
    folder = tmp_path / "pictures"
    for split in ("train", "test"):
        for i in range(N):
            (folder / split / str(i % 3)).mkdir(parents=True, exist_ok=True)
            pil(i).save(folder / split / str(i % 3) / f"{i}.png")
    row = knn(run, device="cpu", data=str(folder), k=3)
    assert row["test_images"] == N


def test_a_run_is_the_same_from_files_as_from_their_data_set(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:02}.png" for i in range(N)]
    for i, path in enumerate(paths):
        pil(i).save(path)
    words = {**TINY, "evaluate": False, "resident": "no"}
    a = unmix.pretrain(data=paths, run=tmp_path / "a", **words)
    b = unmix.pretrain(data=Pictures(labels=None), run=tmp_path / "b", **words)
    c = unmix.pretrain(
        data=Pictures("tensor", labels=None), run=tmp_path / "c", **{**words, "workers": 1}
    )
    assert a.training["loss"] == b.training["loss"] == c.training["loss"]
    encoders = [unmix.load_encoder(tmp_path / name) for name in "abc"]
    features = [encoder.encode(PIXELS) for encoder in encoders]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


def test_the_command_line_says_that_it_cannot_see_them(refuse: Any) -> None:
    line = refuse("pretrain", "--data", "python:Pictures")
    assert "given in Python (python:Pictures); to go on, give them again" in line


def test_an_interrupted_run_goes_on_with_the_same_data_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {**TINY, "method": "insdis", "negatives": 8, "epochs": 2, "evaluate": False}
    words = {k: v for k, v in words.items() if k != "hidden"}
    whole = unmix.pretrain(data=Pictures(), run=tmp_path / "whole", **words)
    from unmix.training.loop.callbacks import Reporter

    def stop(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(RuntimeError, match="power cut"):
            unmix.pretrain(data=Pictures(), run=tmp_path / "cut", **words)
    other = Pictures(n=N - 1)
    with pytest.raises(unmix.UserError, match="the data has 23 images, the run had 24"):
        unmix.pretrain(data=other, run=tmp_path / "cut", **words)
    resumed = unmix.pretrain(data=Pictures(), run=tmp_path / "cut", **words)
    assert resumed.training["loss"] == whole.training["loss"]


def test_the_fingerprint_knows_pixels_unless_they_change_by_themselves() -> None:
    class Random(Pictures):
        def __getitem__(self, i: int) -> Any:
            return Image.fromarray(np.random.default_rng().integers(0, 256, (8, 8, 3), np.uint8))

    turned = [(image.rotate(180), label) for image, label in PAIRS]
    first = fingerprint(from_python(PAIRS, "train"))
    assert fingerprint(from_python(PAIRS, "train")) == first
    assert fingerprint(from_python(turned, "train")) != first
    assert fingerprint(from_python(Random(), "train")) == fingerprint(
        from_python(Random(), "train")
    )


def test_limit_mean_and_std_are_as_for_any_data(tmp_path: Path) -> None:
    result = unmix.pretrain(
        data=Pictures(), run=tmp_path / "a", limit=10, mean=(0.5,) * 3, std=(0.2,) * 3,
        **{**TINY, "evaluate": False},
    )  # fmt: skip
    assert result.training["steps"] == 2
    assert unmix.load_encoder(tmp_path / "a").facts["mean"] == [0.5, 0.5, 0.5]


def test_the_statistics_are_those_of_other_ways_in() -> None:
    images = load("digits", "train").evenly(30)
    given = from_python(images.images, "train")  # type: ignore[attr-defined]
    assert (given.mean, given.std) == estimate_mean_std(images)


class Changed(Dataset):
    """As torchvision's: the items have other labels than the attribute `targets`."""

    def __init__(self, how: str, n: int = N) -> None:
        self.targets = torch.arange(n) % 4 if how == "tensor" else [i % 4 for i in range(n)]
        self.classes = ["ant", "bee", "cat", "dog"]
        if how == "names":
            self.targets = [self.classes[i % 4] for i in range(n)]
        self.how, self.n = how, n
        if how in ("target_transform", "tensor"):
            self.target_transform = lambda label: label // 2

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return pil(i % N), i % 4 // 2


@pytest.mark.parametrize("within", ["itself", "subset", "concat"])
@pytest.mark.parametrize("how", ["target_transform", "tensor", "in its items", "names"])
def test_labels_are_those_that_the_items_have(how: str, within: str) -> None:
    """Those of `targets` were taken, which a `target_transform` or the items change."""
    data: Any = Changed(how)
    order = list(range(N)) if within == "itself" else list(range(N))[::-1]
    if within != "itself":
        data = Subset(data, order)
    if within == "concat":
        data = ConcatDataset([Subset(data, range(5)), Subset(data, range(5, N))])
    images = from_python(data, "train")
    assert images.labels is not None
    assert images.labels.tolist() == [i % 4 // 2 for i in order]
    assert images.classes == ("0", "1")
    told = any("the labels of data are those of its items" in note for note in images.notes)
    assert told == (how in ("in its items", "names"))


def test_labels_that_many_items_contradict_are_left_out() -> None:
    images = from_python(Changed("in its items", 20_001), "train")
    assert images.labels is None
    (note,) = images.notes
    assert note.startswith("note: the labels of data are not used: item ")
    assert note.endswith(", and reading all 20,001 would take long")


def test_names_that_are_listed_for_numbers_stay_names() -> None:
    data = Pictures()
    data.targets = [["ant", "bee", "cat"][i] for i in LABELS.tolist()]
    images = from_python(data, "train")
    assert (images.classes, images.notes) == (("ant", "bee", "cat"), ())


def test_a_broken_item_contradicts_no_label() -> None:
    class Broken(Pictures):
        def __getitem__(self, i: int) -> Any:
            if i == N // 2:
                raise OSError("image file is truncated")
            return super().__getitem__(i)

    assert from_python(Broken(labels="attribute"), "train").classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("value", [0, 7, 255])
def test_pixels_of_one_value_are_refused(value: int) -> None:
    with pytest.raises(unmix.UserError, match=f"have one value .{value}.; there is nothing to lea"):
        unmix.pretrain(data=np.full((8, 16, 16, 3), value, np.uint8), run="never", **TINY)
