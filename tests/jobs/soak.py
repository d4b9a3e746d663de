"""Train 3,000 steps and watch what must not grow: memory, handles, processes, the run folder.

    python tests/jobs/soak.py --steps 3000

The run is `unmix pretrain` in a process of its own with two data workers, evaluations, and
checkpoints by the step. Twice a second the resident memory, open files and threads of its whole
process tree and the size of its folder are read. Its first quarter is a warmup; the median of the
last quarter must be that of the second one, but for 3% of memory and 5% of the checkpoints, which
have a row of metrics for each epoch.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "jobs"))
from kills import images  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "reliability" / "soak.json"
MEMORY = 1.03
"""The most that memory may grow by, as a factor: allocators keep what they had."""
FOLDER = 1.05


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in tree(int(child)))]


def sample(pid: int, folder: Path) -> dict[str, int] | None:
    """What a run holds now; None while a process of it ends."""
    found = {"memory": 0, "handles": 0, "threads": 0, "processes": 0, "folder": 0}
    try:
        for each in tree(pid):
            pages = int(Path(f"/proc/{each}/statm").read_text().split()[1])
            found["memory"] += 4096 * pages
            found["handles"] += len(list(Path(f"/proc/{each}/fd").iterdir()))
            found["threads"] += len(list(Path(f"/proc/{each}/task").iterdir()))
            found["processes"] += 1
        # What must not pile up are checkpoints and left-overs.
        for path in (folder / "checkpoints").rglob("*"):
            found["folder"] += path.stat().st_size
    except OSError:
        return None
    return found


def soak(steps: int, top: Path) -> dict[str, Any]:
    """Train and measure; the medians of each quarter of the time."""
    data, folder = images(top / "data"), top / "run"
    words = {
        "method": "moco", "backbone": "resnet10", "width": "0.125", "size": "8",
        "batch_size": "12", "queue_size": "48", "epochs": str(steps // 4), "unmix_prob": "0.5",
        "workers": "2", "resident": "no", "threads": "1", "device": "cpu", "knn_every": "50",
        "checkpoint_steps": "20", "bn_splits": "1", "logger": "none",
    }  # fmt: skip
    command = [sys.executable, "-m", "unmix", "pretrain", "--data", str(data), "--run",
               str(folder), "--unmix"]  # fmt: skip
    command += [part for name, word in words.items() for part in (f"--{name}", word)]
    with (top / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        samples = []
        while process.poll() is None:
            found = sample(process.pid, folder) if (folder / "metrics.csv").exists() else None
            samples += [] if found is None else [found]
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit((top / "log").read_text()[-2000:])
    with (folder / "metrics.csv").open() as file:
        epochs = len(list(csv.DictReader(file)))
    quarter = len(samples) // 4
    parts = [samples[n * quarter : (n + 1) * quarter] for n in range(4)]
    medians = {
        name: [int(statistics.median(each[name] for each in part)) for part in parts]
        for name in samples[0]
    }
    return {"steps": 4 * epochs, "samples": len(samples), "quarters": medians}


def grown(found: dict[str, Any]) -> list[str]:
    """What grew between the second and the last quarter."""
    allowed = {"memory": MEMORY, "folder": FOLDER}
    return [
        f"{name}: {values[1]:,} to {values[3]:,}"
        for name, values in found["quarters"].items()
        if values[3] > values[1] * allowed.get(name, 1.0)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = soak(words.steps, Path(place))
    words.out.parent.mkdir(parents=True, exist_ok=True)
    words.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    raise SystemExit("\n".join(grown(result)) or 0)
