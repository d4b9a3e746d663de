"""`unmix embed`: features in a file, whatever interrupts it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runs import MOCO_RUN
from unmix.cli import main
from unmix.commands import embed, pack
from unmix.commands.finished import FinishedRun
from unmix.data import load
from unmix.embedding import chunks as chunks_module
from unmix.errors import UserError
from unmix.evaluation import LayerFeatures, load_encoder, split_features
from unmix.training import RunFolder, pretrain
from unmix.training.console import silent

SMALL: dict[str, Any] = {**MOCO_RUN, "evaluate": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "r"
    pretrain(run=str(folder), **SMALL)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of each of two classes, one of them not an image."""
    root = tmp_path_factory.mktemp("pictures")
    numbers = np.random.default_rng(0)
    for i in range(40):
        path = root / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
    (root / "a" / "04.png").write_bytes(b"no image")
    return root


def expected(run: Path, data: str | Path, splits: tuple[str, ...]) -> tuple[np.ndarray, list]:
    """Features as `unmix knn` has them, and labels."""
    finished = FinishedRun.open(run, "cpu")
    parts = [finished.features(finished.encoder.features, load(data, split)) for split in splits]
    labels = [label for part in parts if part.labels is not None for label in part.labels.tolist()]
    return torch.cat([part.features for part in parts]).numpy(), labels


def test_features_are_those_of_the_evaluation_in_every_format(run: Path, tmp_path: Path) -> None:
    features, labels = expected(run, "digits", ("train", "test"))
    for name in ("f.npz", "f.npy", "f.parquet"):
        assert embed(run, out=tmp_path / name, say=silent) == tmp_path / name
    with np.load(tmp_path / "f.npz") as file:
        found = {name: file[name] for name in file.files}
    assert np.array_equal(found["features"], features)
    assert found["labels"].tolist() == labels
    assert found["classes"].tolist() == [str(digit) for digit in range(10)]
    assert found["splits"].tolist() == ["train"] * 1437 + ["test"] * 360
    assert found["paths"][[0, 1437]].tolist() == ["digits/train/0", "digits/test/0"]
    about = json.loads(found["about"].item())
    assert (about["data"], about["backbone"], about["layer"]) == ("digits", "resnet10", None)

    assert np.array_equal(np.load(tmp_path / "f.npy"), features)
    with open(tmp_path / "f.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == found["paths"].tolist()
    assert [int(row["label"]) for row in rows] == labels
    assert rows[-1]["class"] == found["classes"][labels[-1]]

    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["path", "split", "label", "class", "features"]
    assert np.array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), features)
    assert table["label"].to_pylist() == labels
    assert json.loads(table.schema.metadata[b"unmix"]) == about
    assert not list(tmp_path.glob(".*"))


def test_a_folder_has_paths_classes_and_broken_images(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f.npz"
    words = ["embed", run, "--data", pictures, "--out", out, "--device", "cpu", "--threads", 1]
    assert main([str(word) for word in words]) == 0
    features, labels = expected(run, pictures, ("train", "test"))
    with np.load(out) as file:
        assert np.array_equal(file["features"], features)
        assert file["labels"].tolist() == labels
        assert len(file["paths"]) == 39
        assert all(Path(path).is_file() for path in file["paths"])
        kinds = [Path(path).parent.name for path in file["paths"]]
        assert [file["classes"][label] for label in file["labels"]] == kinds
    text = capsys.readouterr().out
    assert "Skipped 1 image file that cannot be read: " in text
    assert "39 x 64" in text
    with open(f"{out}.skipped.csv", newline="") as listed:
        assert [Path(row["path"]).name for row in csv.DictReader(listed)] == ["04.png"]


def test_a_listing_of_unreadable_images_is_of_these_features(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    out, listed = tmp_path / "f.npy", tmp_path / "f.npy.skipped.csv"
    embed(run, data=str(pictures), out=out, say=silent)
    assert listed.is_file()
    good = str(shutil.copytree(pictures / "b", tmp_path / "good"))
    embed(run, data=good, out=out, overwrite=True, say=silent)
    assert not listed.exists()
    listed.write_text("mine")
    out.unlink()
    (tmp_path / "f.csv").unlink()
    with pytest.raises(UserError, match=r"f.npy.skipped.csv exists; give another name"):
        embed(run, data=good, out=out, say=silent)


def test_images_that_the_run_was_not_trained_on_are_told(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    def told(folder: Path, **given: Any) -> list[str]:
        lines: list[str] = []
        embed(folder, out=tmp_path / "f.npz", overwrite=True, say=lines.append, **given)
        return [line for line in lines if line.startswith("note: ")]

    limited = "note: these are all 1,437 training images; the run was trained with --limit 100"
    assert told(run) == [limited]
    assert told(run, split="test") == []
    data = shutil.copytree(pictures, tmp_path / "data")
    own = tmp_path / "own"
    words = {**SMALL, "data": str(data), "limit": None, "batch_size": 18, "queue_size": 36}
    pretrain(run=str(own), **words)
    assert told(own) == []
    shutil.copy(data / "a" / "00.png", data / "a" / "99.png")
    changed = "note: the data has 37 images, the run had 36; the splits are those of the data as it"
    assert told(own) == [f"{changed} is now"]
    assert told(own, data=str(pictures)) == []  # other data, which the run never had


def test_features_of_more_than_8_bits_say_their_range_and_encode_repeats_them(
    run: Path, tmp_path: Path
) -> None:
    """`encode` took 0 to 65,535 without a word where `embed` took the range of the images."""
    numbers = np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    for i in range(6):
        values = numbers.integers(0, 4081, (12, 12)).astype(np.uint16)
        values[0, :2] = 0, 4080
        Image.fromarray(values).save(tmp_path / f"deep/{i}.png")
    embed(run, data=str(tmp_path / "deep"), out=tmp_path / "f.npz", say=silent)
    with np.load(tmp_path / "f.npz") as file:
        features, about = file["features"], json.loads(file["about"].item())
    assert about["range"] == [0, 4080]
    encoder = load_encoder(run)
    again = encoder.encode(tmp_path / "deep", range=about["range"])
    np.testing.assert_allclose(again.numpy(), features, atol=1e-4)
    unknown = "0 to 65,535 become black to white"
    with pytest.warns(UserWarning, match=unknown):
        encoder.encode(tmp_path / "deep")
    with pytest.warns(UserWarning, match=unknown):
        encoder.transform(Image.open(tmp_path / "deep/0.png"))
    for wrong in ((4080, 0), (1, 2, 3), "x"):
        with pytest.raises(UserError, match="range"):
            encoder.encode(tmp_path / "deep", range=wrong)  # type: ignore[arg-type]


def test_unlabeled_images_packs_and_an_encoder_alone(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    flat = shutil.copytree(pictures / "b", tmp_path / "flat")
    encoder = shutil.copy(run / "encoder.safetensors", tmp_path)
    embed(encoder, data=str(flat), out=tmp_path / "flat.npz", say=silent)
    with np.load(tmp_path / "flat.npz") as file:
        assert set(file.files) == {"features", "paths", "splits", "about"}
        alone = file["features"]
    embed(run, data=str(flat), out=tmp_path / "run.npz", say=silent)
    with np.load(tmp_path / "run.npz") as file:
        plain = file["features"]
    # An encoder alone does not know the run's precision.
    np.testing.assert_allclose(alone, plain, atol=0.05)
    packed = tmp_path / "packed"
    pack(str(flat), out=str(packed), say=silent)
    embed(run, data=str(packed), out=tmp_path / "packed.npz", say=silent)
    with np.load(tmp_path / "packed.npz") as file:
        assert np.array_equal(file["features"], plain)
        assert sorted(Path(path).name for path in file["paths"]) == sorted(os.listdir(flat))
    parquet = pytest.importorskip("pyarrow.parquet")
    embed(run, data=str(flat), out=tmp_path / "flat.parquet", say=silent)
    assert parquet.read_table(tmp_path / "flat.parquet").column_names == [
        "path", "split", "features",
    ]  # fmt: skip


def test_a_layer_another_type_and_one_split(run: Path, tmp_path: Path) -> None:
    encoder = FinishedRun.open(run, "cpu").encoder
    layer = LayerFeatures(encoder.backbone, "layer2", 8)
    images = load("digits", "test")
    wanted = split_features(layer, images, encoder.views.plain, 8).features
    out = tmp_path / "f.npy"
    embed(run, out=out, split="test", layer="layer2", dtype="float16", say=silent)
    found = np.load(out)
    assert found.dtype == np.float16
    assert np.array_equal(found, wanted.numpy().astype(np.float16))
    embed(run, out=tmp_path / "p.npy", split="test", features="projector", say=silent)
    assert np.load(tmp_path / "p.npy").shape == (360, 128)


def test_features_that_half_precision_cannot_hold_are_refused(run: Path, tmp_path: Path) -> None:
    large = tmp_path / "run"
    shutil.copytree(run, large)
    encoder = load_encoder(large)
    with torch.no_grad():
        for name, weight in encoder.backbone.named_parameters():
            weight += 1e6 * name.endswith("bn2.bias")
    RunFolder(large).write_encoder(encoder.backbone, encoder.facts)
    with pytest.raises(UserError, match=r"too large for float16, .* 65504; give --dtype float32"):
        embed(large, out=tmp_path / "f.npy", split="test", dtype="float16", say=silent)
    embed(large, out=tmp_path / "g.npy", split="test", dtype="float32", say=silent)


# --- interrupted --------------------------------------------------------------------------------


class KilledError(BaseException):
    """Not an exception that anything handles."""


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "_MOST_ROWS", 10)


def test_a_killed_one_goes_on_and_ends_as_an_undisturbed_one(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    given: dict[str, Any] = {"data": str(pictures), "batch_size": 5, "say": silent}
    embed(run, out=tmp_path / "whole.npy", **given)

    def killing(name: str, owner: Any, count: int) -> Callable[..., Any]:
        original, calls = getattr(owner, name), [0]

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] > count:
                raise KilledError
            return original(*args, **kwargs)

        return wrapped

    out = tmp_path / "f.npy"
    places: list[tuple[Any, str, int]] = [
        (chunks_module.Chunks, "save", 0),
        (chunks_module.Chunks, "save", 1),
        (chunks_module.Chunks, "save", 1),
        (os, "replace", 0),  # before the result is complete
        (chunks_module.Path, "replace", 1),  # after the first of its two files has been moved
        (chunks_module.Chunks, "remove", 0),
    ]
    encoded: list[str] = []
    for owner, name, count in places:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killing(name, owner, count))
            with pytest.raises(KilledError):
                embed(run, out=out, **{**given, "say": encoded.append})
    embed(run, out=out, **given)
    assert any("continuing: 20 of 40" in line for line in encoded)
    for suffix in (".npy", ".csv"):
        assert out.with_suffix(suffix).read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert (tmp_path / "f.npy.skipped.csv").read_bytes() == (
        tmp_path / "whole.npy.skipped.csv"
    ).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_process_that_is_killed_leaves_no_file_and_the_next_one_goes_on(
    run: Path, tmp_path: Path
) -> None:
    out, partial = tmp_path / "f.npz", tmp_path / ".f.npz.partial"
    code = (
        "import sys, time; from unmix.commands import embed; from unmix.embedding import chunks\n"
        "chunks._MOST_ROWS = 100; save = chunks.Chunks.save\n"
        "chunks.Chunks.save = lambda *a: (save(*a), time.sleep(0.3))\n"
        "embed(sys.argv[1], out=sys.argv[2], batch_size=100)"
    )
    words = [sys.executable, "-c", code, str(run), str(out)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not (partial / "chunk-000001.npz").exists() and time.monotonic() < end:
            time.sleep(0.02)
        with pytest.raises(UserError, match="another process is writing it"):
            embed(run, out=out, say=silent)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks_module, "_MOST_ROWS", 100)
        embed(run, out=out, batch_size=100, say=lines.append)
    assert any(line.startswith("continuing: ") for line in lines)
    with np.load(out) as file:
        features, _ = expected(run, "digits", ("train", "test"))
        np.testing.assert_allclose(file["features"], features, atol=1e-5)


def test_what_was_begun_otherwise_is_not_continued(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    data = shutil.copytree(pictures, tmp_path / "data")
    out = tmp_path / "f.npz"
    given: dict[str, Any] = {"data": str(data), "batch_size": 5, "out": out, "say": silent}
    save = chunks_module.Chunks.save

    def twice(self: Any, number: int, chunk: Any) -> None:
        if number == 2:
            raise KilledError
        save(self, number, chunk)

    def begun() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(chunks_module.Chunks, "save", twice)
            with pytest.raises(KilledError):
                embed(run, overwrite=True, **given)

    begun()
    with pytest.raises(UserError, match="an unfinished one with layer None instead of 'layer1'"):
        embed(run, layer="layer1", **given)
    (data / "a" / "00.png").write_bytes((data / "a" / "00.png").read_bytes() + b"more")
    with pytest.raises(UserError, match="its images have changed"):
        embed(run, **given)
    embed(run, overwrite=True, **given)
    assert out.exists()


def test_a_full_disk_leaves_nothing_half_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch)
    out = tmp_path / "f.npz"
    given: dict[str, Any] = {"split": "test", "batch_size": 100, "say": silent}
    with monkeypatch.context() as patch:
        usage = shutil._ntuple_diskusage(10, 10, 1000)  # type: ignore[attr-defined]
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"need 0.2 MiB while .* disk has 0.0 MiB left"):
            embed(run, out=out, **given)
    assert not list(tmp_path.iterdir())

    writing = np.savez

    def full(file: Any, **arrays: Any) -> None:
        writing(file, **arrays)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(UserError, match="No space left on device"):
            embed(run, out=out, **given)
    assert not list(tmp_path.iterdir())

    def no_room(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", no_room)
        with pytest.raises(UserError, match="The features are kept"):
            embed(run, out=out, **given)
    assert not out.exists()
    lines: list[str] = []
    embed(run, out=out, **{**given, "say": lines.append})
    assert any("continuing: 360 of 360" in line for line in lines)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from unmix.data import TensorImages\n"
        "from unmix.hardware.devices import peak_memory\n"
        "from unmix.embedding import Chunks, NamedSet, assemble, encode_chunks\n"
        "n, out = int(sys.argv[1]), Path(sys.argv[2])\n"
        "pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8).expand(n, 3, 4, 4)\n"
        "images = TensorImages(name='x', split='train', labels=None, classes=None,\n"
        "                      mean=(0, 0, 0), std=(1, 1, 1), images=pixels)\n"
        "chunks = Chunks(out, [NamedSet(images)], {}, dim=2048, batch_size=256)\n"
        "with chunks.opened(False):\n"
        "    encode_chunks(chunks, lambda x: x.new_zeros(len(x), 2048), lambda x: x.float(), 4)\n"
        "    assemble(chunks, out, {})\n"
        "    chunks.finish()\n"
        # Not getrusage, which has the memory of the process that started this one.
        "print(peak_memory(torch.device('cpu')) // 1024)\n"
    )
    peaks = []
    for n in (8192, 24_576):
        words = [sys.executable, "-c", code, str(n), str(tmp_path / f"{n}.npz")]
        peaks.append(int(subprocess.run(words, capture_output=True, check=True).stdout) / 1024)
        with np.load(tmp_path / f"{n}.npz") as file:
            assert file["paths"].shape == (n,)
    features = (24_576 - 8192) * 2048 * 4 / 2**20
    assert peaks[1] - peaks[0] < features / 4


# --- mistakes -----------------------------------------------------------------------------------


def test_mistakes_are_one_line_each(
    run: Path, tmp_path: Path, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.npz"
    assert refuse("embed", run, "--out", tmp_path / "f.csv") == (
        f"--out: {tmp_path}/f.csv has another extension; give a file that ends in .parquet, .npz "
        f"or .npy, such as {tmp_path}/f.npz."
    )
    assert "is a folder; give a file" in refuse("embed", run, "--out", tmp_path)
    out.touch()
    line = refuse("embed", run, "--out", out)
    assert line == f"--out: {out} exists; give another name, or --overwrite to replace it."
    out.unlink()
    (tmp_path / "f.csv").touch()
    assert "f.csv exists" in refuse("embed", run, "--out", tmp_path / "f.npy")
    line = refuse("embed", run, "--out", out, "--layer", "layr4")
    assert line.startswith("--layer: the encoder has no layer 'layr4'. Did you mean 'layer4'")
    projector = ["--features", "projector", "--layer", "layer4"]
    assert "leave out --features projector" in refuse("embed", run, "--out", out, *projector)
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refuse("embed", run, "--out", out, "--data", tmp_path / "empty")
    encoder = shutil.copy(run / "encoder.safetensors", tmp_path)
    assert refuse("embed", encoder, "--out", out).startswith("--data: an encoder file does not")
    assert "out is required" in refuse("embed", run)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no")
    line = refuse("embed", run, "--out", out, "--data", broken)
    assert line.startswith(f"{broken}: no image could be read")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    line = refuse("embed", run, "--out", tmp_path / "f.parquet")
    assert "pip install 'unmix[parquet]'" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken", "empty", "encoder.safetensors", "f.csv",
    ]  # fmt: skip
