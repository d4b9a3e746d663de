"""Time until help, lists and the refusal of a flag: user CPU seconds and peak memory, medians.

Each is a process of its own, as in a shell. `--source DIR` measures another checkout's `src`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CASES = (
    "--help", "pretrain --help", "knn --help", "methods", "recipes", "pretrain --epocs 3",
    "pretrain --lr -1", "knn RUN --kk 3",
)  # fmt: skip


def measure(words: str, source: Path, rounds: int) -> dict[str, Any]:
    """Medians of a command, each time in a process of its own; memory as Linux counts it."""
    seconds, wall, memory = [], [], []
    command = [sys.executable, "-m", "unmix", *shlex.split(words)]
    for _ in range(rounds):
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(source)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, _, used = os.wait4(child.pid, 0)
        wall.append(time.perf_counter() - start)
        seconds.append(used.ru_utime)
        memory.append(used.ru_maxrss / 1024)
    return {
        "command": f"unmix {words}",
        "user_seconds": statistics.median(seconds),
        "user_seconds_range": [min(seconds), max(seconds)],
        "wall_seconds": statistics.median(wall),
        "peak_mb": statistics.median(memory),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1] / "src")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    rows = []
    print(f"{'':28}user s (least to most)   wall s    peak MB")
    for words in CASES:
        row = measure(words, args.source.resolve(), args.rounds)
        rows.append(row)
        least, most = row["user_seconds_range"]
        print(
            f"{row['command']:28}{row['user_seconds']:6.2f} ({least:.2f} to {most:.2f})"
            f"{row['wall_seconds']:14.2f}{row['peak_mb']:11.0f}",
            flush=True,
        )
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
