"""Callbacks: evaluation, console output, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from unmix.config import EvaluationSettings
from unmix.display import duration, rate
from unmix.distributed import pace
from unmix.errors import UserError
from unmix.training.console import is_leader
from unmix.training.loop.evaluator import Evaluator, health_of
from unmix.training.loop.health import Health
from unmix.training.loop.module import Pretraining
from unmix.training.loop.optimizers import learning_rate, match_layouts
from unmix.training.loop.records import Records
from unmix.training.loop.saving import Saving
from unmix.training.loop.sharding import ShardedPretraining, whole_weights
from unmix.training.loop.stopping import Stopping
from unmix.training.loop.waiting import share_of_evaluation

__all__ = ["FACTS", "Checkpoints", "Reporter"]

FACTS = "encoder"
"""Of a checkpoint, with the facts to build its encoder."""


class Checkpoints(Callback):
    """Saves the last checkpoint, and optionally one every few epochs.

    A state that is not finite is never saved, so that the last good one stays. A signal that ends
    the run is obeyed when the step is saved.

    Args:
        folder: Folder of the checkpoints: `last.ckpt` and `epoch-0010.ckpt`.
        every: Epochs between checkpoints that are kept; 0 for none.
        steps: Steps between saves within an epoch; 0 for none.
        stopping: Receives the signals; None if there is nothing to obey.
        saving: Says when to try again what could not be written; None if it is not.
        facts: To build the encoder, as its file has them.
    """

    def __init__(
        self,
        folder: Path,
        every: int = 0,
        steps: int = 0,
        stopping: Stopping | None = None,
        saving: Saving | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.every, self.steps = folder, every, steps
        self.stopping, self.saving, self.facts = stopping or Stopping(), saving, facts

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Receive signals again: by now Lightning has set its own handlers."""
        match_layouts(trainer.optimizers[0])
        self.stopping.connect()
        if self.stopping.handles:
            self.stopping.install()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what the encoder of a run that is not complete is built from."""
        checkpoint[FACTS] = None if self.facts is None else dict(self.facts)

    def on_train_batch_start(self, *_: Any) -> None:
        """From here on a step is not saved."""
        self.stopping.unsaved = True

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within an epoch, if wanted; the last step is saved at the end of the epoch."""
        assert isinstance(pl_module, Pretraining)
        done = trainer.global_step
        if done % len(pl_module.order) == 0:
            return
        due = self.stopping.due(self.saving is not None and self.saving.due)
        if due != Stopping.NOTHING or (self.steps and done % self.steps == 0):
            self.save(trainer, pl_module, "last")
        if due == Stopping.STOP:
            self.stopping.stop()

    def end_of_epoch(self, trainer: L.Trainer, module: Pretraining) -> None:
        """Save at the end of an epoch."""
        self.save(trainer, module, "last")
        epoch = trainer.current_epoch + 1
        if self.every and epoch % self.every == 0:
            self.save(trainer, module, f"epoch-{epoch:04d}")
        self.stopping.unsaved = False
        if self.stopping.due() == Stopping.STOP:
            self.stopping.stop()

    def save(self, trainer: L.Trainer, module: Pretraining, name: str) -> None:
        """Save under a name.

        Raises:
            UserError: if the state is not finite, or cannot be written.
        """
        module.check_state()
        with pace.by_itself():  # the first process writes, again and again where that fails
            trainer.save_checkpoint(self.folder / f"{name}.ckpt")


class Reporter(Callback):
    """Evaluates every few epochs, prints a line per epoch, and logs what it prints.

    An epoch is saved before it is evaluated: a run that is stopped during an evaluation repeats
    only that, since `pending` is part of the checkpoint.

    Args:
        evaluator: Evaluates the method.
        health: Detects collapse and divergence.
        settings: How often to evaluate.
        say: Prints a line.
        records: The rows of `metrics.csv`; None to write none.
        checkpoints: Saves the epochs; None to save none.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        health: Health,
        settings: EvaluationSettings,
        say: Callable[[str], None],
        records: Records | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.evaluator, self.health, self.settings, self.say = evaluator, health, settings, say
        self.records, self.checkpoints = records, checkpoints
        self.unwritten = False
        self.rows: list[dict[str, Any]] = []
        self.pending: dict[str, Any] | None = None
        self.train_seconds = self.evaluation_seconds = 0.0
        self.samples = 0
        self.warned: set[str] = set()
        self.knn: float | None = None
        self.loss: float | None = None
        self.epoch_start = self.fit_start = 0.0
        self.first_epoch = self.first_step = self.before = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, after a pending evaluation of a resumed run."""
        # A run that is resumed within an epoch has done some of its samples.
        assert isinstance(pl_module, Pretraining)
        # Only now the processes are connected, and chance level depends on the samples of all.
        self.health.chance_loss = pl_module.method.chance_loss
        self.first_epoch, self.first_step = trainer.current_epoch, trainer.global_step
        self.fit_start = time.perf_counter()
        if self.records is not None:
            self.records.drop_after(trainer.global_step)
        self.complete(trainer, pl_module)
        self.fit_start = self.epoch_start = time.perf_counter()
        self.before = pl_module.samples

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self.epoch_start = time.perf_counter()
        self.before = 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, then evaluate, log and print."""
        assert isinstance(pl_module, Pretraining)
        means = pl_module.epoch_means()
        seconds = time.perf_counter() - self.epoch_start
        self.train_seconds += seconds
        samples = (pl_module.samples - self.before) * trainer.world_size
        self.samples += samples
        self.loss = means.get("loss")
        if pl_module.first_loss is not None:
            self.health.first_loss = pl_module.first_loss.item()
        self.pending = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            **means,
            "lr": learning_rate(trainer.optimizers[0]),
            "images_per_second": samples / seconds,
            **pl_module.method.state(),
        }
        if self.checkpoints is not None:
            self.checkpoints.end_of_epoch(trainer, pl_module)
        self.complete(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Encode for the evaluation of the last epoch, while all processes are there."""
        if (
            trainer.world_size > 1
            and self.settings.evaluate
            and not isinstance(pl_module, ShardedPretraining)
        ):
            self.evaluator.encode_together()

    def complete(self, trainer: L.Trainer, module: Pretraining) -> None:
        """Evaluate the epoch that is saved but not yet evaluated, if any; log and print."""
        if self.pending is not None:
            with pace.by_itself():
                self._complete(trainer, module, dict(self.pending))

    def _complete(self, trainer: L.Trainer, module: Pretraining, metrics: dict[str, Any]) -> None:
        epoch, step = metrics["epoch"] + 1, metrics["step"]
        started = time.perf_counter()
        if protocols := self._due(epoch, module):
            with whole_weights(module):
                metrics.update(self._measure(protocols, epoch, module))
            self.evaluation_seconds += time.perf_counter() - started
        self.pending = None
        self._record(metrics, trainer)
        self.say(self._line(epoch, module, metrics))
        if epoch <= module.freezing.epochs:
            self.health.stuck_epochs = 0  # of a frozen backbone no progress is expected
        for warning in self.health.warnings(metrics, epoch / module.epochs):
            kind = warning.split(":", 1)[0]
            if kind not in self.warned:
                self.warned.add(kind)
                self.say(f"warning: {warning}")
        if protocols and "evaluating" not in self.warned and trainer.is_global_zero:
            every = {name: getattr(self.settings, name) for name in ("knn_every", "linear_every")}
            note = share_of_evaluation(
                self.evaluation_seconds,
                self.train_seconds,
                every,
                alone=isinstance(module, ShardedPretraining),
            )
            if note is not None:
                self.warned.add("evaluating")
                self.say(note)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in metrics.items() if k != "step"}, step=step)
            logger.save()

    def end(self) -> None:
        """Write the rows that could not be written.

        Raises:
            UserError: if they still cannot be.
        """
        if self.unwritten:
            assert self.records is not None
            self.records.write()

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return {
            "rows": self.rows,
            "records": [] if self.records is None else self.records.rows,
            "pending": self.pending,
            "train_seconds": self.train_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "samples": self.samples,
            "loss": self.loss,
            "warned": sorted(self.warned),
            "health": self.health.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.rows = list(state_dict["rows"])
        if self.records is not None:
            # Checkpoints of 0.1.0 have no records; its file has them.
            rows = state_dict.get("records")
            self.records.rows = self.records.read() if rows is None else list(rows)
        self.pending = state_dict.get("pending")
        self.train_seconds = state_dict["train_seconds"]
        self.evaluation_seconds = state_dict.get("evaluation_seconds", 0.0)
        self.samples = state_dict["samples"]
        self.loss = state_dict["loss"]
        self.warned = set(state_dict.get("warned", ()))
        if "health" in state_dict:
            self.health.load_state_dict(state_dict["health"])

    def _due(self, epoch: int, module: Pretraining) -> tuple[str, ...]:
        """What is to be evaluated after an epoch: kNN, a linear probe, both or nothing."""
        if epoch == module.epochs:  # evaluated with the exported encoder
            return ()
        return tuple(
            name
            for name, every in (
                ("knn", self.settings.knn_every),
                ("linear", self.settings.linear_every),
            )
            if every and epoch % every == 0
        )

    def _measure(
        self, protocols: tuple[str, ...], epoch: int, module: Pretraining
    ) -> dict[str, float]:
        """Accuracies, and spread and rank of the features; nothing but in the first process."""
        together = not isinstance(module, ShardedPretraining)  # of those others hold no method
        if not is_leader():
            if together:
                self.evaluator.assist()
            return {}
        measured, train = self.evaluator(protocols, epoch, together=together)
        rows = [each.row for each in measured]
        self.rows += rows
        accuracies = {row["protocol"]: row["top1"] for row in rows}
        self.knn = accuracies.get("knn", self.knn)
        return {**accuracies, **health_of(train.features)}

    def _record(self, metrics: dict[str, Any], trainer: L.Trainer) -> None:
        if self.records is not None:
            self.records.add(metrics)
            if trainer.is_global_zero:
                self._write()

    def _write(self) -> None:
        assert self.records is not None
        try:
            self.records.write()
        except UserError as error:
            if not self.unwritten:
                self.say(f"warning: {error} Its rows are kept, and written with the next one.")
            self.unwritten = True
        else:
            self.unwritten = False

    def _line(self, epoch: int, module: Pretraining, metrics: dict[str, Any]) -> str:
        epochs = module.epochs
        parts = [f"epoch {epoch:>{len(str(epochs))}}/{epochs}"]
        if "loss" in metrics:
            parts.append(f"loss {metrics['loss']:.3f}")
        parts += [f"{k} {metrics[k]:.1f}%" for k in ("knn", "linear") if k in metrics]
        parts.append(f"{rate(metrics['images_per_second'])} images/s")
        elapsed = time.perf_counter() - self.fit_start
        # In steps, since the first epoch of a resumed run may be incomplete.
        done = metrics["step"] - self.first_step
        left = elapsed / done * (module.total_steps - metrics["step"]) if done > 0 else 0.0
        if left:
            parts.append(f"{duration(left)} left")
        health = []
        if "spread" in metrics:
            health.append(f"spread {metrics['spread']:.2f}")
            health.append(f"rank {metrics['effective_rank']:.0f}")
        if "alpha_req" in metrics:
            health.append(f"alpha {metrics['alpha_req']:.2f}")
        if "uniformity" in metrics:
            health.append(f"uniformity {metrics['uniformity']:.2f}")
        if metrics.get("queue_fill", 1.0) < 1:
            health.append(f"queue {metrics['queue_fill']:.0%} full")
        if {"loss_clean", "loss_mixed"} <= metrics.keys():
            health.append(f"clean {metrics['loss_clean']:.2f}, mixed {metrics['loss_mixed']:.2f}")
        chance = self.health.chance_loss
        if chance is not None and epoch <= self.first_epoch + 1:
            health.append(f"chance level {chance:.2f}")
        return "  ".join(parts) + (f"  ({', '.join(health)})" if health else "")
