"""How many threads compute: as many as there are cores that are really free.

Beside a busy neighbour more threads than free cores are slower than fewer: all wait for the one
that has no core (two threads on two cores of which one is busy made 0.4 of one thread's speed).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from unmix.errors import check_number

__all__ = [
    "CoreMeter",
    "choose_threads",
    "threads_in_words",
    "usable_cores",
    "using_threads",
]

_WINDOW = 0.2  # seconds; /proc/stat counts hundredths
_BUSY = 0.75  # a core that is free for so much of the time is a free one
_ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """The processors that this process may use: a batch system's share, not the whole machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CoreMeter:
    """Measures how many of this process's cores other processes leave free, from now on."""

    def __init__(self) -> None:
        self.start = self._sample()

    def free(self) -> float | None:
        """The cores that are free, at most those that may be used; None where it is not known.

        What this process itself has computed meanwhile counts as free. Waits until 0.2 s have
        passed since the start.
        """
        if self.start is None:
            return None
        time.sleep(max(0.0, _WINDOW - (time.monotonic() - self.start[0])))
        now = self._sample()
        if now is None:
            return None
        seconds, idle, own = (b - a for a, b in zip(self.start, now, strict=True))
        return min((idle + own) / seconds, float(usable_cores()), quota())

    @staticmethod
    def _sample() -> tuple[float, float, float] | None:
        """The time, the seconds that our cores were idle, and those that this process computed."""
        idle = idle_seconds()
        if idle is None:
            return None
        spent = os.times()
        return time.monotonic(), idle, spent.user + spent.system


def idle_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """How long the cores of this process have been idle, all together; None if it is not said."""
    try:
        ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        tick = os.sysconf("SC_CLK_TCK")
        lines = (line.split() for line in stat.read_text().splitlines())
        # user, nice, system, idle, iowait: who waits for a disk needs no core.
        return sum((int(f[4]) + int(f[5])) / tick for f in lines if f and f[0] in ours)
    except (AttributeError, OSError, ValueError, IndexError):
        return None


def quota(group: Path = Path("/sys/fs/cgroup")) -> float:
    """The cores that a container or a batch system grants (control groups); infinite if none."""
    try:
        most, period = (group / "cpu.max").read_text().split()
        return float(most) / float(period)
    except (OSError, ValueError):
        return float("inf")


def choose_threads(wanted: int | None, free: float | None, processes: int = 1) -> int:
    """How many threads compute.

    Args:
        wanted: By the user; taken as it is.
        free: Cores that are free, or None if that is not known.
        processes: That train together on this machine; PyTorch's number is then shared out by
            whoever starts them, and kept.

    Returns:
        At least 1, and never more than PyTorch would take. Where the user has set
        OMP_NUM_THREADS, or called `torch.set_num_threads`, that is kept.
    """
    if wanted is not None:
        check_number("--threads", wanted, at_least=1)
        return wanted
    now = torch.get_num_threads()
    asked = any(os.environ.get(name) for name in _ASKED)
    # PyTorch's own choice is all cores, or one of two that share a core.
    own_choice = now >= min(usable_cores(), max(1, (os.cpu_count() or 1) // 2))
    if asked or not own_choice or free is None or processes > 1:
        return now
    return max(1, min(now, int(free + 1 - _BUSY)))


def threads_in_words(count: int, free: float | None) -> str:
    """As it is shown in a run's first lines."""
    cores = usable_cores()
    beside = "" if free is None else f" ({free:.1f} of {cores} core{'s'[: cores > 1]} free)"
    return f"{count} thread{'s'[: count > 1]}{beside}"


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Compute with so many threads; then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
