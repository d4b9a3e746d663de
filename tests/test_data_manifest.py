"""A large folder is listed once: what is kept, how it is known to be old, and what may go wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unmix.config import Settings
from unmix.data import kept, load, manifest
from unmix.data.listing import Folder, list_tree
from unmix.data.manifest import Manifest
from unmix.training.run.parts import load_split


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manifest, "_FEWEST", 1)
    monkeypatch.setattr(kept, "_SETTLED", 0)
    for name in "abc":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "data" / name / f"{i}.jpg").touch()
    (tmp_path / "data" / "read.me").touch()
    return tmp_path / "data"


def listed(root: Path, cache: Path) -> tuple[list[str], list[str], list[str]]:
    """Paths, the folders that were read from the disk, and notes."""
    read = []
    scan = os.scandir

    def note(path: str) -> object:
        read.append(os.path.relpath(path, root))
        return scan(path)

    known = Manifest(root, cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", note)
        folder = Folder(root, manifest=known)
        found = list_tree(folder)
    lines = folder.passed.lines()
    known.save()
    assert lines == ["ignored, since they are not images: 1 .me"]
    return found.paths, sorted(read), known.notes


def test_only_folders_that_have_changed_are_listed_again(root, tmp_path):
    cache = tmp_path / "cache"
    first, read, notes = listed(root, cache)
    assert (len(first), read, notes) == (9, [".", "a", "b", "c"], [])
    again, read, notes = listed(root, cache)
    assert (again, read) == (first, [])
    assert "9 names are from" in notes[0]
    assert "--no-manifest lists every folder again" in notes[0]
    (root / "b" / "0.jpg").unlink()
    (root / "b" / "new.jpg").touch()
    changed, read, _ = listed(root, cache)
    assert read == ["b"]
    assert sorted({*changed} ^ {*first}) == [str(root / "b" / "0.jpg"), str(root / "b" / "new.jpg")]
    (root / "d").mkdir()
    (root / "d" / "0.jpg").touch()
    more, read, _ = listed(root, cache)
    assert (len(more), read) == (10, [".", "d"])


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"x\n{}", b"\xff" * 100, b"[" * 100_000], ids=["empty", "cut", "sum",
                                                                         "bytes", "deep"]
)  # fmt: skip
def test_a_damaged_manifest_is_ignored_and_written_again(root, tmp_path, damage):
    cache = tmp_path / "cache"
    first, _, _ = listed(root, cache)
    (file,) = (cache / "listings").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage)
    again, read, notes = listed(root, cache)
    assert (again, len(read)) == (first, 4)
    assert "is damaged; the folder is listed again" in notes[0]
    assert file.read_bytes() == whole


def test_a_name_that_leads_elsewhere_is_damage(root, tmp_path):
    cache = tmp_path / "cache"
    listed(root, cache)
    (file,) = (cache / "listings").iterdir()
    body = file.read_bytes().partition(b"\n")[2].replace(b'"0.jpg"', b'"../x"')
    file.write_bytes(kept.checksum(body) + b"\n" + body)
    paths, _, notes = listed(root, cache)
    assert "is damaged" in notes[0]
    assert not any(".." in path for path in paths)


def test_what_another_user_wrote_is_not_read(root, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    listed(root, cache)
    (file,) = (cache / "listings").iterdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if file.stat().st_uid == 0:
        os.chown(file, 54321, -1)
    assert "is another user's and is not read" in listed(root, cache)[2][0]


def test_a_cache_that_cannot_be_written_costs_a_note(root, tmp_path):
    (tmp_path / "cache").write_text("a file")
    paths, _, notes = listed(root, tmp_path / "cache")
    assert len(paths) == 9
    assert "the names of the files are not kept" in notes[-1]


def test_links_run_folders_and_fifos_are_looked_at_each_time(root, tmp_path):
    cache = tmp_path / "cache"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "0.jpg").touch()
    os.symlink(tmp_path / "other", root / "d")
    listed(root, cache)
    _, read, _ = listed(root, cache)
    assert read == ["."]  # what d leads to may change without a trace in its folder


def test_a_folder_that_has_just_changed_is_not_kept(root, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "_SETTLED", 10**12)
    listed(root, tmp_path / "cache")
    assert len(listed(root, tmp_path / "cache")[1]) == 4


def test_small_folders_leave_nothing_and_the_setting_turns_it_off(root, tmp_path, monkeypatch):
    monkeypatch.setenv("UNMIX_CACHE", str(tmp_path / "cache"))
    from PIL import Image

    for path in root.rglob("*.jpg"):
        Image.new("RGB", (4, 4), (path.stat().st_ino % 255, 9, 9)).save(path)
    words = {"data": str(root), "method": "simclr"}
    load_split(Settings.of({**words, "manifest": False}).run, "train")
    load(root, "train")
    assert not (tmp_path / "cache").exists()
    assert load_split(Settings.of(words).run, "train").notes
    assert len([*(tmp_path / "cache" / "listings").iterdir()]) == 1
    monkeypatch.setattr(manifest, "_FEWEST", 10_000)
    (tmp_path / "cache" / "listings").rename(tmp_path / "gone")
    load_split(Settings.of(words).run, "train")
    assert not (tmp_path / "cache" / "listings").exists()
