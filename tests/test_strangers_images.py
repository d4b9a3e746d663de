"""Some 200 hostile images: each is used or named in a count, within a bound of time and memory."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hostile_images import encoded, hostile_files, make
from unmix.data import BrokenImage, Decoding, FileImages, decode, load
from unmix.data.decoding import read_image
from unmix.data.opened import OpenedImage
from unmix.files import read_regular

# Of a process that has PyTorch loaded, and decodes images of up to 3 million pixels.
MOST_MEMORY = 3_000_000_000
TRAIN = (
    "--size", "8", "--backbone", "resnet10", "--width", "0.125", "--batch_size", "32",
    "--epochs", "1", "--device", "cpu", "--logger", "none", "--workers", "0", "--knn_k", "3",
    "--threads", "1", "--max_pixels", "3000000",
)  # fmt: skip

MEASURED = """
import sys
from unmix.cli import main
status = main(sys.argv[1:])
import torch
from unmix.hardware.devices import peak_memory  # not getrusage, which has the parent's memory
peak = peak_memory(torch.device("cpu"))
print(f"peak {peak}", file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hostile images in two classes."""
    folder = tmp_path_factory.mktemp("hostile") / "images"
    make(folder)
    return folder


def run(folder: Path, *words: str | Path) -> str:
    """Run a command in a process of its own, within bounds; its output."""
    program = [sys.executable, "-c", MEASURED, *map(os.fspath, words)]
    ended = subprocess.run(
        program, cwd=folder, capture_output=True, timeout=600, stdin=subprocess.DEVNULL
    )
    output = (ended.stdout + ended.stderr).decode(errors="replace")
    assert ended.returncode == 0, output
    assert "Traceback" not in output
    assert "\x1b[31m" not in output
    peak = int(output.rpartition("peak ")[2].split()[0])
    assert peak < MOST_MEMORY, f"{peak / 1e9:.2f} GB"
    return output


def test_there_are_200_of_them_and_the_same_each_time() -> None:
    files = hostile_files()
    assert len(files) >= 180
    assert files == hostile_files()


def test_hostile_images_are_used_or_counted(images: Path) -> None:
    """pretrain, pack, pretrain on the pack, and embed: the same images are left out by all."""
    work = images.parent
    said = run(work, "pretrain", "--data", images, "--run", "r", *TRAIN)
    assert "image files that cannot be read" in said
    with (work / "r" / "skipped.csv").open(newline="", encoding="utf-8") as file:
        skipped = {Path(row["path"]).name for row in csv.DictReader(file)}
    assert {"cut-0.jpg", "zeros.png", "magic.gif", "bomb-20000.png", "text.tif"} <= skipped
    assert not {"cmyk.jpg", "turned-6.jpg", "alpha.png", "palette.png", "one.png"} & skipped
    assert not (work / "x").exists()

    run(work, "data", "pack", images, "pack")
    manifest = json.loads((work / "pack" / "pack.json").read_text())
    names = {Path(path).name for path, _ in manifest["skipped"]}
    assert {"cut-0.jpg", "zeros.png", "magic.gif", "text.tif"} <= names
    said = run(work, "embed", "r", "--data", images, "--out", "f.npz", "--device", "cpu")
    assert "cannot be read" in said
    said = run(work, "knn", "r", "--device", "cpu")
    assert "top-1" in said
    said = run(
        work, "preview", "--data", images, "--IM", "--out", "p.png", "--n", "4", "--size", "16"
    )
    assert (work / "p.png").stat().st_size > 1000


def fates(images: FileImages) -> tuple[set[bytes], set[bytes]]:
    """Names of the files that are decoded, and of those that cannot be."""
    used, broken = set(), set()
    for i in range(len(images)):
        name = os.fsencode(images.place(i).name)
        try:
            assert images.decode(i).mode == "RGB"
            used.add(name)
        except BrokenImage:
            broken.add(name)
    return used, broken


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_lists_of_hostile_images_use_the_same_ones_as_the_folder(images: Path, kind: str) -> None:
    how = Decoding(max_pixels=3_000_000)
    folder = load(images, "train", train_folder=".", decoding=how)
    assert isinstance(folder, FileImages)
    names = [Path(place) / name for place in "ab" for name in sorted(os.listdir(images / place))]
    path = images.parent / f"list.{kind}"
    if kind == "parquet":  # its texts are UTF-8
        names = [name for name in names if "\udcff" not in str(name)]
        table = pyarrow.table({"path": [str(images / name) for name in names]})
        pyarrow.parquet.write_table(table, path)
    else:
        text = io.StringIO(newline="")
        rows = [[str(images / name)] for name in names]
        if kind == "csv":
            csv.writer(text).writerows([["path"], *rows])
        else:
            rows = [row for row in rows if "\n" not in row[0]]
            text.writelines(f"{row[0]}\n" for row in rows)
        path.write_bytes(os.fsencode(text.getvalue()))
        names = [Path(row[0]) for row in rows]
    listed = load(path, "train", decoding=how)
    assert isinstance(listed, FileImages)
    lost = [note for note in listed.notes if note.startswith("warning: left out:")]
    assert len(listed) == len(names) - sum(int(note.split()[3]) for note in lost)
    for part in ("fifo.jpg", "folder.jpg", "gone.jpg", "itself.jpg", "zero.jpg"):
        assert any(part in note or "more" in note for note in lost), lost
    used, broken = fates(listed)
    every = {os.fsencode(name.name) for name in names}
    assert used
    held = {os.fsencode(path.name) for path in folder.paths}
    of_folder = fates(folder)
    assert used & held == of_folder[0] & every
    assert broken & held == (of_folder[1] & every) - {b"gone.jpg", b"itself.jpg"}


def test_a_file_that_is_replaced_while_it_is_read_is_used_or_broken(tmp_path: Path) -> None:
    path, beside = tmp_path / "x.jpg", tmp_path / "beside"
    good = {size: encoded(Image.new("RGB", (size, size), "red"), "JPEG") for size in (8, 200)}
    made: list[Callable[[], object]] = [
        lambda: beside.write_bytes(good[8]), lambda: beside.write_bytes(good[200]),
        lambda: beside.write_bytes(good[200][:700]), lambda: beside.write_bytes(b""),
        lambda: os.mkfifo(beside), lambda: beside.symlink_to("/dev/zero"),
        lambda: beside.symlink_to(beside), lambda: os.truncate(path, 100),
    ]  # fmt: skip
    ended = threading.Event()
    kinds: Counter[str] = Counter()

    def replace() -> None:
        turn = 0
        while not ended.is_set():
            with suppress(OSError):
                made[turn % len(made)]()
                beside.replace(path)
            turn += 1

    path.write_bytes(good[8])
    other = threading.Thread(target=replace)
    other.start()
    try:
        for _ in range(600):
            try:
                content = read_image(path)
                kinds[str(decode(path, content=content).size)] += 1
                assert OpenedImage.of(content, path).size in ((8, 8), (200, 200))
            except BrokenImage as error:
                kinds[error.reason] += 1
    finally:
        ended.set()
        other.join()
    assert kinds["(8, 8)"]
    assert len(kinds) > 3


def test_a_file_that_grows_while_it_is_read_is_not_read_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"x" * 300_000)
    status = os.fstat

    def before(descriptor: int) -> os.stat_result:
        found = list(status(descriptor))
        found[6] = min(found[6], 10)  # its size then
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", before)
    assert read_regular(path) == b"x" * 300_000
    assert read_regular(path, 300_000) == b"x" * 300_000
    with pytest.raises(OSError, match="grows while it is read, beyond 299,999 bytes"):
        read_regular(path, 299_999)


PEAK = """
import sys
from pathlib import Path
import torch
from unmix.data import load, read_uint8
from unmix.data.decoding import Decoding
from unmix.data.imageset import FileImages, Skipped
from unmix.training.loading.crops import FileCrops
from unmix.views import Views, ViewSettings

def status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024

def measured(path):
    images = FileImages(
        name="x", split="train", labels=None, classes=None, mean=(0.5,) * 3, std=(0.2,) * 3,
        paths=[Path(path)], skipped=Skipped(), decoding=Decoding(),
    )
    crops = FileCrops(images, Views(ViewSettings(), 224, (0.5,) * 3, (0.2,) * 3), 0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    read_uint8(images, [0], 224)
    crops[0, 0]
    return status("VmHWM") - before

torch.set_num_threads(1)
measured(sys.argv[1])  # imports and buffers of the libraries
for path in sys.argv[2:]:
    print(measured(path))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures in /proc")
def test_no_image_takes_more_memory_than_its_pixels_allow(images: Path, tmp_path: Path) -> None:
    """At 224 px: bombs, which are refused before they are decoded, and lines of 60,000 pixels."""
    worst = [
        place / f"{name}"
        for name in ("bomb-most.png", "bomb-bits.png", "bomb-text.png", "icc-large.png",
                     *(f"bomb-{side}.{kind}" for side in (20_000, 60_000)
                       for kind in ("png", "gif", "tif", "bmp")),
                     "row-60000.png", "column-60000.png", "exif-large.jpg", "icc-large.jpg")
        for place in (images / "a", images / "b")
        if (place / name).exists()
    ]  # fmt: skip
    assert len(worst) == 16
    for name, size in (("row.jpg", (60_000, 1)), ("column.jpg", (1, 60_000))):
        Image.new("RGB", size, "red").save(tmp_path / name)
        worst.append(tmp_path / name)
    # The last one: memory that it leaves to the allocator would hide what others take.
    large = tmp_path / "large.png"  # 12 million pixels: 36 MB
    Image.new("RGB", (4000, 3000), "red").save(large)
    usual = tmp_path / "usual.jpg"
    Image.new("RGB", (500, 375), "red").save(usual)
    program = [sys.executable, "-c", PEAK, *map(str, (usual, *worst, large))]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=600, check=True)
    peaks = [int(line) for line in ended.stdout.split()]
    assert len(peaks) == len(worst) + 1
    assert peaks[-1] < 6 * 36_000_000
    for path, peak in zip(worst, peaks[:-1], strict=True):
        assert peak < 64_000_000, f"{path.name}: {peak / 1e6:.0f} MB"
