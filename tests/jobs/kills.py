"""Kill runs with SIGKILL at random moments, go on with them, and compare with undisturbed runs.

    python tests/jobs/kills.py --count 50
    python tests/jobs/kills.py --count 50 --workers

With `--workers`, all runs read files or shards in one or two data workers.

Half of the kills come at a random time, from another process; half at a random one of the moments
that `killing.moments` names: between an epoch and its row, in the middle of each file that is
written, before and after each rename. A run is killed up to three times before it goes on to its
end. Its weights, queues and banks, `metrics.csv`, `results.json`, `correct.json` and
`encoder.safetensors` must then be those of a run that nobody disturbed, and no temporary file may
be left. What is known is kept in the result file after each run, so the job can be stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import killing  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "reliability"
BASE = {name: killing.TINY[name] for name in killing.TINY if name not in ("method", "queue_size",
        "bn_splits", "unmix")}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "moco, Un-Mix, queue": killing.TINY,
    "deepclusterv2, memories": {**BASE, "method": "deepclusterv2", "prototypes": (6,)},
    "insdis, bank, MixUp": {**BASE, "method": "insdis", "negatives": 16, "IM": True},
    "simclr, files, 2 workers": {**BASE, "method": "simclr", "workers": 2, "resident": "no"},
}
WITH_WORKERS: dict[str, dict[str, Any]] = {
    "simclr, files, 2 workers": KINDS["simclr, files, 2 workers"],
    "moco, Un-Mix, queue, files, 1 worker": {**killing.TINY, "workers": 1, "resident": "no"},
    "deepclusterv2, memories, files, 2 workers": {
        **KINDS["deepclusterv2, memories"], "workers": 2, "resident": "no"},
    "moco, Un-Mix, queue, shards, 2 workers": {**killing.TINY, "workers": 2},
}  # fmt: skip


def images(folder: Path) -> Path:
    """48 labeled PNGs, and as many to test on."""
    draw = np.random.default_rng(0)
    for i in range(96):
        split, label = "train" if i < 48 else "val", "ab"[i % 2]
        (folder / split / label).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    return folder


def shards(images: Path, folder: Path) -> Path:
    """The same images in shards of 12."""
    files = {split: sorted((images / split).rglob("*.png")) for split in ("train", "val")}
    for split, paths in files.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(0, len(paths), 12):
            with tarfile.open(folder / split / f"{number // 12:05}.tar", "w") as tar:
                for path in paths[number : number + 12]:
                    tar.add(path, f"{path.stem}.png")
                    label = tarfile.TarInfo(f"{path.stem}.cls")
                    content = str("ab".index(path.parent.name)).encode()
                    label.size = len(content)
                    tar.addfile(label, io.BytesIO(content))
    return folder


def start(folder: Path, die_at: int, log: Path) -> int:
    """Start a run in a process of its own, which dies at a moment; gives its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        killing.run_here(folder, die_at)
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def one(folder: Path, draw: random.Random, moments: list[str], seconds: float) -> list[str]:
    """Kill a run up to three times, then let it end; returns where it was killed."""
    kills = []
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.5:
            number = draw.randint(1, len(moments))
            child = start(folder, number, folder.with_suffix(".log"))
            _, status = os.waitpid(child, 0)
            name = moments[number - 1]
        else:
            wait = draw.uniform(0, seconds)
            child = start(folder, 0, folder.with_suffix(".log"))
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            name = f"after {wait / seconds:.0%} of the time"
        if os.WIFSIGNALED(status):
            kills.append(name)
    _, status = os.waitpid(start(folder, 0, folder.with_suffix(".log")), 0)
    if status != 0:
        raise RuntimeError(f"the run did not end: {folder.with_suffix('.log').read_text()}")
    return kills


def main() -> int:
    """Run the job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="kills in all")
    parser.add_argument("--workers", action="store_true", help="only runs with data workers")
    parser.add_argument("--out", type=Path, help="the result file")
    words = parser.parse_args()
    kinds = WITH_WORKERS if words.workers else KINDS
    words.out = words.out or RESULTS / ("kills-workers.json" if words.workers else "kills.json")
    found: list[dict[str, Any]] = []
    if words.out.exists():
        found = json.loads(words.out.read_text())["runs"]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        data = {"files": images(root / "images")}
        data["shards"] = shards(data["files"], root / "shards")
        wholes: dict[str, Any] = {}
        for seed in range(len(found), 10**6):
            if sum(len(each["kills"]) for each in found) >= words.count:
                break
            kind = list(kinds)[seed % len(kinds)]
            killing.TINY = dict(kinds[kind])
            for name, folder in data.items():
                if name in kind:
                    killing.TINY["data"] = str(folder)
            if kind not in wholes:
                begun = time.perf_counter()
                child = start(root / f"whole-{len(wholes)}", 0, root / "whole.log")
                assert os.waitpid(child, 0)[1] == 0, (root / "whole.log").read_text()
                seconds = time.perf_counter() - begun
                # Once more, to number its moments.
                moments = killing.run(root / f"numbered-{len(wholes)}")
                wholes[kind] = killing.outcome(root / f"whole-{len(wholes)}"), moments, seconds
            expected, moments, seconds = wholes[kind]
            run_folder = root / f"run-{seed}"
            kills = one(run_folder, random.Random(seed), moments, seconds)
            outcome = killing.outcome(run_folder)
            wrong = [part for part in expected if outcome[part] != expected[part]]
            left = [path.name for path in run_folder.rglob(".*.tmp")]
            found.append({"run": kind, "kills": kills, "differs": wrong, "left": left})
            print(json.dumps(found[-1]), flush=True)
            words.out.parent.mkdir(parents=True, exist_ok=True)
            summary = {
                "runs_killed": len(found),
                "kills": sum(len(each["kills"]) for each in found),
                "runs_that_differ": sum(bool(each["differs"]) for each in found),
                "temporary_files_left": sum(len(each["left"]) for each in found),
            }
            words.out.write_text(json.dumps({**summary, "runs": found}, indent=1) + "\n")
    return int(any(each["differs"] or each["left"] for each in found))


if __name__ == "__main__":
    sys.exit(main())
