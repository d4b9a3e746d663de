"""How time and memory grow with images, batch, resolution, steps and a streamed data set.

    python benchmarks/sweep.py --data_dir DIR --threads 2 --json sweep.json --chart sweep.png

MoCo on CIFAR-10 with a ResNet-18 of a quarter of the width, through Lightning as users run it.
Every point is a process of its own, so that its peak memory is its own. Time should be a straight
line of the images, the batch and the pixels; memory should not grow with steps, nor with the data
set where it is streamed from files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from timing import facts, save

from unmix.data import TensorImages, load

HERE = Path(__file__).parent
BASE = "--method moco --backbone resnet18 --width 0.25 --stem small --bn_splits 1 --no-symmetric"
BATCH = 64


def point(given: argparse.Namespace, steps: int, **flags: Any) -> dict[str, Any]:
    """One run of `ours.py`."""
    words = {"data": "cifar10", "data_dir": given.data_dir, "batch_size": BATCH, "size": 32}
    words |= flags
    command = [sys.executable, str(HERE / "ours.py"), "--steps", str(steps), "--warmup", "2"]
    command += ["--threads", str(given.threads)] if given.threads else []
    command += ["--", *BASE.split()]
    for name, value in words.items():
        command += [] if value is None else [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "seconds": found["seconds"],
        "milliseconds_per_step": 1e3 * found["seconds"] / found["steps"],
        "peak_memory_mb": found["peak_memory_bytes"] / 1e6,
    }


def write_files(folder: Path, count: int, data_dir: str) -> None:
    """The first images of CIFAR-10 as PNG files, without classes."""
    images = load("cifar10", "train", data_dir=data_dir)
    assert isinstance(images, TensorImages)
    folder.mkdir()
    for i in range(count):
        array = images.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{i:05d}.png", compress_level=1)


def sweep(given: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Every point: what was changed, its value, and what was measured."""
    for images in (2_000, 4_000, 8_000, 16_000):
        yield "images", images, point(given, images // BATCH, limit=images)
    for batch in (32, 64, 128, 256, 512):
        yield "batch", batch, point(given, 1024 // batch + 4, batch_size=batch)
    for size in (16, 24, 32, 48, 64):
        yield "pixels", size * size, point(given, 16, size=size)
    for steps in (20, 80, 320):
        yield "steps", steps, point(given, steps, batch_size=16)
    with tempfile.TemporaryDirectory() as place:
        for count in (500, 2_000, 8_000):
            folder = Path(place) / str(count)
            write_files(folder, count, given.data_dir)
            files = {"data": folder, "data_dir": None, "resident": "no", "workers": 1}
            yield "files", count, point(given, 24, batch_size=16, **files)


def draw(points: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """Two rows of panels: time above, memory below."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from unmix.figures.saving import render
    from unmix.figures.style import STYLE

    labels = {
        "images": "images in the data set", "batch": "images in a batch",
        "pixels": "pixels of a view", "steps": "steps", "files": "files, streamed",
    }  # fmt: skip
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        axes = figure.subplots(2, len(points))
        for column, (what, row) in enumerate(points.items()):
            whole = what in ("images", "steps")
            time = "seconds" if whole else "milliseconds_per_step"
            for line, (key, color) in enumerate(((time, "#0077BB"), ("peak_memory_mb", "#CC3311"))):
                panel = axes[line][column]
                values = [p[key] for p in row.values()]
                panel.plot(list(row), values, "o-", color=color)
                panel.set_ylim(0, 1.1 * max(values))
                panel.set_xlim(left=0)
            axes[0][column].set_title("seconds" if whole else "ms per step", loc="left")
            axes[1][column].set_title("peak memory, MB", loc="left")
            axes[1][column].set_xlabel(labels[what])
    path.write_bytes(render(figure, "png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="holds cifar-10-batches-py/")
    parser.add_argument("--threads", type=int, help="of PyTorch; by default its own choice")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    parser.add_argument("--chart", type=Path, help="draw them here, as PNG")
    given = parser.parse_args()
    points: dict[str, dict[int, dict[str, Any]]] = {}
    print(f"{'changed':<8}{'value':>8}{'seconds':>10}{'ms/step':>11}{'peak MB':>9}")
    for what, value, found in sweep(given):
        points.setdefault(what, {})[value] = found
        print(
            f"{what:<8}{value:>8,}{found['seconds']:>10.2f}{found['milliseconds_per_step']:>11.1f}"
            f"{found['peak_memory_mb']:>9,.0f}",
            flush=True,
        )
    save(given.json, {**facts(sys.argv), "points": points})
    if given.chart is not None:
        draw(points, given.chart)


if __name__ == "__main__":
    main()
