"""Signals that end a run: it is saved within the step, then stops."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from unmix.distributed import world_size
from unmix.errors import Interrupted
from unmix.training.console import is_leader

__all__ = ["Stopping", "is_warning"]

# A scheduler's warning before the end of a job: SLURM's by its users' habit, and submitit's.
WARNINGS = ("SIGUSR1", "SIGUSR2")
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", *WARNINGS)  # SIGHUP is that of a closed terminal

_WARNED = 256  # more than any signal's number


def is_warning(number: int) -> bool:
    """Whether a signal says that a job's time is nearly over, and not that it is canceled."""
    return signal.Signals(number).name in WARNINGS


class Stopping:
    """Ends a run when a signal asks for it: at once if all is saved, else after the step.

    While a step is under way the signal is noted, and the caller asks what is `due` after each
    step. Of several processes all stop after the same step, whichever received the signal. A second
    SIGINT ends the process at once. Signals that are ignored, as by `nohup`, stay so. Of several
    signals the first is `received`, or a scheduler's warning, after which a job is queued again.

    Attributes:
        unsaved: Whether there is something to save.
        received: The signal, if one asked for the end.
        saved: The step from which the run can go on, as far as this process knows.
    """

    NOTHING, SAVE, STOP = 0, 1, 2

    def __init__(self) -> None:
        self.unsaved = False
        self.saved: int | None = None
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> Stopping:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def install(self) -> None:
        """Handle the signals; again after Lightning has set its own handlers.

        Lightning's for SIGTERM broadcasts, which no other process joins.
        """
        for name in _NAMES:
            number = getattr(signal, name, None)  # Windows has two of them
            if number is None or signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                before = signal.signal(number, self._handle)
            except ValueError:  # only the main thread receives signals
                return
            self._before.setdefault(number, before)

    @property
    def handles(self) -> bool:
        """Whether it has handlers to restore later."""
        return bool(self._before)

    def connect(self) -> None:
        """Connect the processes of a distributed run; all have to call it."""
        self._asked = None
        # On the CPU, so that the host never waits for a GPU.
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None
        self._note(number)
        # Of several processes the others wait for the first, which would miss one that has ended.
        at_once = not self.unsaved and (self._group is None or is_leader())
        if at_once or (again and number == signal.SIGINT):
            raise Interrupted(number)
        if not again and is_leader():
            name = signal.Signals(number).name
            # Not print, whose buffer the signal may have interrupted.
            os.write(2, f"{name}: the run stops when this step is saved\n".encode())

    def _note(self, number: int) -> None:
        if self.received is None or is_warning(number):
            self.received = number

    def _code(self) -> int:
        """What was received, as a number of which the largest over all processes counts."""
        if self.received is None:
            return 0
        return self.received + _WARNED * is_warning(self.received)

    def due(self, save: bool = False) -> int:
        """What to do after a step: STOP (and save before), SAVE or NOTHING.

        It is the same for all processes, at the latest a step later.

        Args:
            save: Whether this process asks for a save.
        """
        asks = self.STOP if self.received is not None else self.SAVE if save else self.NOTHING
        if self._group is None:
            return asks
        before, found = self._asked, self.NOTHING
        if before is not None:
            before[0].wait()
            found = min(int(before[1].item()), self.STOP)
            if code := max(0, int(before[1].item()) - self.STOP):
                self._note(code % _WARNED)  # what another process received counts for all
        flag = torch.tensor([asks + self._code()])
        self._asked = (
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group, async_op=True),
            flag,
        )
        return found

    def stop(self) -> None:
        """End the run, which is saved.

        Raises:
            Interrupted: always.
        """
        raise Interrupted(self.received or signal.SIGTERM)
