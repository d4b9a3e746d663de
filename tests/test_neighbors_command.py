"""`unmix neighbors`: a contact sheet, and near-duplicates."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runs import MOCO_RUN
from unmix.cli import main
from unmix.commands import neighbors
from unmix.commands import neighbors as command
from unmix.commands.neighbors import _search
from unmix.embedding.chunks import Chunks
from unmix.errors import UserError
from unmix.training import pretrain
from unmix.training.console import silent

SMALL: dict[str, Any] = {**MOCO_RUN, "evaluate": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "r"
    pretrain(run=str(folder), **SMALL)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures without classes; 10 is a copy of 3, and 11 nearly one of 4."""
    root = tmp_path_factory.mktemp("pictures") / "p"
    root.mkdir()
    numbers = np.random.default_rng(0)
    for i in range(12):
        pixels = numbers.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        if i >= 10:
            pixels = np.array(Image.open(root / f"{i - 7:02d}.png"))
            pixels[0, 0] ^= i - 10
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    return root


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def name(path: str) -> str:
    return Path(path).stem


def test_duplicates_and_neighbors_are_found(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "n"
    words = ["neighbours", run, "--data", pictures, "--out", out, "--k", 3, "--threshold", 0.9999]
    assert main([str(word) for word in [*words, "--device", "cpu"]]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "duplicates.csv", "index.html", "neighbors.csv", "neighbors.png",
    ]  # fmt: skip
    found = rows(out / "duplicates.csv")
    pairs = {(name(row["path_a"]), name(row["path_b"])): row for row in found}
    assert {("03", "10"), ("04", "11")} <= pairs.keys()
    assert float(pairs["03", "10"]["similarity"]) == pytest.approx(1, abs=1e-5)
    values = [float(row["similarity"]) for row in found]
    assert values == sorted(values, reverse=True)
    near = rows(out / "neighbors.csv")
    assert len(near) == 36
    first = {name(row["query"]): name(row["path"]) for row in near if row["rank"] == "1"}
    assert (first["03"], first["10"]) == ("10", "03")
    assert all(row["query"] != row["path"] for row in near)
    with Image.open(out / "neighbors.png") as sheet:
        assert sheet.info["Software"] == "unmix"  # ignored among images
        assert sheet.width > 300
    page = (out / "index.html").read_text()
    assert page.count("<img") == 48 + 2 * len(found)
    assert 'src="data:image/jpeg' in page
    assert "A dashed frame" not in page  # these pictures have no classes


def test_copies_of_training_images_among_the_test_images_are_told(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    for split, numbers in (("train", range(8)), ("test", (3, 8, 9))):
        for i in numbers:
            folder = tmp_path / "data" / split / "a"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(pictures / f"{i:02d}.png", folder / f"{split}{i}.png")
    lines: list[str] = []
    out = tmp_path / "n"
    neighbors(run, data=str(tmp_path / "data"), k=2, threshold=0.9999, out=out, say=lines.append)
    found = rows(out / "duplicates.csv")
    across = [row for row in found if row["split_a"] != row["split_b"]]
    assert ("train3", "test3") in {(name(row["path_a"]), name(row["path_b"])) for row in across}
    assert f"note: {len(across)} of these pairs are of images of different splits" in "".join(lines)


def test_queries_are_images_of_the_data_or_others(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    other = shutil.copy(pictures / "05.png", tmp_path / "other.png")
    queries = [str(pictures / "03.png"), str(other)]
    neighbors(run, data=str(pictures), query=queries, k=2, out=tmp_path / "n", say=silent)
    near = [(name(row["query"]), name(row["path"])) for row in rows(tmp_path / "n/neighbors.csv")]
    assert near[0] == ("03", "10")  # not itself
    assert near[2] == ("other", "05")  # a copy elsewhere is no image of the data


def test_a_query_of_more_than_8_bits_is_scaled_as_the_data_where_the_encoder_has_no_range(
    run: Path, tmp_path: Path
) -> None:
    """The query was scaled by 0 to 65,535: almost black, with neighbors of its own."""
    numbers = np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    for i in range(12):
        values = numbers.integers(0, 4096, (12, 12)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"deep/{i:02d}.png")
    given: dict[str, Any] = {"data": str(tmp_path / "deep"), "k": 3, "say": silent}
    neighbors(run, out=tmp_path / "own", **given)
    neighbors(run, out=tmp_path / "asked", query=[str(tmp_path / "deep/03.png")], **given)
    own, asked = (
        {
            name(row["path"]): float(row["similarity"])
            for row in rows(tmp_path / out / "neighbors.csv")
            if name(row["query"]) == "03"
        }
        for out in ("own", "asked")
    )
    assert asked == pytest.approx(own, abs=1e-4)


def test_an_interrupted_search_does_not_encode_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"split": "test", "k": 2, "images": 3, "out": tmp_path / "n"}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    module = __import__("unmix.commands.neighbors", fromlist=["_search"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "_search", stop)
        with pytest.raises(KeyboardInterrupt):
            command(run, say=silent, **given)
    monkeypatch.setattr(Chunks, "save", stop)
    neighbors(run, say=silent, **given)
    near = rows(tmp_path / "n" / "neighbors.csv")
    assert len(near) == 6
    assert {row["class"] for row in near} <= set("0123456789")
    assert not list((tmp_path / "n").glob(".*"))
    assert _search is not None
    assert torch.is_inference_mode_enabled() is False


@pytest.mark.parametrize("overwrite", [False, True])
def test_images_that_changed_after_an_interrupted_search_are_encoded_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """A copy that became another picture was still a duplicate."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(noise.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{number}.bmp")
    shutil.copy(folder / "0.bmp", folder / "5.bmp")
    given: dict[str, Any] = {"data": str(folder), "k": 2, "images": 3, "out": tmp_path / "n"}
    module = __import__("unmix.commands.neighbors", fromlist=["_search"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "_search", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            command(run, say=silent, **given)
    # Of another size, as the digest knows names and sizes.
    Image.fromarray(noise.integers(0, 255, (9, 9, 3), np.uint8)).save(folder / "5.bmp")
    if not overwrite:
        with pytest.raises(UserError, match="its images have changed since the first part"):
            neighbors(run, say=silent, **given)
        return
    neighbors(run, say=silent, overwrite=True, **given)
    assert rows(tmp_path / "n" / "duplicates.csv") == []


def test_mistakes_are_one_line_each(
    run: Path, pictures: Path, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    words = ["neighbors", run, "--data", pictures, "--out", tmp_path / "n"]
    line = refuse(*words, "--k", 12)
    assert line.startswith("--k: 12 neighbors of each image need at least 13 images, and ")
    assert "it must be at least 1 and at most 50" in refuse(*words, "--k", 0)
    assert "at most 1" in refuse(*words, "--threshold", 1.5)
    text = tmp_path / "notes.txt"
    text.write_text("not an image")
    assert refuse(*words, "--query", text).startswith(f"--query: {text}: ")
    line = refuse(*words, "--query", tmp_path / "gone.png")
    assert line == f"--query: there is no file {tmp_path}/gone.png."
    assert "is a folder" in refuse(*words, "--query", pictures)
    assert "no layer 'x'" in refuse(*words, "--layer", "x")
    (tmp_path / "empty").mkdir()
    line = refuse("neighbors", run, "--data", tmp_path / "empty", "--out", tmp_path / "n")
    assert "holds no images" in line
    assert not (tmp_path / "n").exists()
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "neighbors.csv").touch()
    assert "--overwrite to replace it" in refuse(*words)
