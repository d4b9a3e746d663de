"""What a run does while its checkpoints cannot be written: it goes on, and tries again."""

from __future__ import annotations

import time
from collections.abc import Callable

from unmix.display import duration
from unmix.errors import Interrupted, UserError
from unmix.training.console import say
from unmix.training.loop.stopping import Stopping

__all__ = ["Saving"]


class Saving:
    """Writes checkpoints, again and again where that fails.

    A disk that is full, or a folder that is read-only or away, may be as before when the run ends,
    and what is not saved would be lost for certain if the run ended now. So a failed write is a
    warning, and is repeated each minute; the earlier checkpoint stays. The run ends if it fails for
    an hour, or if the last step cannot be saved: then it waits for as long as the unsaved steps
    took.

    Args:
        total: Steps of the run.
        stopping: Is told which step is saved last, and says when to give up.
        check: Called before each write; raises a UserError if the folder is not ours any more.
        tell: Prints a line.
        clock: Returns seconds.
        sleep: Waits for some seconds.
    """

    AGAIN, LIMIT = 60.0, 3600.0

    def __init__(
        self,
        total: int,
        stopping: Stopping,
        check: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.total, self.stopping, self.check = total, stopping, check
        self.tell, self.clock, self.sleep = tell, clock, sleep
        self.saved_at = self.tried_at = clock()
        self.failing_since: float | None = None
        self.ended_at: float | None = None

    @property
    def due(self) -> bool:
        """Whether to try again what has failed."""
        return self.failing_since is not None and self.clock() - self.tried_at >= self.AGAIN

    def save(self, step: int, write: Callable[[], None]) -> None:
        """Write the checkpoint of a step.

        Raises:
            UserError: if it cannot be written, and trying again makes no sense.
            Interrupted: if a signal arrives while the end of the run is waited for.
        """
        while True:
            try:
                self.check()
                write()
            except UserError as error:
                if not isinstance(error.__cause__, OSError):
                    raise
                self._failed(error, step >= self.total)
            else:
                self._succeeded(step)
                return
            if step < self.total:
                return
            self._wait()

    def _failed(self, error: UserError, final: bool) -> None:
        now = self.clock()
        self.tried_at = now
        first = self.failing_since is None
        if self.failing_since is None:
            self.failing_since = now
        if final and self.ended_at is None:
            self.ended_at, first = now, True
        if self.ended_at is None:
            over = now - self.failing_since >= self.LIMIT
        else:
            patience = min(self.LIMIT, self.ended_at - self.saved_at)
            over = patience < self.AGAIN or now - self.ended_at >= patience
        if over:
            raise error
        what = "The training has ended, but is not saved" if final else "Training goes on"
        if first:
            self.tell(f"warning: {error} {what}; it is tried again each minute.")

    def _succeeded(self, step: int) -> None:
        self.saved_at = self.clock()
        self.stopping.saved = step
        if self.failing_since is not None:
            self.tell(f"saved again, after {duration(self.saved_at - self.failing_since)}")
            self.failing_since = None

    def _wait(self) -> None:
        until = self.clock() + self.AGAIN
        while self.clock() < until:
            if self.stopping.received is not None:
                raise Interrupted(self.stopping.received)
            self.sleep(min(1.0, self.AGAIN))
