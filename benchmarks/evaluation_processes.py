"""The encoding of an evaluation by several processes of one thread each, and by the first alone.

    python benchmarks/evaluation_processes.py --processes 2 [--repeats 5] [--json FILE]

In turn, on the images of `photos`, by an untrained ResNet-18 of width 0.5; the classifiers, which
the first process fits in either case, are not in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from timing import facts, save, summary
from torch.multiprocessing import start_processes

from unmix.training.loop.evaluator import Evaluator
from unmix.training.run.parts import build_parts
from unmix.training.run.pretrain import settings_for


def run(number: int, folder: str, processes: int, repeats: int) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    meet = Path(folder) / "meet"
    dist.init_process_group("gloo", f"file://{meet}", rank=number, world_size=processes)
    words = {"method": "simclr", "data": "photos", "backbone": "resnet18", "width": 0.5}
    parts = build_parts(settings_for({**words, "device": "cpu", "precision": "32"})[0])
    evaluator = Evaluator(
        parts.module, parts.labeled, parts.test, parts.settings.evaluation, parts.machine
    )
    evaluator.features(parts.labeled.sample(256), together=True)
    found: dict[str, list[float]] = {"the first alone": [], "together": []}
    for _ in range(repeats):
        for name, seconds in found.items():
            together = name == "together"
            dist.barrier()
            start = time.perf_counter()
            if together or number == 0:
                evaluator.features(parts.labeled, together=together)
            dist.barrier()
            seconds.append(time.perf_counter() - start)
    if number == 0:
        images = len(parts.labeled)
        torch.save({"images": images, "seconds": found}, Path(folder) / "found.pt")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all measurements here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start_processes(run, (folder, given.processes, given.repeats), given.processes)
        found = torch.load(Path(folder) / "found.pt", weights_only=True)
    rows = {name: summary(seconds) for name, seconds in found["seconds"].items()}
    for name, row in rows.items():
        print(f"{name:16} {row['median']:.2f} s ({row['min']:.2f} to {row['max']:.2f})")
    pairs = zip(*found["seconds"].values(), strict=True)
    ratio = summary([alone / together for alone, together in pairs])
    print(f"{'ratio':16} {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    save(given.json, {**facts(sys.argv), "images": found["images"], **rows, "ratio": ratio})


if __name__ == "__main__":
    main()
