"""A pack holds what the folder holds, is never half one, and refuses what it must in one line."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unmix
from unmix.cli import main
from unmix.commands.pack import pack
from unmix.data import BrokenImage, PackedImages, StreamedImages, load, read_uint8
from unmix.data.packed import MANIFEST, UNFINISHED
from unmix.data.shards import ShardWriter
from unmix.errors import UserError
from unmix.training.loading.crops import FileCrops
from unmix.views import Views, ViewSettings

KINDS = ["a.jpg", "b.JPEG", "c.png", "d.gif", "e.webp"]
Refuse = Callable[..., str]


def save(path: Path, seed: int, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (side, side + 9, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise[::8, ::8]).resize((side + 9, side))
    smooth.save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes, a train/ and a val/, five formats."""
    root = tmp_path / "tree"
    for s, split in enumerate(("train", "val")):
        for c, name in enumerate(("cat", "dog")):
            for k, kind in enumerate(KINDS):
                save(root / split / name / kind, 100 * s + 10 * c + k)
    return root


def quiet(_: str) -> None:
    """Print nothing."""


def streamed(place: Path, split: str) -> StreamedImages:
    found = load(place, split)
    assert isinstance(found, StreamedImages)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what a pack holds ------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test", "pretrain"])
def test_a_pack_gives_the_images_labels_and_colors_of_its_folder(
    tree: Path, tmp_path: Path, split: str
) -> None:
    pack(str(tree), out=str(tmp_path / "out"), say=quiet)
    plain, packed = streamed(tree, split), streamed(tmp_path / "out", split)
    assert isinstance(packed, PackedImages)
    assert (packed.classes, packed.mean, packed.std) == (plain.classes, plain.mean, plain.std)
    assert torch.equal(packed.labels, plain.labels)
    assert [packed.read(i) for i in range(10)] == [plain.read(i) for i in range(10)]
    folder = "train" if split == "pretrain" else {"test": "val"}.get(split, split)
    shard = "test" if split == "test" else "train"
    assert packed.place(0) == tmp_path / "out" / f"{shard}-00000.tar" / folder / "cat" / "a.jpg"


def test_training_and_evaluation_read_the_same_pixels_from_a_pack(
    tree: Path, tmp_path: Path
) -> None:
    pack(str(tree), out=str(tmp_path / "out"), say=quiet)
    plain, packed = streamed(tree, "train"), streamed(tmp_path / "out", "train")
    views = Views(ViewSettings(), 24, plain.mean, plain.std, count=2)
    wanted = [(3, i) for i in (7, 0, 4)]
    batches = [FileCrops(images, views, 0).__getitems__(wanted) for images in (plain, packed)]
    crops = [torch.stack(batch.crops) for batch in batches if batch.crops is not None]
    assert torch.equal(*crops)
    for a, b in zip(
        read_uint8(plain, range(10), 24), read_uint8(packed, range(10), 24), strict=True
    ):
        assert torch.equal(a, b)
    few = packed.evenly(4)
    assert [few.read(i) for i in range(4)] == [packed.read(i) for i in (0, 3, 6, 9)]


def test_any_tar_reader_finds_images_classes_and_paths(tree: Path, tmp_path: Path) -> None:
    pack(str(tree), out=str(tmp_path / "out"), say=quiet)
    with tarfile.open(tmp_path / "out" / "train-00000.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert list(members)[:3] == ["000000000.jpg", "000000000.cls", "000000000.json"]
    assert members["000000001.jpg"] == (tree / "train/cat/b.JPEG").read_bytes()
    assert members["000000007.png"] == (tree / "train/dog/c.png").read_bytes()
    assert members["000000007.cls"] == b"1"
    assert json.loads(members["000000007.json"]) == {"path": "train/dog/c.png"}
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["classes"] == ["cat", "dog"]


def test_images_without_classes_have_no_test_split(
    tmp_path: Path, tree: Path, refuse: Refuse
) -> None:
    for i in range(3):
        save(tmp_path / "flat" / f"{i}.jpg", i)
    pack(str(tmp_path / "flat"), out=str(tmp_path / "out"), say=quiet)
    found = streamed(tmp_path / "out", "train")
    assert (len(found), found.labels, found.classes) == (3, None, None)
    with pytest.raises(UserError, match="no test split"):
        load(tmp_path / "out", "test")


def test_short_side_shrinks_larger_images_and_keeps_the_bytes_of_others(tmp_path: Path) -> None:
    save(tmp_path / "in" / "large.jpg", 0, side=100)
    save(tmp_path / "in" / "large.png", 1, side=100)
    save(tmp_path / "in" / "small.png", 2, side=20)
    pack(str(tmp_path / "in"), out=str(tmp_path / "out"), short_side=50, say=quiet)
    plain, packed = streamed(tmp_path / "in", "train"), streamed(tmp_path / "out", "train")
    assert [packed.decode(i).size for i in range(3)] == [(54, 50), (54, 50), (29, 20)]
    assert packed.read(2) == plain.read(2)
    for i in range(2):
        shrunk = plain.decode(i).resize((54, 50), Image.Resampling.BICUBIC)
        # In gray: of noise's colors JPEG keeps a quarter.
        found, wanted = (np.asarray(im.convert("L"), int) for im in (packed.decode(i), shrunk))
        assert np.abs(found - wanted).mean() < 2
    with tarfile.open(tmp_path / "out" / "train-00000.tar") as tar:
        assert [n for n in tar.getnames() if "json" not in n] == [
            "000000000.jpg", "000000001.jpg", "000000002.png"
        ]  # fmt: skip


def test_two_workers_write_the_shards_that_none_write(tmp_path: Path) -> None:
    for i in range(220):
        save(tmp_path / "in" / f"{i:03d}.jpg", i, side=16)
    (tmp_path / "in" / "100.jpg").write_bytes(b"broken")
    for workers in (0, 2):
        pack(str(tmp_path / "in"), out=str(tmp_path / str(workers)), workers=workers, say=quiet)
    a, b = contents(tmp_path / "0"), contents(tmp_path / "2")
    assert set(a) == set(b)
    assert a["train-00000.tar"] == b["train-00000.tar"]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is full after 10 KB."""
    monkeypatch.setattr(sys.modules["unmix.commands.pack"], "_MB", 10_000)


@pytest.mark.usefixtures("small_shards")
def test_many_shards_are_read_at_random_also_by_other_processes(tree: Path, tmp_path: Path) -> None:
    pack(str(tree), out=str(tmp_path / "out"), shard_size=1, say=quiet)
    assert len(list((tmp_path / "out").glob("train-*.tar"))) > 2
    plain, packed = streamed(tree, "train"), streamed(tmp_path / "out", "train")
    packed.read(0)
    again = pickle.loads(pickle.dumps(packed))
    for i in (9, 0, 5, 1):
        assert packed.read(i) == again.read(i) == plain.read(i)


def test_a_pack_can_be_packed_again_smaller(tree: Path, tmp_path: Path) -> None:
    pack(str(tree), out=str(tmp_path / "out"), say=quiet)
    pack(str(tmp_path / "out"), out=str(tmp_path / "small"), short_side=20, say=quiet)
    assert streamed(tmp_path / "small", "train").decode(0).size == (24, 20)
    assert streamed(tmp_path / "small", "train").place(3).name == "d.gif"


# --- damage -----------------------------------------------------------------------------------


def test_broken_images_are_left_out_named_and_counted(tree: Path, tmp_path: Path) -> None:
    for name in ("cat/b.JPEG", "dog/c.png"):
        path = tree / "train" / name
        path.write_bytes(path.read_bytes()[:200])
    said: list[str] = []
    pack(str(tree), out=str(tmp_path / "out"), say=said.append)
    said = [line for line in said if not line.startswith("split: ")]
    assert said[0].startswith("Skipped 2 image files that cannot be read, first ")
    assert "cat/b.JPEG: " in said[0]
    found = streamed(tmp_path / "out", "train")
    assert found.labels is not None
    assert found.labels.tolist() == [0] * 4 + [1] * 4
    assert [found.place(i).name for i in (1, 5)] == ["c.png", "b.JPEG"]


def test_strict_stops_at_the_first_broken_image(tree: Path, tmp_path: Path, refuse: Refuse) -> None:
    (tree / "val" / "cat" / "a.jpg").write_bytes(b"")
    line = refuse("data", "pack", tree, tmp_path / "out", "--strict")
    assert line.startswith(f"--strict: {tree}/val/cat/a.jpg: the file is empty")
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_shard_that_was_cut_or_is_gone_is_named(tree: Path, tmp_path: Path) -> None:
    pack(str(tree), out=str(tmp_path / "out"), say=quiet)
    shard = tmp_path / "out" / "train-00000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(UserError, match=r"train-00000\.tar: has .* bytes, but .* were packed"):
        load(tmp_path / "out", "train")
    assert len(load(tmp_path / "out", "test")) == 10
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00000\.tar: this shard .* cannot be read"):
        load(tmp_path / "out", "train")


def test_altered_bytes_of_a_shard_are_a_broken_image(tree: Path, tmp_path: Path) -> None:
    pack(str(tree), out=str(tmp_path / "out"), say=quiet)
    shard = tmp_path / "out" / "train-00000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(bytes(data))
    found = streamed(tmp_path / "out", "train")
    with pytest.raises(BrokenImage, match="not those that were packed"):
        found.read(0)
    found.read(1)


@pytest.mark.parametrize("name", ["train.npz", MANIFEST])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100])
def test_a_damaged_index_or_manifest_is_named(
    tree: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    pack(str(tree), out=str(tmp_path / "out"), say=quiet)
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: is damaged") as caught:
        load(tmp_path / "out", "train")
    assert "\n" not in str(caught.value)


# --- what is refused --------------------------------------------------------------------------


def test_folders_without_images_that_can_be_read_are_refused(
    tmp_path: Path, refuse: Refuse
) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refuse("data", "pack", tmp_path / "empty", out)
    assert refuse("data", "pack", tmp_path / "none", out).startswith("FOLDER: there is no folder")
    for i in range(3):
        save(tmp_path / "bad" / f"{i}.jpg", i)
        (tmp_path / "bad" / f"{i}.jpg").write_bytes(b"bad")
    assert "no image could be read" in refuse("data", "pack", tmp_path / "bad", out)
    # ImageNet's colors are known without a look at the images.
    for i in range(6):
        path = tmp_path / "wnids" / f"n0000000{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bad")
    line = refuse("data", "pack", tmp_path / "wnids", out)
    assert "no train image can be read, so nothing was packed" in line
    assert "held in memory" in refuse("data", "pack", "digits", out)
    assert not out.exists()


def test_an_output_that_exists_is_not_touched(tree: Path, tmp_path: Path, refuse: Refuse) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "exists and is not a pack" in refuse("data", "pack", tree, out)
    assert contents(out) == {"mine.txt": b"mine"}
    assert "is not a pack" in refuse("data", "pack", tree, out / "mine.txt")
    shutil.rmtree(out)
    pack(str(tree), out=str(out), say=quiet)
    before = contents(out)
    assert "is a finished pack" in refuse("data", "pack", tree, out, "--short-side", "9")
    assert contents(out) == before


def test_a_pack_inside_of_its_folder_is_refused(tree: Path, refuse: Refuse) -> None:
    before = contents(tree)
    assert "is inside" in refuse("data", "pack", tree, tree / "train" / "out")
    assert "is inside" in refuse("data", "pack", tree, tree)
    assert contents(tree) == before


def test_numbers_out_of_range_and_unknown_words_are_refused(tree: Path, refuse: Refuse) -> None:
    for words, start in (
        (("--short_side", "0"), "--short_side: 0 is out of range"),
        (("--quality", "101"), "--quality: 101 is out of range"),
        (("--shard_size", "0"), "--shard_size: 0 is out of range"),
        (("--sort_side", "9"), "--sort_side: unknown flag. Did you mean --short_side?"),
    ):
        assert refuse("data", "pack", tree, "out", *words).startswith(start)
    assert "FOLDER and OUT are required" in refuse("data", "pack")
    assert "unknown command 'data pakc'" in refuse("data", "pakc")


def test_the_group_helps(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["data"], ["data", "--help"]):
        assert main(words) == 0
        assert "  pack  " in capsys.readouterr().out
    assert main(["data", "pack", "--help"]) == 0
    assert "--short_side N" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_one_line(
    tree: Path, tmp_path: Path, refuse: Refuse
) -> None:
    (tmp_path / "file").write_text("")
    line = refuse("data", "pack", tree, tmp_path / "file" / "out")
    assert str(tmp_path / "file" / "out") in line
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "Permission denied" in refuse("data", "pack", tree, tmp_path / "locked" / "out")


# --- stopped on the way -----------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished shards stay, no more is written than is missing, and the result is the same."""
    out = tmp_path / "out"
    add = ShardWriter.add
    added: list[int] = []

    def full(self: ShardWriter, number: int, *rest: object) -> None:
        if number == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, number, *rest)  # type: ignore[arg-type]

    def counted(self: ShardWriter, number: int, *rest: object) -> None:
        added.append(number)
        add(self, number, *rest)  # type: ignore[arg-type]

    (tree / "train" / "cat" / "a.jpg").write_bytes(b"bad")
    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(UserError, match=r"No space left on device.*same command again") as caught:
        pack(str(tree), out=str(out), shard_size=1, say=quiet)
    assert "\n" not in str(caught.value)
    assert not list(out.glob(".*.partial"))
    finished = contents(out)
    assert "train-00000.tar" in finished
    with pytest.raises(UserError, match="not finished; to continue it, give: unmix data pack "):
        load(out, "train")
    monkeypatch.setattr(ShardWriter, "add", counted)
    said: list[str] = []
    pack(str(tree), out=str(out), shard_size=1, say=said.append)
    said = [line for line in said if not line.startswith("split: ")]
    assert said[0] == f"continuing {out}"
    assert said[1].startswith("Skipped 1 image file that cannot be read, first ")
    assert 1 < added[0] <= 7  # from the shard on that was not finished
    assert contents(out)["train-00000.tar"] == finished["train-00000.tar"]
    pack(str(tree), out=str(tmp_path / "whole"), shard_size=1, say=quiet)
    differing = {MANIFEST, "train.npz", "test.npz"}  # the command, and the times in an npz
    found, whole = contents(out), contents(tmp_path / "whole")
    assert found.keys() == whole.keys()
    assert all(found[name] == whole[name] for name in found.keys() - differing)
    assert len(load(out, "train")) == 9


@pytest.mark.usefixtures("small_shards")
def test_an_unfinished_pack_of_other_images_is_begun_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(ShardWriter, "finish", lambda *_: (_ for _ in ()).throw(OSError("stop")))
    with pytest.raises(UserError):
        pack(str(tree), out=str(out), shard_size=1, say=quiet)
    monkeypatch.undo()
    (out / "train-00000.tar").write_bytes(b"of an earlier one")
    save(tree / "train" / "cat" / "zz.jpg", 77)
    said: list[str] = []
    pack(str(tree), out=str(out), say=said.append)
    assert any("starting over" in line for line in said)
    assert len(load(out, "train")) == 11
    assert not (out / UNFINISHED).exists()


def test_an_interrupted_pack_never_reads_as_complete_and_goes_on(tmp_path: Path) -> None:
    """A real process, a real SIGINT, with workers."""
    for i in range(1200):
        save(tmp_path / "in" / f"{i:04d}.png", i, side=120)
    source = str(Path(unmix.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    words = ["data", "pack", str(tmp_path / "in"), str(out), "--shard_size", "1", "--workers", "1"]
    child = subprocess.Popen(
        # A background job of a shell does not hear SIGINT unless it is told to.
        [
            sys.executable,
            "-c",
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from unmix.cli import main; sys.exit(main(sys.argv[1:]))",
            *words,
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while not (out / "train-00000.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: the workers hear it too
    _, err = child.communicate(timeout=60)
    assert err == "unmix: interrupted; give the same command again to continue.\n"
    assert child.returncode == 130
    assert not (out / MANIFEST).exists()
    assert not list(out.glob(".*.partial"))
    with pytest.raises(UserError, match="not finished"):
        load(out, "train")
    said: list[str] = []
    pack(str(tmp_path / "in"), out=str(out), shard_size=1, say=said.append)
    said = [line for line in said if not line.startswith("split: ")]
    assert said[0] == f"continuing {out}"
    plain, packed = streamed(tmp_path / "in", "train"), streamed(out, "train")
    assert len(packed) == len(plain) == 1200
    assert all(packed.read(i) == plain.read(i) for i in range(0, 1200, 7))


def test_a_foreign_note_is_refused_and_nothing_is_removed(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-notes.tar").write_text("mine")
    leaves = '{"unmix_pack": 1, "fingerprint": "x", "again": "y", "files": ["../z"]}'
    for note in ("{}", "no json", '{"fingerprint": "x", "again": "y"}', leaves):
        (out / UNFINISHED).write_text(note)
        with pytest.raises(UserError, match="exists and is not a pack"):
            pack(str(tree), out=str(out), say=quiet)
        assert (out / "train-notes.tar").read_text() == "mine"
        assert (out / UNFINISHED).read_text() == note


def test_only_files_that_the_note_names_are_removed_or_written_over(
    tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    names = ["train-00007.tar"]
    note = {"unmix_pack": 1, "fingerprint": "of others", "again": "y", "files": names}
    (out / UNFINISHED).write_text(json.dumps(note))
    for name in ("train-notes.tar", "train-00007.tar", ".train-mine"):
        (out / name).write_text("mine")
    pack(str(tree), out=str(out), say=quiet)
    assert (out / "train-notes.tar").read_text() == "mine"
    assert (out / ".train-mine").read_text() == "mine"
    assert not (out / "train-00007.tar").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / UNFINISHED).write_text(json.dumps({**note, "files": []}))
    (other / "train-00000.tar").write_text("mine")
    with pytest.raises(UserError, match=r"train-00000\.tar exists"):
        pack(str(tree), out=str(other), say=quiet)
    assert (other / "train-00000.tar").read_text() == "mine"


@pytest.mark.parametrize("name", ["../train-00000.tar", "/etc/passwd", "..", "a\\b"])
def test_a_shard_that_leaves_the_folder_is_refused(tree: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    pack(str(tree), out=str(out), say=quiet)
    manifest = json.loads((out / "pack.json").read_text())
    manifest["splits"]["train"]["shards"][0]["file"] = name
    (out / "pack.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="must be the name of a file in this folder"):
        load(out, "train")
