"""Runs that are killed at a given moment, and what they leave behind."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from unmix import results
from unmix.training import pretrain
from unmix.training.loop import callbacks, records
from unmix.training.loop.module import Pretraining
from unmix.training.run import checkpoints

TINY: dict[str, Any] = {
    "method": "moco", "data": "digits", "limit": 48, "backbone": "resnet10", "width": 0.125,
    "size": 8, "batch_size": 16, "epochs": 3, "knn_every": 1, "knn_k": 10, "queue_size": 32,
    "bn_splits": 1, "logger": "none", "device": "cpu", "precision": "32", "unmix": True,
    "checkpoint_steps": 1,
    # Chosen by the load of the machine otherwise, and sums depend on it.
    "threads": 1,
}  # fmt: skip
TIMES = {
    "seconds", "total_seconds", "images_per_second", "peak_memory_bytes", "cores_taken_by_others",
}  # fmt: skip


def moments(patch: pytest.MonkeyPatch, die_at: int) -> list[str]:
    """Number the moments at which something has just been done, or is about to be; die at one."""
    seen: list[str] = []

    def reached(name: str) -> None:
        seen.append(name)
        if len(seen) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            reached(f"before {name}")
            value = call(*arguments, **options)
            reached(f"after {name}")
            return value

        patch.setattr(owner, name, wrapped)

    def half_first(write: Any) -> Any:
        """Writes the first half of a file, then all of it."""

        def wrapped(path: Path, content: bytes) -> int:
            name = path.name.removeprefix(".").removesuffix(f".{os.getpid()}.tmp")
            if path.name != name:  # one that is renamed when it is complete
                write(path, content[: len(content) // 2])
                reached(f"half of {name}")
            return int(write(path, content))

        return wrapped

    def half_of_a_checkpoint(checkpoint: Any, file: Any) -> None:
        whole = io.BytesIO()
        save(checkpoint, whole)
        content = whole.getvalue()
        file.write(content[: len(content) // 2])
        file.flush()
        reached("half of last.ckpt")
        file.write(content[len(content) // 2 :])

    def renamed(path: Path, target: Path) -> Path:
        reached(f"before the rename to {target.name}")
        found = replace(path, target)
        reached(f"after the rename to {target.name}")
        return found

    replace, save = Path.replace, checkpoints._write
    patch.setattr(Path, "write_bytes", half_first(Path.write_bytes))
    patch.setattr(Path, "replace", renamed)
    patch.setattr(checkpoints, "_write", half_of_a_checkpoint)
    around(Pretraining, "training_step")
    around(checkpoints, "_keep_as_previous")
    around(checkpoints.AtomicCheckpoints, "save_checkpoint")
    around(callbacks.Reporter, "_measure")
    around(callbacks.Reporter, "complete")
    around(records, "atomic_write")
    around(results, "atomic_write")
    return seen


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves behind, without what tells the time."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    found = json.loads((folder / "results.json").read_text())
    for record in (found["training"], *found["evaluations"]):
        for name in TIMES & record.keys():
            del record[name]
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    sums = {name: value.double().sum().item() for name, value in weights.items()}
    return {
        "rows": rows,
        "results": {**found, "name": "", "command": ""},
        "weights": sums,
        "encoder": (folder / "encoder.safetensors").read_bytes(),
        "correct": json.loads((folder / "correct.json").read_text()),
    }


def run_here(folder: Path, die_at: int) -> list[str]:
    """Run to the end, or die at a moment (0: never); the moments that were passed."""
    with pytest.MonkeyPatch.context() as patch:
        seen = moments(patch, die_at)
        pretrain(run=str(folder), **TINY)
    return seen


def run(folder: Path) -> list[str]:
    """Run to the end; the moments that were passed."""
    return run_here(folder, 0)


def run_and_die(folder: Path, die_at: int) -> None:
    """Run in a process of its own, which is killed at a moment (or ends before it)."""
    child = os.fork()  # not a new Python, whose imports take longer than the run
    if child == 0:
        try:
            run_here(folder, die_at)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
