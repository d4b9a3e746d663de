"""What the console shows: our own lines, and nothing else."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

from unmix.names import shown_lines

__all__ = ["Estimate", "duration", "is_leader", "quiet_libraries", "say"]


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


class Estimate:
    """Says once how long the rest of some work will take, if that is more than a few seconds.

    Args:
        what: The work, for the line.
        unit: What is counted, in the plural.
        say: Prints a line.
        clock: Tells the seconds.
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
        """Count: so much of it is done."""
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
