"""How much of the time is spent waiting for images, and evaluating."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

__all__ = ["Waiting", "share_of_evaluation"]

_SHARE, _SHORT = 0.2, 10.0
# Seconds of evaluation that are not worth a word.
_BRIEF = 300.0


def share_of_evaluation(
    evaluating: float, training: float, every: Mapping[str, int], alone: bool
) -> str | None:
    """The line of a run that evaluates for more than a fifth of its time; else None.

    Args:
        evaluating: Seconds so far, in which nothing is trained.
        training: Seconds so far without them, above 0.
        every: Epochs from one evaluation to the next, by flag; 0 for none.
        alone: Whether one process of several evaluates, since its weights are sharded.
    """
    share = evaluating / (evaluating + training)
    if share <= _SHARE or evaluating < _BRIEF:
        return None
    others = " by one process, for which the others wait" if alone else ""
    factor = evaluating / training * 19
    rarer = [f"--{flag} {ceil(n * factor)} instead of {n}" for flag, n in every.items() if n]
    return (
        f"note: {share:.0%} of the time so far was spent evaluating{others}; "
        f"{' and '.join(rarer)} would make it 5%"
    )


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
