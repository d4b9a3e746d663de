"""Some 200 hostile images: each is used or named in a count, within a bound of time and memory."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostile_images import hostile_files, make

# Of a process that has PyTorch loaded, and decodes images of up to 3 million pixels.
MOST_MEMORY = 3_000_000_000
TRAIN = (
    "--size", "8", "--backbone", "resnet10", "--width", "0.125", "--batch_size", "32",
    "--epochs", "1", "--device", "cpu", "--logger", "none", "--workers", "0", "--knn_k", "3",
    "--threads", "1", "--max_pixels", "3000000",
)  # fmt: skip

MEASURED = """
import resource, sys
from unmix.cli import main
status = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
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
