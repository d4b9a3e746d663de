"""The number of threads: as many as there are free cores.

More threads than free cores are slower than fewer, since all wait for the one without a core: two
threads on two cores, one of them busy, had 0.4 of the speed of one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from unmix.errors import check_number

__all__ = [
    "CoreMeter",
    "choose_threads",
    "cores_each",
    "own_seconds",
    "threads_in_words",
    "usable_cores",
    "using_threads",
]

_WINDOW = 0.2  # seconds; /proc/stat counts hundredths of a second
_BUSY = 0.75  # a core that is free for this share of the time counts as free
_ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """Number of processors that this process may use, such as the share of a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_each(processes: int) -> int:
    """Number of processors for each of the processes of a run on this machine, at least 1.

    A task of SLURM that has processors of its own (`--cpus-per-task`) shares them with no other.

    Args:
        processes: That the run starts on this machine; what torchrun or Ray says is preferred.
    """
    cores = usable_cores()
    own, tasks = (_number(f"SLURM_{name}") for name in ("CPUS_PER_TASK", "NTASKS"))
    if (started := _number("LOCAL_WORLD_SIZE")) is not None:
        processes = started
    elif processes > 1 and own is not None and tasks is not None and tasks > 1:
        return min(cores, own)
    return max(1, cores // processes)


def _number(variable: str) -> int | None:
    """A positive number of the environment; None if it is not there or is none."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


class CoreMeter:
    """Measures how many of the usable cores other processes leave free, since it was made."""

    def __init__(self) -> None:
        self.start = self._sample()

    def free(self) -> float | None:
        """Free cores, at most the usable ones; None if unknown.

        Time that this process itself has computed counts as free. Waits until 0.2 s have passed
        since the start.
        """
        if self.start is None:
            return None
        time.sleep(max(0.0, _WINDOW - (time.monotonic() - self.start[0])))
        now = self._sample()
        if now is None:
            return None
        seconds, idle, own = (b - a for a, b in zip(self.start, now, strict=True))
        return min((idle + own) / seconds, float(usable_cores()), quota())

    def taken(self) -> float | None:
        """Usable cores that other programs took since the start, on average; None if unknown.

        Processes that this one has started count as its own.
        """
        now = self._sample()
        if self.start is None or now is None or now[0] <= self.start[0]:
            return None
        seconds, idle, own = (b - a for a, b in zip(self.start, now, strict=True))
        return max(0.0, usable_cores() - (idle + own) / seconds)

    @staticmethod
    def _sample() -> tuple[float, float, float] | None:
        """Current time, idle seconds of the usable cores, and CPU seconds of this process."""
        idle = idle_seconds()
        if idle is None:
            return None
        return time.monotonic(), idle, own_seconds()


def idle_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Total idle seconds of the usable cores; None if unknown."""
    try:
        ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        tick = os.sysconf("SC_CLK_TCK")
        lines = (line.split() for line in stat.read_text().splitlines())
        # user, nice, system, idle, iowait: waiting for a disk needs no core.
        return sum((int(f[4]) + int(f[5])) / tick for f in lines if f and f[0] in ours)
    except (AttributeError, OSError, ValueError, IndexError):
        return None


def own_seconds(proc: Path = Path("/proc")) -> float:
    """CPU seconds of this process and of those that it has started, such as data workers."""
    spent = os.times()
    total = spent.user + spent.system + spent.children_user + spent.children_system
    with suppress(AttributeError, OSError, ValueError, IndexError):
        tick, parents, seconds = os.sysconf("SC_CLK_TCK"), {}, {}
        for stat in proc.glob("[0-9]*/stat"):
            with suppress(OSError):  # it may have ended meanwhile
                # The name, in parentheses, may hold blanks.
                fields = stat.read_text(errors="replace").rpartition(")")[2].split()
                number = int(stat.parent.name)
                parents[number] = int(fields[1])
                seconds[number] = sum(map(int, fields[11:15])) / tick
        ours = {os.getpid()}
        while more := {n for n, parent in parents.items() if parent in ours and n not in ours}:
            ours |= more
            total += sum(seconds[n] for n in more)
    return total


def quota(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores granted by a container or batch system (control groups); infinite without a limit."""
    try:
        most, period = (group / "cpu.max").read_text().split()
        return float(most) / float(period)
    except (OSError, ValueError):
        return float("inf")


def choose_threads(wanted: int | None, free: float | None, processes: int = 1) -> int:
    """Choose the number of threads.

    Args:
        wanted: The user's choice; taken as it is.
        free: Number of free cores, or None if unknown.
        processes: Processes that train together on this machine; with several, PyTorch's number is
            kept, which the launcher has set.

    Returns:
        At least 1, and at most PyTorch's own number. If the user has set OMP_NUM_THREADS or called
        `torch.set_num_threads`, that is kept.
    """
    if wanted is not None:
        check_number("threads", wanted, at_least=1)
        return wanted
    now = torch.get_num_threads()
    asked = any(os.environ.get(name) for name in _ASKED)
    # PyTorch's default is all cores, or physical cores.
    own_choice = now >= min(usable_cores(), max(1, (os.cpu_count() or 1) // 2))
    if asked or not own_choice or free is None or processes > 1:
        return now
    return max(1, min(now, int(free + 1 - _BUSY)))


def threads_in_words(count: int, free: float | None) -> str:
    """The number of threads as shown in the first lines of a run."""
    cores = usable_cores()
    beside = "" if free is None else f" ({free:.1f} of {cores} core{'s'[: cores > 1]} free)"
    return f"{count} thread{'s'[: count > 1]}{beside}"


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Compute with this number of threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
