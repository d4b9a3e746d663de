"""Console output."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

from unmix.display import duration
from unmix.names import shown_lines

__all__ = ["Estimate", "is_leader", "quiet_libraries", "say", "set_rank", "silent"]


def is_leader() -> bool:
    """Whether this is the process that prints, writes and evaluates (rank 0)."""
    from lightning.pytorch.utilities import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def set_rank(rank: int) -> None:
    """Tell Lightning which process this is, where its environment did not when it was imported."""
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only.rank = rank  # type: ignore[attr-defined]


def say(text: str) -> None:
    """Print a text and flush; of several processes only the first one prints.

    Control characters are escaped; names in the text should be `unmix.names.shown` already.
    """
    if is_leader():
        print(shown_lines(text), flush=True)


def silent(_: str) -> None:
    """Print nothing: a `say` for what is part of something else."""


def quiet_libraries() -> None:
    """Hide log messages and warnings of libraries that are meant for developers."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for package in ("lightning", "torch", "torchvision", "tensorboard"):
        warnings.filterwarnings("ignore", module=rf"{package}\b.*")


class Estimate:
    """Prints once how long the rest of some work takes, if that is more than a few seconds.

    Args:
        what: The work, for the line.
        unit: What is counted, in the plural.
        say: Prints a line.
        clock: Returns seconds.
    """

    _AFTER, _SHORT = 2.0, 5.0

    def __init__(
        self,
        what: str,
        unit: str,
        say: Callable[[str], None] = say,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.what, self.unit, self.say, self.clock = what, unit, say, clock
        self.start, self.told = clock(), False

    def __call__(self, done: int, total: int) -> None:
        """Update with the number of units that are done."""
        if done == 0:
            self.start = self.clock()
        seconds = self.clock() - self.start
        if self.told or seconds < self._AFTER:
            return
        self.told = True
        left = seconds / done * (total - done)
        if left >= self._SHORT:
            self.say(
                f"{self.what}: about {duration(left)} for the other {total - done:,} of {total:,} "
                f"{self.unit}"
            )
