"""What the console shows: our own lines, and nothing else."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet_libraries", "say"]


def say(text: str) -> None:
    """Print a line of our own, at once."""
    print(text, flush=True)


def quiet_libraries() -> None:
    """Keep libraries' notes to developers off the console."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for package in ("lightning", "torch", "torchvision", "tensorboard"):
        warnings.filterwarnings("ignore", module=rf"{package}\b.*")
