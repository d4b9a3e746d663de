"""A run knows its data: from any directory it reads the same images, or says that it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unmix.cli import main
from unmix.commands import compare, knn, probe
from unmix.data import load
from unmix.data.fingerprint import fingerprint
from unmix.errors import UserError
from unmix.results import load_results
from unmix.training import pretrain
from unmix.training.console import silent
from unmix.training.run.checkpoints import AtomicCheckpoints
from unmix.training.run.data_record import DataRecord

TINY: dict[str, Any] = {
    "batch_size": 4, "epochs": 1, "backbone": "resnet10", "width": 0.125, "size": 8,
    "knn_every": 0, "knn_k": 3, "device": "cpu", "precision": "32", "logger": "none", "workers": 0,
}  # fmt: skip
MOCO: dict[str, Any] = {"method": "moco", "queue_size": 8, "bn_splits": 1}


def images(folder: Path, count: int = 6, classes: str = "ab", seed: int = 0) -> Path:
    """A class tree of small noise, `count` images a class."""
    generator = torch.Generator().manual_seed(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = torch.randint(256, (9, 9, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`w/d/real` with images, and `w/r`, a run that was given `--data d/real/` in `w`."""
    work = tmp_path_factory.mktemp("trained") / "w"
    images(work / "d" / "real")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        pretrain(data="d/real/", run="r", **TINY, **MOCO)
    return work


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in which the run's paths are those of the copy, seen from another directory.

    In that directory `d/real` holds other images.
    """
    copy = shutil.copytree(trained, tmp_path / "w")
    config = copy / "r" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), str(copy)))
    images(tmp_path / "elsewhere" / "d" / "real", count=9, seed=1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return copy


def test_the_run_keeps_an_absolute_path_and_what_was_typed(trained: Path) -> None:
    words = yaml.safe_load((trained / "r" / "config.yaml").read_text())
    assert words["data"] == str(trained / "d" / "real")
    assert words["run"] is None
    record = DataRecord.read(trained / "r")
    assert record is not None
    assert record.typed == load_results(trained / "r").data == "d/real"
    assert {name: found.images for name, found in record.splits.items()} == {"train": 10, "test": 2}
    assert record.splits["train"].classes == ("a", "b")
    files = (trained / "d" / "real").rglob("*.png")
    assert sum(found.size or 0 for found in record.splits.values()) == sum(
        file.stat().st_size for file in files
    )


def test_knn_and_probe_read_the_runs_images_from_any_directory(work: Path) -> None:
    own = knn(work / "r", k=3, device="cpu", say=silent)
    assert own["train_images"] == 10
    assert "data" not in own
    (row,) = probe(work / "r", device="cpu", say=silent)
    assert row["train_images"] == 10
    other = knn(work / "r", k=3, data="d/real", device="cpu", say=silent)
    assert (other["train_images"], other["data"]) == (16, str(Path.cwd() / "d" / "real"))


def test_changed_images_are_never_measured_as_the_runs_own(work: Path) -> None:
    before = (work / "r" / "results.json").read_bytes()
    shutil.copy(work / "d/real/a/0.png", work / "d/real/a/new.png")
    for measure in (knn, probe):
        with pytest.raises(UserError) as caught:
            measure(work / "r", device="cpu", say=silent)
        line = str(caught.value)
        assert line.startswith("--data: the data has 11 images, the run had 10; give --data with")
        assert f"or --data {work / 'd' / 'real'} to evaluate on these as other data" in line
    assert (work / "r" / "results.json").read_bytes() == before
    said: list[str] = []
    row = knn(work / "r", data=str(work / "d" / "real"), device="cpu", say=said.append)
    assert row["data"] == str(work / "d" / "real")
    assert said[0].startswith("note: the data has 11 images, the run had 10; it is evaluated as ")
    assert compare_notes(work) == []  # the test images, which the curves are of, are as they were
    for file in (work / "d" / "real").rglob("*.png"):
        file.write_bytes(file.read_bytes() + b"x")
    (note,) = compare_notes(work)
    assert note.startswith(f"There are no prediction curves: {work / 'r'}: --data: in the test ")


def compare_notes(work: Path) -> list[str]:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unmix.figures.saving.render", lambda figure, kind: b"<svg></svg>")
        compare([work / "r"], out=work / "out", device="cpu", say=lines.append)
    return [line for line in lines if line.startswith("There are no prediction curves")]


def test_images_that_were_moved_are_the_runs_own_by_their_fingerprint(work: Path) -> None:
    moved = (work / "d" / "real").rename(work / "moved")
    with pytest.raises(UserError) as caught:
        knn(work / "r", device="cpu", say=silent)
    wanted = (
        f"--data: the run's images were in {work / 'd' / 'real'}, which does not exist; give --"
    )
    assert str(caught.value).startswith(wanted)
    row = knn(work / "r", k=3, data=str(moved), device="cpu", say=silent)
    assert "data" not in row
    (row,) = probe(work / "r", data=f"{moved}/", device="cpu", say=silent)
    assert "data" not in row


def test_a_run_without_a_fingerprint_opens_with_a_note(work: Path) -> None:
    (work / "r" / "data.json").unlink()
    said: list[str] = []
    knn(work / "r", device="cpu", say=said.append)
    assert said[0].startswith(
        "note: this run is of a version that stored no fingerprint of its data"
    )


def test_a_damaged_record_is_told(work: Path, refuse: Callable[..., str]) -> None:
    for text in ("", "[]", '{"typed": "x", "splits": {"train": {}}}', '{"typed": 1, "splits": []}'):
        (work / "r" / "data.json").write_text(text)
        line = refuse("knn", work / "r")
        assert line.startswith(f"{work / 'r' / 'data.json'}: cannot be read (it is damaged: ")
        assert "if you know that the run's data is unchanged, remove the file" in line


def test_compare_tells_data_by_what_it_is_not_by_what_was_typed(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same folder typed in three ways is one data set; another of the same name is another."""
    root = work.parent
    pretrain(data=str(work / "d" / "real"), run=str(root / "again"), **TINY, **MOCO)
    pretrain(data="d/real", run=str(root / "other"), **TINY, **MOCO)
    monkeypatch.setattr("unmix.figures.saving.render", lambda figure, kind: b"<svg></svg>")
    lines: list[str] = []
    compare([work / "r", root / "again"], out=root / "out", device="cpu", say=lines.append)
    assert not any(
        line.startswith(("setting ", "condition  ")) and "data" in line.split() for line in lines
    )
    assert (root / "out" / "softness.json").exists()
    lines = []
    compare([work / "r", root / "other"], out=root / "out2", device="cpu", say=lines.append)
    assert "different settings: no comparison (data is " in lines[0]
    assert any(line.startswith("The runs are on different data") for line in lines)


# --- going on ---------------------------------------------------------------------------------


def stopped(folder: Path, data: Path, method: dict[str, Any], **words: Any) -> None:
    """A run of two epochs that was stopped after the first."""
    save = AtomicCheckpoints.save_checkpoint

    def save_and_stop(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AtomicCheckpoints, "save_checkpoint", save_and_stop)
        given = {**TINY, **method, **words, "epochs": 2}
        with pytest.raises(KeyboardInterrupt):
            pretrain(data=str(data), run=str(folder), **given)


PER_IMAGE: dict[str, dict[str, Any]] = {
    "insdis": {"method": "insdis", "negatives": 4},
    "cmc": {"method": "cmc", "negatives": 4},
    "pirl": {"method": "pirl", "negatives": 4, "grid": 2},
    "deepclusterv2": {"method": "deepclusterv2", "prototypes": (2,), "hidden": 8},
}


@pytest.mark.parametrize("method", PER_IMAGE)
def test_a_method_that_keeps_something_of_every_image_does_not_go_on_with_others(
    method: str, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    data, run = images(tmp_path / "d"), tmp_path / "r"
    stopped(run, data, PER_IMAGE[method])
    # As many images as before, so that nothing else would notice: one has another name.
    (data / "a" / "1.png").rename(data / "a" / "7.png")
    state = (run / "checkpoints" / "last.ckpt").read_bytes()
    line = refuse("pretrain", "--run", run)
    assert line.startswith("--data: the data has other images or labels at the same positions")
    assert f"; {method} stores something per image, by its id, so the run cannot" in line
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == state
    (data / "a" / "7.png").rename(data / "a" / "1.png")
    assert main(["pretrain", "--run", str(run)]) == 0


def test_other_methods_go_on_with_other_images_and_say_and_keep_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = images(tmp_path / "d"), tmp_path / "r"
    stopped(run, data, MOCO)
    shutil.copy(data / "a/0.png", data / "a/new.png")
    assert main(["pretrain", "--run", str(run)]) == 0
    clause = "the data has 11 images, the run had 10"
    assert f"warning: {clause}; resuming with the data as it is now" in capsys.readouterr().out
    content = json.loads((run / "data.json").read_text())
    assert content["splits"]["train"]["images"] == 11
    assert content["earlier"][0]["splits"]["train"]["images"] == 10
    assert load_results(run).training["data_changes"] == [clause]
    assert "data" not in knn(run, k=3, device="cpu", say=silent)


def test_a_run_goes_on_with_its_images_where_they_lie_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From another directory, with the data moved and given by a relative path; then `knn`."""
    data, run = images(tmp_path / "d"), tmp_path / "r"
    stopped(run, data, PER_IMAGE["cmc"])
    data.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--run", "r"]) == 2
    assert f"--data: the run's images were in {data}, which does not" in capsys.readouterr().err
    assert main(["pretrain", "--run", "r", "--data", "moved/"]) == 0
    assert "warning" not in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(tmp_path / "moved")
    assert "data" not in knn(run, k=3, device="cpu", say=silent)


def test_a_slash_at_the_end_and_a_way_around_are_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "d")
    run = tmp_path / "r"
    stopped(run, tmp_path / "d", MOCO)
    monkeypatch.chdir(tmp_path / "d")
    assert main(["pretrain", "--run", str(run), "--data", "../d/"]) == 0


@pytest.mark.parametrize("way", ["the same name", "--run"])
def test_a_complete_run_is_not_taken_for_one_on_other_images(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """Its results were those of the images that were given, also by its default folder's name."""
    images(work / "e" / "real", count=7, seed=1)
    shutil.copytree(work / "d", work / "copy")
    monkeypatch.chdir(work)
    words: dict[str, Any] = {"run": "r"}
    if way != "--run":
        (work / "runs").mkdir()
        (work / "r").rename(work / "runs" / "moco-real-none-seed0")
        words = {**TINY, **MOCO}
    with pytest.raises(UserError, match=r"run: .+ holds a complete run on other images: the data "):
        pretrain(data="e/real", **words)
    assert pretrain(data="copy/real/", **words).evaluations
    assert "is complete; nothing to do" in capsys.readouterr().out


def test_a_complete_run_says_that_images_of_its_folder_have_changed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing if they are as they were, or are gone."""
    more, folder = ("pretrain", "--run", str(work / "r")), work / "d"
    assert main(list(more)) == 0
    assert "note: the data has" not in capsys.readouterr().out
    file = next(folder.rglob("*.png"))
    shutil.copy(file, file.with_name("another.png"))
    assert main(list(more)) == 0
    out = capsys.readouterr().out
    assert "images, the run had" in out
    assert "give another --run" in out
    assert "is complete; nothing to do" in out
    folder.rename(work / "gone")
    assert main(list(more)) == 0
    assert "note: the data has" not in capsys.readouterr().out


# --- fingerprints -----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    change=st.sampled_from(["name", "size", "more", "fewer", "class", "swap"]),
    place=st.integers(0, 5),
)
def test_whatever_changes_changes_the_fingerprint_and_a_move_does_not(
    change: str, place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = images(tmp_path_factory.mktemp("f") / "d")
    before = [fingerprint(load(folder, split)) for split in ("train", "test")]
    moved = folder.rename(folder.parent / "another place")
    assert [fingerprint(load(moved, split)) for split in ("train", "test")] == before
    file = moved / "a" / f"{place}.png"
    if change == "name":
        file.rename(file.with_name("x.png"))
    elif change == "size":
        file.write_bytes(file.read_bytes() + b"x")
    elif change == "more":
        shutil.copy(file, file.with_name("x.png"))
    elif change == "fewer":
        file.unlink()
    elif change == "class":
        (moved / "b").rename(moved / "c")
    else:
        file.rename(moved / "b" / "x.png")
    after = [fingerprint(load(moved, split)) for split in ("train", "test")]
    clauses = [now.difference(then) for now, then in zip(after, before, strict=True)]
    assert any(clauses)


def test_images_in_memory_are_told_by_their_pixels_and_labels() -> None:
    train = load("digits", "train")
    one = fingerprint(train)
    assert fingerprint(load("digits", "train")) == one
    assert (one.images, one.size) == (1437, None)
    train.images[7, 0, 3, 3] += 1  # type: ignore[attr-defined]
    assert one.difference(fingerprint(train)) is not None


def test_a_pack_is_told_by_its_checksums(tmp_path: Path) -> None:
    images(tmp_path / "d")
    assert main(["data", "pack", str(tmp_path / "d"), str(tmp_path / "p"), "--workers", "0"]) == 0
    found = fingerprint(load(tmp_path / "p", "train"))
    assert found.images == 10
    (tmp_path / "p").rename(tmp_path / "q")
    assert fingerprint(load(tmp_path / "q", "train")) == found
