"""How much of an epoch is spent waiting for images."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

__all__ = ["Waiting"]

_SHARE, _SHORT = 0.2, 10.0


class Waiting(Callback):
    """Says once if a good part of an epoch was spent waiting for the data loader.

    The wait for an epoch's first batch is not counted: the workers start then.

    Args:
        advice: What can be done about it, for the line.
        say: Prints a line.
        clock: Returns seconds.
    """

    def __init__(
        self,
        advice: str,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.advice, self.say, self.clock = advice, say, clock
        self.waited = self.first = self.last = 0.0
        self.begun = self.told = False

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin to count."""
        self.waited, self.begun = 0.0, False

    def on_train_batch_start(self, *_: Any) -> None:
        """A batch is there."""
        now = self.clock()
        if self.begun:
            self.waited += now - self.last
        else:
            self.first, self.begun = now, True
        self.last = now

    def on_train_batch_end(self, *_: Any) -> None:
        """The next one is waited for."""
        self.last = self.clock()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say it, unless the epoch was too short to tell, or it was said before."""
        seconds = self.last - self.first
        share = self.waited / seconds if seconds >= _SHORT else 0.0
        if share < _SHARE or self.told or not trainer.is_global_zero:
            return
        self.told = True
        self.say(f"note: {share:.0%} of this epoch was spent waiting for images; {self.advice}")
