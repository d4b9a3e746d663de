"""What the benchmarks share: counting images per second in a loop, memory, machine and versions."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from unmix.hardware.devices import hardware, peak_memory, versions

__all__ = ["facts", "peak_bytes", "save", "seconds_of", "summary"]


def summary(values: list[float]) -> dict[str, Any]:
    """The median, the least and the most of repeated measurements, and these themselves."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": values,
    }


def seconds_of(call: Any, repeats: int) -> dict[str, Any]:
    """Time a call several times."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def peak_bytes() -> int:
    """The most memory that this process has used, without its workers."""
    return peak_memory(torch.device("cpu"))


def facts(command: list[str]) -> dict[str, Any]:
    """What numbers depend on: the command, the machine, the versions."""
    return {
        "command": " ".join(["python", *command]),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }


def save(path: Path | None, found: dict[str, Any]) -> None:
    """Write results as JSON, if a path is given."""
    if path is not None:
        path.write_text(json.dumps(found, indent=2) + "\n")
