"""Signs of life within an epoch."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from unmix.names import shown_lines
from unmix.training.callbacks import Reporter
from unmix.training.module import Pretraining

__all__ = ["Bar", "is_terminal"]


class Bar(TQDMProgressBar):
    """Lightning's progress bar with the loss so far, the last kNN accuracy and images a second."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(refresh_rate=10, leave=False)
        self.reporter = reporter
        reporter.say = self.say

    def say(self, text: str) -> None:
        """Print a line above the bar, instead of behind it."""
        self.print(shown_lines(text))
        sys.stdout.flush()

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count epochs from 1, as the lines above the bar do."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}")

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        assert isinstance(pl_module, Pretraining)
        shown: dict[str, int | str | float | dict[str, float]] = {}
        seconds = time.perf_counter() - self.reporter.epoch_start
        if pl_module.samples:
            shown["loss"] = f"{pl_module.own_means()['loss']:.3f}"
            samples = (pl_module.samples - self.reporter.before) * trainer.world_size
            shown["images/s"] = f"{samples / seconds:,.0f}"
        if self.reporter.knn is not None:
            shown["kNN"] = f"{self.reporter.knn:.1f}%"
        return shown


def is_terminal() -> bool:
    """Whether somebody looks at a terminal."""
    return sys.stderr.isatty()
