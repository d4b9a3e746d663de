"""What the console shows: our own lines, and nothing else."""

from __future__ import annotations

import logging
import warnings

from unmix.names import shown_lines

__all__ = ["duration", "is_leader", "quiet_libraries", "say"]


def is_leader() -> bool:
    """Whether this process speaks, writes and evaluates for all that train together."""
    from lightning.pytorch.utilities import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def say(text: str) -> None:
    """Print lines of our own, at once; of several processes the first one does.

    A name within them is to be `unmix.names.shown`; what a terminal would obey is shown here too.
    """
    if is_leader():
        print(shown_lines(text), flush=True)


def quiet_libraries() -> None:
    """Keep libraries' notes to developers off the console."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for package in ("lightning", "torch", "torchvision", "tensorboard"):
        warnings.filterwarnings("ignore", module=rf"{package}\b.*")


def duration(seconds: float) -> str:
    """A time as people say it: 42 s, 3:07 min, 5:12 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"
