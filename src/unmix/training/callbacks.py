"""What happens beside the steps: measuring, telling, keeping."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar
from torch import Tensor

from unmix.config import EvaluationSettings
from unmix.data import ImageSet
from unmix.evaluation import Measured, effective_rank, measure, split_features, spread
from unmix.names import shown_lines
from unmix.randomness import generator_for
from unmix.training.machine import Machine
from unmix.training.module import Pretraining

__all__ = [
    "Bar",
    "Checkpoints",
    "Evaluator",
    "Health",
    "Reporter",
    "duration",
    "spread_and_rank",
]

_HEALTH_SAMPLE = 2048


class Evaluator:
    """Measures a method on the training and test images.

    Args:
        module: The pretraining whose method is measured.
        train: Images that may be learnt from.
        test: Images to predict, or None.
        settings: Protocols' numbers, and which features.
        machine: Where to compute.
    """

    def __init__(
        self,
        module: Pretraining,
        train: ImageSet,
        test: ImageSet | None,
        settings: EvaluationSettings,
        machine: Machine,
    ) -> None:
        self.module, self.train, self.test = module, train, test
        self.settings, self.machine = settings, machine

    @property
    def labelled(self) -> bool:
        """Whether there are classes to predict."""
        return self.test is not None and self.train.labels is not None and len(self.test) > 0

    def features(self, images: ImageSet) -> Measured:
        """Features of a split, as the settings want them."""
        method = self.module.method
        encode = method.features if self.settings.features == "backbone" else method.projections
        views = self.module.views
        # Compiling the encoders again for evaluation would take longer than it saves.
        with torch.compiler.set_stance("force_eager"):
            return split_features(
                encode, images, views.plain, views.size, device=self.module.device,
                dtype=self.machine.autocast, workers=self.machine.workers,
            )  # fmt: skip

    def __call__(self, protocols: tuple[str, ...], epoch: int) -> tuple[list[dict[str, Any]], Any]:
        """Rows of `results.json` for an epoch, and the training features that they used."""
        train = self.features(self.train)
        if not self.labelled or not protocols:
            return [], train
        assert self.test is not None
        assert self.train.classes is not None
        rows = measure(
            train, self.features(self.test), len(self.train.classes), protocols,
            k=self.settings.knn_k, temperature=self.settings.knn_temperature,
            generator=generator_for(self.module.seed, "probe"), device=self.module.device,
        )  # fmt: skip
        return [{**row, "epoch": epoch, "features": self.settings.features} for row in rows], train


class Health:
    """Says what a user can act on: has training collapsed, has it started to learn?

    Args:
        chance_loss: The loss of a model that has learnt nothing, or None.
    """

    def __init__(self, chance_loss: float | None) -> None:
        self.chance_loss = chance_loss
        self.stuck_epochs = 0

    def warnings(self, measured: dict[str, float], progress: float) -> list[str]:
        """Warnings from an epoch's numbers.

        Args:
            measured: `loss_clean`, `spread`, `effective_rank` and what the method adds.
            progress: Share of the epochs that are done, in (0, 1].
        """
        lines = []
        rank, width = measured.get("effective_rank", math.inf), measured.get("spread", 1.0)
        if width < 0.05 or rank < 2:
            lines.append(
                f"collapsed: all images get nearly the same features (spread {width:.2f}, rank "
                f"{rank:.1f}); try a smaller --lr, or stronger views."
            )
        loss = measured.get("loss_clean", measured.get("loss"))
        if "loss_mixed" in measured and "loss_clean" not in measured:
            loss = None  # what guessing costs is known of clean views only
        full = measured.get("queue_fill", 1.0) >= 1
        stuck = self.chance_loss is not None and loss is not None and loss > 0.98 * self.chance_loss
        # The first epoch with a full queue is the hardest; one more has to confirm it.
        self.stuck_epochs = self.stuck_epochs + 1 if stuck and full else 0
        if self.stuck_epochs >= 2 and progress >= 0.2:
            lines.append(
                f"not learning yet: the loss {loss:.2f} is that of guessing "
                f"({self.chance_loss:.2f}, the ln of its candidates); try another --lr, a smaller "
                "queue, or wait."
            )
        return lines


class Reporter(Callback):
    """Measures every few epochs, prints a line an epoch, and logs what it prints.

    Args:
        evaluator: Measures.
        health: Warns.
        settings: How often.
        say: Prints a line.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        health: Health,
        settings: EvaluationSettings,
        say: Callable[[str], None],
    ) -> None:
        self.evaluator, self.health, self.settings, self.say = evaluator, health, settings, say
        self.rows: list[dict[str, Any]] = []
        self.train_seconds = 0.0
        self.samples = 0
        self.warned: set[str] = set()
        self.knn: float | None = None
        self.loss: float | None = None
        self.epoch_start = self.fit_start = 0.0
        self.first_epoch = self.before = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.fit_start = self.epoch_start = time.perf_counter()
        # A run that is resumed within an epoch has some of its samples behind it.
        assert isinstance(pl_module, Pretraining)
        self.before = pl_module.samples
        self.first_epoch = trainer.current_epoch
        # Only now the processes are joined, and guessing is among the samples of all.
        self.health.chance_loss = pl_module.method.chance_loss

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self.epoch_start = time.perf_counter()
        self.before = 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, log and tell."""
        assert isinstance(pl_module, Pretraining)
        means = pl_module.epoch_means()
        seconds = time.perf_counter() - self.epoch_start
        self.train_seconds += seconds
        samples = (pl_module.samples - self.before) * trainer.world_size
        self.samples += samples
        epoch = trainer.current_epoch + 1
        speed = samples / seconds
        optimizer = trainer.optimizers[0]
        metrics = {**means, "lr": optimizer.param_groups[0]["lr"], "images_per_second": speed}
        metrics.update(pl_module.method.state())
        if trainer.is_global_zero:
            metrics.update(self._measure(epoch, pl_module))
        self.loss = means.get("loss")
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": epoch - 1, **metrics}, step=trainer.global_step)
            logger.save()
        self.say(self._line(epoch, pl_module.epochs, metrics))
        for warning in self.health.warnings(metrics, epoch / pl_module.epochs):
            kind = warning.split(":", 1)[0]
            if kind not in self.warned:
                self.warned.add(kind)
                self.say(f"warning: {warning}")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {
            "rows": self.rows,
            "train_seconds": self.train_seconds,
            "samples": self.samples,
            "loss": self.loss,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what an earlier part of the run measured."""
        self.rows = list(state_dict["rows"])
        self.train_seconds = state_dict["train_seconds"]
        self.samples = state_dict["samples"]
        self.loss = state_dict["loss"]

    def _measure(self, epoch: int, module: Pretraining) -> dict[str, float]:
        """kNN, linear probe and the spread of features, where this epoch is due."""
        protocols = tuple(
            name
            for name, every in (
                ("knn", self.settings.knn_every),
                ("linear", self.settings.linear_every),
            )
            if every and epoch % every == 0
        )
        # The last epoch is measured with the encoder that is exported.
        if not protocols or epoch == module.epochs:
            return {}
        rows, train = self.evaluator(protocols, epoch)
        self.rows += rows
        found = {row["protocol"]: row["top1"] for row in rows}
        self.knn = found.get("knn", self.knn)
        return {**found, **spread_and_rank(train.features)}

    def _line(self, epoch: int, epochs: int, metrics: dict[str, float]) -> str:
        parts = [f"epoch {epoch:>{len(str(epochs))}}/{epochs}"]
        if "loss" in metrics:
            parts.append(f"loss {metrics['loss']:.3f}")
        parts += [f"{k} {metrics[k]:.1f}%" for k in ("knn", "linear") if k in metrics]
        parts.append(f"{metrics['images_per_second']:,.0f} images/s")
        gone = time.perf_counter() - self.fit_start
        left = gone / (epoch - self.first_epoch) * (epochs - epoch)
        if left:
            parts.append(f"{duration(left)} left")
        health = []
        if "spread" in metrics:
            health.append(f"spread {metrics['spread']:.2f}")
            health.append(f"rank {metrics['effective_rank']:.0f}")
        if metrics.get("queue_fill", 1.0) < 1:
            health.append(f"queue {metrics['queue_fill']:.0%} full")
        if "loss_clean" in metrics:
            health.append(f"clean {metrics['loss_clean']:.2f}, mixed {metrics['loss_mixed']:.2f}")
        chance = self.health.chance_loss
        if chance is not None and epoch <= self.first_epoch + 1:
            health.append(f"guessing would be {chance:.2f}")
        return "  ".join(parts) + (f"  ({', '.join(health)})" if health else "")


class Checkpoints(Checkpoint):
    """Keeps the last checkpoint, and one every few epochs if asked.

    Args:
        folder: Where they go: `last.ckpt` and `epoch-0010.ckpt`.
        every: Epochs between those that are kept; 0 for none.
        steps: Steps between saves within an epoch; 0 for none.
    """

    def __init__(self, folder: Path, every: int = 0, steps: int = 0) -> None:
        self.folder, self.every, self.steps = folder, every, steps

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within an epoch, if asked."""
        if self.steps and trainer.global_step % self.steps == 0:
            trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save."""
        trainer.save_checkpoint(self.folder / "last.ckpt")
        epoch = trainer.current_epoch + 1
        if self.every and epoch % self.every == 0:
            trainer.save_checkpoint(self.folder / f"epoch-{epoch:04d}.ckpt")


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


def spread_and_rank(features: Tensor) -> dict[str, float]:
    """The spread and the effective rank of a sample of features, evenly spaced over the images."""
    step = max(1, len(features) // _HEALTH_SAMPLE)
    sample = features[::step]
    return {"spread": spread(sample), "effective_rank": effective_rank(sample)}


def is_terminal() -> bool:
    """Whether somebody looks at a terminal."""
    return sys.stderr.isatty()
