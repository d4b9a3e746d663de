"""What a run's record says of its machine: which it was, and whether it had other work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmix.display import counted

__all__ = ["TAKEN", "cores_missed", "machine_of"]

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


def machine_of(hardware: Mapping[str, Any]) -> str:
    """What a run was trained on, in a line; runs with the same are compared by their time.

    "" if it is not known. Records that do not say how many devices there were are taken for one.

    Args:
        hardware: Of `results.json`.
    """
    name, cpu = hardware.get("gpu"), hardware.get("cpu")
    if not name and cpu is not None:
        own = counted(int(hardware.get("threads") or 1), "thread")
        name = f"{cpu}, {'mps' if hardware.get('device') == 'mps' else own}"
    devices = hardware.get("devices")
    many = f"{devices} x " if isinstance(devices, int) and devices > 1 else ""
    return f"{many}{name}" if name else ""
