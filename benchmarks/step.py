"""A training step of unmix beside one of lightly, in turn, each in a process of its own.

    python benchmarks/step.py --data_dir DIR --threads 2 [--peer-python PYTHON] [--json FILE]

MoCo on CIFAR-10: ResNet-18 with the small stem, batch 128. In every round lightly's script runs and
then each of ours, so that a machine that changes its speed does so for all; the ratio is of the
same round. Images per second are those of the data set: two views of each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from timing import facts, save, summary

HERE = Path(__file__).parent
PEER = "lightly"
BASE = (
    "--method moco --data cifar10 --backbone resnet18 --stem small --size 32 --bn_splits 8 --seed 0"
)
OURS = {
    "MoCo, asymmetric": "--no-symmetric",
    "MoCo + Un-Mix, asymmetric": "--no-symmetric --unmix",
    "MoCo + Un-Mix, symmetric": "--symmetric --unmix",
    "MoCo + IM": "--no-symmetric --IM",
    "MoCo, one batch norm": "--no-symmetric --bn_splits 1",
}


def commands(given: argparse.Namespace) -> dict[str, list[str]]:
    """The command line of each contestant."""
    common = ["--steps", str(given.steps), "--warmup", str(given.warmup)]
    common += ["--threads", str(given.threads)] if given.threads else []
    found = {}
    python = given.peer_python or sys.executable
    if importable(python, "lightly"):
        peer = [python, str(HERE / "peers" / "lightly_moco.py"), "--data_dir", given.data_dir]
        peer += ["--batch_size", str(given.batch_size), "--workers", str(given.workers), *common]
        found[PEER] = peer
        if given.peer_bf16:
            found[f"{PEER}, bf16"] = [*peer, "--precision", "bf16"]
    else:
        print("lightly is not importable: no side-by-side (see benchmarks/README.md)")
    batch = ["--data_dir", given.data_dir, "--batch_size", str(given.batch_size)]
    for name, flags in OURS.items():
        found[name] = [
            sys.executable, str(HERE / "ours.py"), *common, "--", *BASE.split(), *batch,
            *flags.split(), *given.flags,
        ]  # fmt: skip
    return found


def importable(python: str, module: str) -> bool:
    """Whether another interpreter finds a module."""
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def run(command: list[str]) -> dict[str, Any]:
    """Run a worker; what its last line says."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(rounds: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Median, minimum and maximum of images per second and of the ratio to lightly; peak memory."""
    speeds = {name: [r["images_per_second"] for r in found] for name, found in rounds.items()}
    rows = []
    for name, found in rounds.items():
        row = {
            "name": name,
            "images_per_second": summary(speeds[name]),
            "peak_memory_bytes": max(r["peak_memory_bytes"] for r in found),
            "precision": found[0]["precision"],
        }
        if PEER in rounds:
            pairs = zip(speeds[name], speeds[PEER], strict=True)
            row["ratio"] = summary([ours / theirs for ours, theirs in pairs])
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':28}{'images/s: median':>17}{'min':>8}{'max':>8}{'ratio':>8}{'peak':>10}")
    for row in rows:
        speed = row["images_per_second"]
        ratio = f"{row['ratio']['median']:.2f}" if "ratio" in row else "-"
        print(
            f"{row['name']:28}{speed['median']:17.1f}{speed['min']:8.1f}{speed['max']:8.1f}"
            f"{ratio:>8}{row['peak_memory_bytes'] / 2**30:6.2f} GiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="holds cifar-10-batches-py/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--threads", type=int, help="of PyTorch; by default its own choice")
    parser.add_argument("--workers", type=int, default=2, help="processes of lightly's loader")
    parser.add_argument("--peer-python", help="an interpreter that has lightly")
    parser.add_argument("--peer-bf16", action="store_true", help="also run lightly under bf16")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    parser.add_argument("flags", nargs="*", help="behind --: more flags of unmix pretrain")
    given = parser.parse_args()
    rounds: dict[str, list[dict[str, Any]]] = {}
    contestants = commands(given)
    for number in range(1, given.rounds + 1):
        for name, command in contestants.items():
            rounds.setdefault(name, []).append(run(command))
            speed = rounds[name][-1]["images_per_second"]
            print(f"round {number}  {name:28}{speed:8.1f} images/s", flush=True)
    rows = table(rounds)
    show(rows)
    save(given.json, {**facts(sys.argv), "rows": rows, "rounds": rounds})


if __name__ == "__main__":
    main()
