"""What is asked of a job that trains: its time, its CPUs and its options of sbatch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from unmix.errors import UserError, check_number
from unmix.names import shown

__all__ = ["DAY", "Asked", "Plain", "minutes"]

DAY = "1-00:00:00"
# What other flags say, or this command decides.
_OURS = {
    "account": "account", "cpus-per-task": "cpus", "gpus": "gpus", "gpus-per-node": "gpus",
    "job-name": "name", "mem": "mem", "nodes": "nodes", "ntasks": "devices",
    "ntasks-per-node": "devices", "partition": "partition", "time": "time",
    "error": None, "open-mode": None, "output": None,
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is asked of a job."""

    cpus: int | None
    mem: float | None
    time: str | None
    partition: str | None
    account: str | None
    name: str | None
    slurm: tuple[str, ...]
    setup: tuple[str, ...]
    requeues: int | None

    def check(self, executor: str) -> None:
        """Check the values, and that each applies to the executor.

        Raises:
            UserError: for the first one that does not.
        """
        if self.cpus is not None:
            check_number("cpus", self.cpus, at_least=1)
        if self.mem is not None:
            check_number("mem", self.mem, above=0)
        if self.requeues is not None:
            check_number("requeues", self.requeues, at_least=0)
        limit = 60 * minutes(self.time or DAY)
        warned = re.search(r"@(\d+)$", str(self.options().get("signal", "")))
        if warned is not None and int(warned[1]) >= limit:
            raise UserError(
                f"signal is sent {warned[1]} s before the end, when a job of {limit} s has not "
                "begun; give a longer `time` or a later signal.",
                parameter="slurm",
            )
        given = {word: value for word, value in vars(self).items() if value not in (None, ())}
        known = {"local": {"time", "setup", "requeues", "name"}, "debug": set()}.get(executor)
        for word in given if known is None else sorted(given.keys() - known):
            if known is not None:
                raise UserError(
                    f"applies to SLURM and not to `executor={executor}`; leave it out.",
                    parameter=word,
                )

    def options(self) -> dict[str, Any]:
        """The further options of sbatch.

        Raises:
            UserError: for one that has no name, or that another flag gives.
        """
        found: dict[str, Any] = {}
        for text in self.slurm:
            key, equals, value = text.partition("=")
            key = key.strip().lstrip("-").replace("_", "-")
            if not re.fullmatch(r"[a-z][a-z-]*", key) or (equals and not value) or "\n" in value:
                raise UserError(
                    f"{text!r} must be KEY=VALUE, or KEY, such as constraint=a100 or exclusive.",
                    parameter="slurm",
                )
            if key in _OURS:
                flag = _OURS[key]
                which = "the run folder has it" if flag is None else f"give `{flag}` instead"
                raise UserError(f"{key} is decided by unmix submit; {which}.", parameter="slurm")
            found[key] = value if equals else True
        return found

    def line(self, executor: str, plain: Plain) -> str:
        """What is submitted, in a line."""
        where = {"slurm": "a job of SLURM", "local": "a job of this machine"}.get(executor)
        if where is None:
            return "training in this process (executor debug)"
        each = f"{plain.devices} processes"
        if plain.gpus:
            each = f"{plain.gpus} GPU{'s' if plain.gpus > 1 else ''}"
        parts = [f"{plain.nodes} machine{'s' if plain.nodes > 1 else ''} x {each}"]
        if self.cpus is not None:
            parts.append(f"{self.cpus} CPUs for each device")
        parts.append(f"time limit {self.time or DAY}")
        if self.partition is not None:
            parts.append(f"partition {shown(self.partition)}")
        return f"{where}: {', '.join(parts)}"


@dataclass(frozen=True)
class Plain:
    """What a job needs to know of the run."""

    nodes: int
    devices: int
    gpus: int


def minutes(text: str) -> int:
    """The minutes of a time limit in one of SLURM's forms, rounded up.

    Raises:
        UserError: if it is none of them, or not longer than 0.
    """
    days, dash, clock = text.strip().rpartition("-")
    numbers = clock.split(":")
    total = 0
    if len(numbers) <= 3 and all(re.fullmatch(r"\d{1,6}", n) for n in (days or "0", *numbers)):
        a, b, c = (int(n) for n in (*numbers, "0", "0")[:3])
        hours_first = dash or len(numbers) == 3
        total = 86400 * int(days or 0) + (3600 * a + 60 * b + c if hours_first else 60 * a + b)
    if dash and not days:
        total = 0
    if total <= 0:
        raise UserError(
            f"{text!r} is not a time limit; give minutes, HOURS:MINUTES:SECONDS or "
            "DAYS-HOURS:MINUTES:SECONDS, such as 24:00:00.",
            parameter="time",
        )
    return -(-total // 60)
