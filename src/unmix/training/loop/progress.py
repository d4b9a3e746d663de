"""Progress within an epoch: a bar on a terminal or in a notebook, lines elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from unmix.display import duration, rate
from unmix.names import shown_lines
from unmix.training.console import say as print_line
from unmix.training.loop.callbacks import Reporter
from unmix.training.loop.module import Pretraining

__all__ = ["Bar", "Lines", "shows_bar"]

_EVERY, _WARM, _SHORT = 30.0, 5.0, 20.0


class Bar(TQDMProgressBar):
    """Lightning's progress bar with the loss so far, the last kNN accuracy and the speed."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(refresh_rate=10, leave=False)
        self.reporter = reporter
        reporter.say = reporter.evaluator.say = self.say

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        bar = self._train_progress_bar
        if bar is None or bar.disable:  # Lightning would print nothing
            print_line(text)
            return
        self.print(shown_lines(text))
        sys.stdout.flush()

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count epochs from 1, as the lines above the bar do."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}")

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics that are shown after the bar."""
        assert isinstance(pl_module, Pretraining)
        shown: dict[str, int | str | float | dict[str, float]] = {}
        seconds = time.perf_counter() - self.reporter.epoch_start
        if pl_module.samples:
            shown["loss"] = f"{pl_module.own_means()['loss']:.3f}"
            samples = (pl_module.samples - self.reporter.before) * trainer.world_size
            shown["images/s"] = rate(samples / seconds)
        if self.reporter.knn is not None:
            shown["kNN"] = f"{self.reporter.knn:.1f}%"
        return shown


class Lines(Callback):
    """Progress in a log: at most one line every 30 seconds.

    Once, after the first steps, it also estimates how long the rest of the run takes, unless that
    is less than 20 seconds. The line of an epoch counts as a line. Only the first process prints.

    Args:
        reporter: Knows when the epoch started.
        every: Seconds between lines; None for the estimate alone, beside a bar.
        clock: Returns seconds.
    """

    def __init__(
        self,
        reporter: Reporter,
        every: float | None = _EVERY,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.reporter, self.every, self.clock = reporter, every, clock
        self.begun: tuple[float, int] | None = None
        self.told, self.last, self.estimated = 0.0, 0.0, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.told = self.clock()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exclude the time between epochs from the estimate."""
        if self.begun is not None:
            self.begun = (self.begun[0] + self.clock() - self.last, self.begun[1])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The reporter, called before, has just printed the epoch's line."""
        self.told = self.clock()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Print a line if it is time to."""
        assert isinstance(pl_module, Pretraining)
        if not trainer.is_global_zero:
            return
        now, step = self.clock(), trainer.global_step
        left = pl_module.total_steps - step
        self.last = now
        if self.begun is None:
            self.begun = (now, step)  # the first step compiles and waits for the data workers
        seconds, steps = now - self.begun[0], step - self.begun[1]
        if not self.estimated and seconds >= _WARM and steps >= 3:
            self.estimated = True
            if left * seconds / steps >= _SHORT:
                self.reporter.say(
                    f"about {duration(left * seconds / steps)} for the {left:,} steps that are "
                    "left, without evaluations"
                )
        if self.every is not None and now - self.told >= self.every:
            self.told = now
            self.reporter.say(self._line(trainer, pl_module, step, left))

    def _line(self, trainer: L.Trainer, module: Pretraining, step: int, left: int) -> str:
        parts = [f"step {step:,}/{module.total_steps:,} (epoch {trainer.current_epoch + 1})"]
        if module.samples:
            parts.append(f"loss {module.own_means()['loss']:.3f}")
        seconds = max(1e-9, self.clock() - self.reporter.epoch_start)
        samples = (module.samples - self.reporter.before) * trainer.world_size
        if samples > 0:
            parts.append(f"{rate(samples / seconds)} images/s")
            ahead = left * module.order.batch_size / (samples / seconds)
            parts.append(f"{duration(ahead)} left")
        return "  ".join(parts)


def shows_bar() -> bool:
    """Whether a bar can be shown: on a terminal, or in a notebook with tqdm's widgets."""
    in_notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None
    return sys.stderr.isatty() or in_notebook
