"""Whether other processes slowed a training down, from what its record says of cores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TAKEN", "cores_missed"]

TAKEN = "cores_taken_by_others"
"""Of a run's training: the cores that other processes took meanwhile, on average."""
_UNNOTICED = 0.2  # cores: what a system does beside


def cores_missed(training: Mapping[str, Any], hardware: Mapping[str, Any]) -> float | None:
    """Cores that other processes took during a training, if it was slower for it.

    On a CPU that is when threads and others together want more than there are; with a GPU, which
    does the work, when others take half of the cores.

    Args:
        training: Of `results.json`.
        hardware: Of `results.json`.
    """
    taken, cores = training.get(TAKEN), hardware.get("cores")
    if not isinstance(taken, int | float) or not isinstance(cores, int):
        return None
    threads = hardware.get("threads")
    spare = cores / 2 if hardware.get("gpu") else cores - (threads if threads else 1)
    return float(taken) if taken > spare + _UNNOTICED else None
