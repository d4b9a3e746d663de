"""Packs that strangers have made: everything in them is checked before it is used."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mutations import array_variants, json_variants
from unmix.commands.pack import pack
from unmix.data import BrokenImage
from unmix.data.imageset import Skipped
from unmix.data.packed import MANIFEST, PackedImages, load_pack
from unmix.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of ten training images of two classes."""
    folder = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(0)
    for i in range(12):
        path = folder / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    pack(str(folder / "images"), out=str(folder / "pack"), say=lambda _: None)
    return folder / "pack"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the pack, to be damaged."""
    shutil.copytree(made, tmp_path / "pack")
    return tmp_path / "pack"


def used(folder: Path) -> str:
    """Read everything of a pack; what was wrong, in one line, or nothing."""
    line = ""
    try:
        images = load_pack(folder, "train", Skipped())
        assert isinstance(images, PackedImages)
        for i in range(len(images)):
            with suppress(BrokenImage):
                images.decode(i)
        if images.labels is not None:
            assert images.classes is not None
            assert len([images.classes[int(label)] for label in images.labels]) == len(images)
    except UserError as error:
        line = str(error)
        assert str(folder) in line
    assert "\n" not in line
    assert len(line) < 600
    return line


def test_every_wrong_manifest_is_one_line_that_names_it(folder: Path) -> None:
    path = folder / MANIFEST
    original = path.read_bytes()
    assert used(folder) == ""
    wrong = 0
    for name, content in json_variants(original):
        path.write_bytes(content)
        try:
            line = used(folder)
        except Exception as error:
            raise AssertionError(name) from error
        wrong += bool(line)
        named = ("pack.json", ".npz", "this shard", ".tar")
        assert not line or any(word in line for word in named), line
    assert wrong > 300


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def test_every_wrong_index_is_one_line_that_names_it(folder: Path) -> None:
    path = folder / "train.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    wrong = 0
    for name, content in array_variants(arrays):
        save(path, content)
        try:
            wrong += bool(used(folder))
        except Exception as error:
            raise AssertionError(name) from error
    assert wrong > 90


def test_an_index_cut_or_changed_anywhere_is_one_line(folder: Path) -> None:
    path = folder / "train.npz"
    original = path.read_bytes()
    random = np.random.default_rng(0)
    for i in range(200):
        content = bytearray(original)
        if i % 2:
            del content[int(random.integers(len(content))) :]
        else:
            for at in random.integers(len(content), size=1 + i % 5):
                content[at] = random.integers(256)
        path.write_bytes(bytes(content))
        used(folder)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("shard", -1, "a shard is -1; it must be at least 0 and below 1"),
        ("shard", 1, "a shard is 1; it must be"),
        ("label", 2, "a label is 2; it must be at least 0 and below 2"),
        ("label", -1, "a label is -1; it must be"),
        ("number", 10**9, "a number is 1,000,000,000; it must be"),
        ("offset", -512, "a offset is -512; it must be at least 0"),
        ("length", 10**12, "an image lies beyond the end of its shard"),
        ("length", 2**63 - 1, "an image lies beyond the end of its shard"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(
    folder: Path, key: str, value: int, says: str
) -> None:
    with np.load(folder / "train.npz") as stored:
        arrays = dict(stored)
    arrays[key] = arrays[key].astype(np.int64)
    arrays[key][3] = value
    save(folder / "train.npz", arrays)
    assert says in used(folder)


def test_an_array_that_unpacks_to_a_terabyte_is_not_unpacked(folder: Path) -> None:
    with np.load(folder / "train.npz") as stored:
        arrays = dict(stored)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": (10**11,)}
    )
    whole = header.getvalue()
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(folder / "train.npz", "w", compression) as archive:
            for name, array in arrays.items():
                if name != "offset":
                    with archive.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, array)
            archive.writestr("offset.npy", whole)
        line = used(folder)
        stored_as_it_is = compression == zipfile.ZIP_STORED
        assert ("says that it has 100,000,000,000" if stored_as_it_is else "compressed") in line


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "a/b.tar", "..", "", "a\0b", "."])
def test_a_shard_elsewhere_is_not_opened(folder: Path, name: str) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["splits"]["train"]["shards"][0]["file"] = name
    (folder / MANIFEST).write_text(json.dumps(content))
    assert "it must be the name of a file in this folder" in used(folder)


def test_colors_that_cannot_be_divided_by_are_refused(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["std"] = [0.2, 1e-300, 0.2]
    (folder / MANIFEST).write_text(json.dumps(content))
    assert "std[1] is 1e-300; it must be from 0.0001 to 1" in used(folder)


def test_what_newer_versions_may_add_is_ignored(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["thumbnails"] = {"size": 32}
    content["splits"]["train"]["sorted"] = True
    (folder / MANIFEST).write_text(json.dumps(content))
    assert used(folder) == ""
