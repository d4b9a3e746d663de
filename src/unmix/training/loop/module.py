"""The Lightning module: a method with its views, mixtures, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import lightning as L
import torch
from torch import Tensor

from unmix.config import OptimizerSettings
from unmix.credit import Rule, UnMixRule
from unmix.data import ImageSet, StreamedImages, TensorImages
from unmix.distributed import all_reduce_sum, world_size
from unmix.errors import UserError
from unmix.methods import Method, Progress
from unmix.mixtures import MixtureOperator, MixtureSchedule, Operator
from unmix.stages import stage
from unmix.step import (
    MemoryUpdate,
    Objective,
    mix_views,
    objective,
    step_generator,
    with_mixtures,
)
from unmix.training.loading.batch import augmented, note_broken
from unmix.training.loading.loaders import Batch, EpochOrder
from unmix.training.loop.accumulation import part_sizes
from unmix.training.loop.clipping import clip_gradients, clipped_together
from unmix.training.loop.freezing import Freezing
from unmix.training.loop.health import EXPLODED_WEIGHTS, Advice, all_finite, weight_norm
from unmix.training.loop.means import LossMeans
from unmix.training.loop.optimizers import (
    Schedule,
    build_optimizer,
    build_schedule,
    learning_rate,
    schedule_spans,
    span_of,
)
from unmix.views import Views

__all__ = ["Pretraining"]

_CHECK_EVERY = 50


class Pretraining(L.LightningModule):
    """One step: views, image-space mixture, queries and targets, label-space mixture, loss, memory.

    All random numbers of a step come from a generator seeded by the run's seed and the step alone,
    so a resumed run draws the same as an uninterrupted one.

    Args:
        method: The method to train; the only part with a state.
        views: Makes the views on the device.
        images: The training images.
        order: The order of the samples.
        optimizer: Settings of the optimizer and the schedule.
        epochs: Number of epochs.
        seed: Seed of the run.
        image_space: Mixes all views alike; the loss is unchanged. Or None.
        label_space: Mixes the images, and their losses by `rule`. Or None.
        mixing: Instead of both, the operator and the rule of each mixture of a step.
        channels_last: Whether weights and images are channels last.
        resident: Whether to hold images that are in memory on the device.
        joint: Whether to encode clean and mixed images in one forward pass; None is as the rule was
            released. See `unmix.step.Mixture`.
        rule: Weights the loss of label-space mixtures; Un-Mix's by default.
        advice: Named in the message if the loss is not finite.
        schedule: Which steps are mixed; all of them by default.
        accumulate: Parts in which the images of a step are encoded, one after the other. Their
            gradients are averaged, and memories are updated once, as of one batch.
    """

    def __init__(
        self,
        method: Method,
        views: Views,
        images: ImageSet,
        order: EpochOrder,
        optimizer: OptimizerSettings,
        *,
        epochs: int,
        seed: int = 0,
        image_space: Operator | None = None,
        label_space: MixtureOperator | None = None,
        mixing: Sequence[tuple[MixtureOperator, Rule]] = (),
        channels_last: bool = False,
        resident: bool = True,
        joint: bool | None = None,
        rule: Rule | None = None,
        advice: Advice | None = None,
        schedule: MixtureSchedule | None = None,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.method = method.to(memory_format=torch.channels_last) if channels_last else method
        self.views, self.images, self.order = views, images, order
        self.optimizer_settings, self.epochs, self.seed = optimizer, epochs, seed
        if label_space is not None:
            mixing = [(label_space, rule or UnMixRule())]
        self.image_space, self.mixing, self.joint = image_space, list(mixing), joint
        self.label_space, self.rule = (*self.mixing, (None, UnMixRule()))[0]
        self.schedule = schedule or MixtureSchedule()
        self.freezing = Freezing(method, optimizer.freeze_backbone_epochs)
        self.accumulate, self._in_parts, self.compiled = accumulate, False, False
        held = resident and isinstance(images, TensorImages)
        self.resident = images.images if held and isinstance(images, TensorImages) else None
        self.advice = advice or Advice()
        self.start_norm = weight_norm(method.backbone).item()
        self.first_loss: Tensor | None = None
        self._first: list[Tensor] = []
        self.means = LossMeans()
        self.samples = 0
        self._update_memory: Callable[[], None] | None = None
        self._share: Batch | None = None
        self._clipped: list[list[torch.nn.Parameter]] = []

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * len(self.order)

    @property
    def even(self) -> bool:
        """Whether a batch, of each process, needs an even number of images."""
        return any(rule.even for _, rule in self.mixing)

    @property
    def mixes(self) -> bool:
        """Whether the step at hand is mixed."""
        return self.schedule.mixes(self.global_step, len(self.order), self.seed)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule per step."""
        settings, method = self.optimizer_settings, self.method
        # Clipping needs gradients of their true size, and a fused step divides by float16's scale.
        scaled = bool(settings.clip_grad) and self.trainer.precision == "16-mixed"
        optimizer = build_optimizer(
            settings, method.parameters(), self.device, method.constant_lr_modules(),
            method.backbone, fused=not scaled, embeddings=method.embeddings(),
            undecayed=method.undecayed,
        )  # fmt: skip
        self._clipped = clipped_together(method, settings.clip_grad_by)
        schedule = build_schedule(optimizer, settings, self.epochs, len(self.order))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Set the rates of a run that was extended; its checkpoint has those of its first end."""
        if self.optimizer_settings.restarts:
            schedule = self.lr_schedulers()
            assert isinstance(schedule, Schedule)
            schedule.refresh()

    def on_fit_start(self) -> None:
        """Move held images to the device, and tie the order to the trainer's progress."""
        self.order.position = self._position
        if self.resident is not None:
            self.resident = self.resident.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Reset the sums of the epoch; not called if a run is resumed within an epoch."""
        self.means, self.samples = LossMeans(), 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the sums of the epoch so far."""
        checkpoint.update(self.means.state(), epoch_samples=self.samples)
        checkpoint["first_loss"] = self.first_loss
        checkpoint["processes"] = world_size()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums of the epoch so far."""
        # They are the share of a process, which is another one of other processes.
        share = checkpoint.get("processes", world_size()) / world_size()
        self.means = LossMeans.of(checkpoint, share, self.device)
        self.samples = round(checkpoint["epoch_samples"] * share)
        self.first_loss = checkpoint.get("first_loss")  # not in checkpoints of 0.1.0

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch."""
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss of one batch; None for one with too few images that can be read."""
        self._in_parts = False  # else a step without a loss applies the gradients of the one before
        note_broken(batch, self.images)
        if world_size() > 1:
            batch = self._filled(batch, batch_idx)
        if self.even and len(batch.index) % 2:
            batch = batch.rows(torch.arange(len(batch.index) - 1, device=batch.index.device))
        if len(batch.index) < self.order.smallest:
            return None
        spans = schedule_spans(self.optimizer_settings, self.epochs, len(self.order))
        start, end = span_of(spans, self.global_step)
        with stage("optimizer"):
            self.freezing.begin_step(self.current_epoch)
            place = (self.global_step, end, len(self.order), self.seed, start, self.total_steps)
            self.method.begin_step(Progress(*place))
        # Compiled for full batches; compiling again for a smaller one would not pay.
        short = self.compiled and len(batch.index) != self.order.share
        with torch.compiler.set_stance("force_eager") if short else nullcontext():
            loss = self._loss(batch, self.generator())
        if self.first_loss is None:
            self.first_loss, self._first = torch.stack(self._first).sum(), []
        self.samples += len(batch.index)
        if self.device.type == "cpu" or self.global_step % _CHECK_EVERY == 0:
            self.check_loss()
        return loss

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of a batch; of one in parts, that of the last, after the others' backward."""
        n = len(batch.index)
        sizes = self.parts_of(n)
        self._in_parts = len(sizes) > 1
        if not self._in_parts:
            found = self.compute(batch, generator)
            self._update_memory = found.update_memory
            return self._noted(found, n, 1.0)
        self.trainer.optimizers[0].zero_grad()
        # Of the whole batch, so that a step has the same views however it is encoded.
        views = self.make_views(batch, generator)
        parts = list(zip(batch.index.split(sizes), *(v.split(sizes) for v in views), strict=True))
        updates: list[MemoryUpdate] = []
        for number, (index, *some) in enumerate(parts):
            if number:
                self.method.begin_part(number)
            found = self.objective(some, index, generator, number)
            updates.append(found.update_memory.kept())
            loss = self._noted(found, len(index), len(index) / n)
            if number < len(sizes) - 1:
                self._backward_of_part(loss)
        self._update_memory = MemoryUpdate.joined(updates)
        return loss

    def parts_of(self, n: int) -> list[int]:
        """The sizes of the parts in which `n` images of a step are encoded."""
        most = -(-self.order.share // self.accumulate)
        return part_sizes(n, most, self.order.smallest, self.even)

    def _backward_of_part(self, loss: Tensor) -> None:
        # Processes exchange gradients in the pass of the last part alone, which is Lightning's.
        with torch.autocast(self.device.type, enabled=False):
            self.trainer.strategy.backward(loss, None)

    def _noted(self, step: Objective, count: int, share: float) -> Tensor:
        """The loss times the share of its part in the step, noted for the epoch's means."""
        self.means.add("loss", step.loss.detach(), count)
        if step.clean is not None and self.label_space is not None:
            self.means.add("loss_clean", step.clean, count)
        if step.mixed is not None:
            self.means.add("loss_mixed", step.mixed, count)
        loss = step.loss if share == 1 else step.loss * share
        if self.first_loss is None:
            self._first.append(loss.detach())
        return loss

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Not if there are gradients of earlier parts of the step."""
        if not self._in_parts:
            optimizer.zero_grad()

    def generator(self) -> torch.Generator:
        """Of this step."""
        return step_generator(self.seed, self.global_step)

    def compute(self, batch: Batch, generator: torch.Generator) -> Objective:
        """Views and loss of one batch, whole."""
        return self.objective(self.make_views(batch, generator), batch.index, generator)

    def objective(
        self, views: list[Tensor], index: Tensor, generator: torch.Generator, part: int = 0
    ) -> Objective:
        """The loss of one batch's views, or of those of a part of it."""
        views, mixtures = with_mixtures(
            self.method, views, self.mixing, seed=self.seed, step=self.global_step, part=part,
            joint=self.joint, mixes=self.mixes,
        )  # fmt: skip
        with stage("forward"):
            return objective(self.method, views, index, generator, mixtures or None)

    def on_after_backward(self) -> None:
        """The method keeps its clean queries and targets: no gradient needs the old ones now."""
        self.freezing.end_backward()
        if self._update_memory is not None:
            with stage("optimizer"):
                self._update_memory()
            self._update_memory = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of the whole step, if asked for; Lightning has unscaled them."""
        if gradient_clip_val:
            with stage("optimizer"):
                clip_gradients(self._clipped, gradient_clip_val)

    @torch.no_grad()
    def make_views(self, batch: Batch, generator: torch.Generator) -> list[Tensor]:
        """All views of a batch, with the image-space perturbation if there is one."""
        with stage("views"):
            views = augmented(batch, self.views, self.resident, generator)
        if self.image_space is None or not self.mixes:
            return views
        with stage("mixture"):
            return mix_views(self.image_space.draw(views[0].shape, generator), views)

    def epoch_means(self) -> dict[str, float]:
        """Mean losses of the epoch so far, over the samples of all processes.

        Raises:
            UserError: if no batch had two readable images.
        """
        if not self.samples:
            assert isinstance(self.images, StreamedImages)
            raise UserError(
                f"--data: no batch of {self.images.name} had 2 images that can be read. "
                f"{self.images.skipped.line()}"
            )
        return self.means.over(all_reduce_sum, world_size())

    def own_means(self) -> dict[str, float]:
        """Mean losses over the samples of this process, without waiting for others."""
        return self.means.over(lambda total: total)

    def _filled(self, batch: Batch, number: int) -> Batch:
        """Repeat images in place of broken ones: all processes need batches of one size.

        A share without any image that can be read is the one before, as far as it is needed.
        """
        size = self.order.batch_size
        count = min(size, self.order.n - number * size) // world_size()
        if len(batch.index) == count and not isinstance(self.images, StreamedImages):
            return batch
        share = self._share = batch if len(batch.index) else self._share
        if share is None:
            raise UserError(f"--data: no image of a batch of {count} can be read.")
        if len(batch.index) == count:
            return batch
        return share.rows(torch.arange(count, device=batch.index.device) % len(share.index))

    def _position(self) -> tuple[int, int]:
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready
        if done < len(self.order):
            return self.current_epoch, done
        # A run is resumed from the end of an epoch, and data workers are asked for batches before
        # Lightning has counted that epoch.
        return loop.epoch_progress.current.processed, 0  # type: ignore[attr-defined]

    def check_loss(self) -> None:
        """Check that all losses of this epoch so far were finite.

        Raises:
            UserError: otherwise, with what to try.
        """
        # A sum is finite only if all its terms are.
        total = self.means.sums.get("loss")
        if total is not None and not torch.isfinite(total):
            what = "nan" if total.isnan() else "infinite"
            self._stop(f"the loss is {what}", self.global_step + 1)

    def check_state(self) -> None:
        """Check the state that is about to be saved, in all processes together.

        Raises:
            UserError: if a loss of this epoch, a weight or a buffer is not finite, or the weights
                have exploded, with what to try.
        """
        finite = all_finite([*self.means.sums.values(), *self.parameters(), *self.buffers()])
        finite = finite.to(self.device)
        growth = weight_norm(self.method.backbone) / self.start_norm
        bad = torch.stack([1 - finite.float(), growth / world_size()])
        broken, growth = all_reduce_sum(bad).tolist()
        if broken:
            total = self.means.sums.get("loss")
            own = total is not None and not bool(total.isfinite())
            self._stop("the loss is nan" if own else "a weight is not finite", self.global_step)
        if growth > EXPLODED_WEIGHTS:
            self._stop(f"the weights are {growth:.2g} times as large as at first", self.global_step)

    def _stop(self, what: str, step: int) -> NoReturn:
        """End the run; on a GPU it may have gone wrong a few steps before this one."""
        rate = learning_rate(self.trainer.optimizers[0])
        raise UserError(
            f"{what} at step {step} with learning rate {rate:.3g}; {self.advice.if_diverged}."
        )
