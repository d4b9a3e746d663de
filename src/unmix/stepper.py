"""A method, its schedules, its mixture and its memory, driven by anyone's training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from unmix.credit import Rule, UnMixRule
from unmix.distributed import world_size
from unmix.errors import UserError, check_number, renamed
from unmix.methods.base import Method, Progress
from unmix.mixtures import MixtureOperator, MixtureSchedule, Operator
from unmix.step import (
    MemoryUpdate,
    Objective,
    mix_views,
    objective,
    step_generator,
    with_mixtures,
)
from unmix.together import Names, check_crops, mixing_of, smallest_batch
from unmix.transfer import to_device

__all__ = ["Stepper", "after_backward"]


class Stepper(nn.Module):
    """The loss of a step, with everything that a method does around it.

        step = unmix.Stepper(method, steps_per_epoch=len(loader), epochs=100, mixture=unmix.UnMix())
        for x1, x2, index in loader:
            loss = step([x1, x2], index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    A call begins the step (momentum encoders follow, clusters are found, schedules move on), mixes,
    and gives the loss. At the end of its backward pass, before the optimizer's step, the method
    keeps what it remembers (queue, bank, center). Neither can be forgotten: the next call, and
    `state_dict`, refuse to go on if the last loss has had no backward pass.

    It is a module, which holds the method: its `state_dict` is all that a loop needs to go on to
    the bit, beside the optimizer's; wrap it in `DistributedDataParallel` to train on several
    devices. All that it draws follows from the seed and the step's number.

    Args:
        method: What is trained, such as `unmix.MoCo(backbone, n_data)`.
        steps_per_epoch: Optimizer steps of an epoch, usually `len(loader)`.
        epochs: Of the whole run; or give `total_steps`.
        total_steps: Optimizer steps of the whole run.
        mixture: A label-space mixture, such as `unmix.UnMix()`, or a list of several, each with its
            own draw and forward; with a rule by default the one that the rule was published with,
            else none.
        rule: How the mixture's loss is shared, by its name or `unmix.rule(...)`; by default Un-Mix.
            Of several mixtures, of all, or a list with one for each.
        shares: Of several mixtures the weights of their losses, each times that of its rule; by
            default equal, with the sum 1.
        image_space: A perturbation of all views that leaves the loss unchanged, such as
            `unmix.ImageMixture()`.
        joint: Encode clean and mixed images in one forward, or not; None as the rule was released.
        mix_from_epoch: Epochs before the first mixtures, of label and image space.
        mix_ramp_epochs: Epochs after these over which the probability that a step is mixed rises to
            1; see `unmix.mixtures.MixtureSchedule`.
        seed: Of the run.
        accumulate: Batches whose gradients one optimizer step takes. The step begins with the first
            of them; each needs a backward pass of its own, of `loss / accumulate`, and the last
            one's updates the memory, as one batch of all their images would. What they do not share
            with one batch (`across_samples` of the method, batch norm) is warned of.

    Attributes:
        steps: Optimizer steps whose backward passes are done.
        clean: The clean views' part of the last loss, a detached scalar; None if there is none.
        mixed: The mixtures' part, likewise.

    Raises:
        UserError: if a number is out of range, or mixture, rule and method do not go together; at
            the first call, if the method cannot work with batches of this size.
    """

    def __init__(
        self,
        method: Method,
        *,
        steps_per_epoch: int,
        epochs: int | None = None,
        total_steps: int | None = None,
        mixture: MixtureOperator | Sequence[MixtureOperator] | None = None,
        rule: Rule | str | Sequence[Rule | str] | None = None,
        shares: Sequence[float] | None = None,
        image_space: Operator | None = None,
        joint: bool | None = None,
        mix_from_epoch: int = 0,
        mix_ramp_epochs: int = 0,
        seed: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(method, Method):
            raise UserError(
                f"method: {type(method).__name__} is no method of unmix; give one, such as "
                "unmix.MoCo(backbone, n_data)."
            )
        numbers = {"steps_per_epoch": steps_per_epoch, "accumulate": accumulate, "seed": seed}
        for name, number in {**numbers, "epochs": epochs, "total_steps": total_steps}.items():
            if number is not None and not isinstance(number, Integral):
                raise UserError(f"{name}: must be a whole number, got {number!r}.")
        if image_space is not None and not isinstance(image_space, Operator):
            raise UserError(
                f"image_space: {image_space!r} is no perturbation; give one, such as "
                "unmix.ImageMixture()."
            )
        check_number("steps_per_epoch", steps_per_epoch, at_least=1)
        check_number("accumulate", accumulate, at_least=1)
        if (epochs is None) == (total_steps is None):
            raise UserError("epochs, total_steps: give one of them; schedules need the run's end.")
        total = steps_per_epoch * epochs if epochs is not None else total_steps
        assert total is not None
        check_number("epochs" if epochs is not None else "total_steps", total, at_least=1)
        self.method, self.seed, self.accumulate = method, seed, accumulate
        self._name = Names.of(method, "", None).method
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total
        self.image_space, self.joint = image_space, joint
        self.mixing = mixing_of(mixture, rule, shares, method, joint)
        self.operator, self.rule = (*self.mixing, (None, UnMixRule()))[0]
        self.schedule = self._checked_schedule(mix_from_epoch, mix_ramp_epochs)
        self._extra = sum(len(operator.extra) for operator, _ in self.mixing)
        self.smallest = max(
            [smallest_batch(None, method), *(smallest_batch(op, method) for op, _ in self.mixing)]
        )
        self.batches, self._begun, self._saved_begun = 0, -1, False
        self._pending: MemoryUpdate | None = None
        self._earlier: list[MemoryUpdate] = []
        if accumulate > 1 and method.across_samples is not None:
            warnings.warn(
                f"accumulate: the loss of {self._name} depends on {method.across_samples}, which "
                f"are those of one batch, not of the {accumulate} of a step.",
                stacklevel=2,
            )
        self.clean: Tensor | None = None
        self.mixed: Tensor | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps whose backward passes are done."""
        return self.batches // self.accumulate

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A generator for what the loop draws for the coming batch, such as its views.

        Its numbers depend on the seed, the batch and the purpose alone.
        """
        part = self.batches % self.accumulate
        # A part's number alone is what the step's own numbers of that part are for.
        place = ("loop", part) if part else (0,)
        return step_generator(self.seed, self.steps, *place, *purpose)

    def forward(self, views: Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """Begin a step, mix, and give the loss of one batch: a scalar to be minimized.

        Args:
            views: The method's views of the same images, normalized floats (N, C, H, W), on the
                method's device; then what the mixture needs beside them.
            index: The images' numbers in the data set, int64 (N,), on any device; may be left out
                for methods that keep nothing by the image.

        Raises:
            UserError: if the last loss had no backward pass, gradients are off, the method is in
                evaluation mode, the run is over, or views or index do not fit.
        """
        self._check_ready()
        views = self._checked(views)
        index = self._checked_index(index, views[0])
        if len(index) % 2 and any(rule.even for _, rule in self.mixing):
            views, index = [view[:-1] for view in views], index[:-1]
        if self.batches == 0:  # what a run is refused for; later batches may be smaller
            self.method.check_queue(len(index) * self.accumulate * world_size())
            self.method.share_among(world_size())
            self.method.check_batch(len(index))
        if self._begun != self.steps:
            # Of a step that had begun when it was saved, weights are those that it began with.
            begun = deepcopy(self.method.state_dict()) if self._saved_begun else None
            self.method.begin_step(
                Progress(self.steps, self.total_steps, self.steps_per_epoch, self.seed)
            )
            if begun is not None:
                self.method.load_state_dict(begun)
            self._begun, self._saved_begun = self.steps, False
        if part := self.batches % self.accumulate:
            self.method.begin_part(part)
        found = self._objective(views, index)
        if not found.loss.requires_grad:
            raise UserError("method: none of its parameters takes a gradient; unfreeze it.")
        update = found.update_memory
        self.clean, self.mixed, self._pending = found.clean, found.mixed, update
        after_backward(found.loss, lambda: self._finish(update))
        return found.loss

    def skip(self) -> None:
        """Drop the last loss without a backward pass, as where it is not finite.

        Nothing of its batch is kept, and the next call goes on with the same step, for which the
        method has updated its momentum encoder once, also in a run that goes on from a state that
        is saved in between.
        """
        self._pending = None

    def get_extra_state(self) -> dict[str, int]:
        """Where the run is, for `state_dict`.

        Raises:
            UserError: within a step: its loss had no backward pass, or more batches belong to it.
        """
        self._check_backward("its state is not that of a step's end")
        if self.batches % self.accumulate:
            raise UserError(
                f"accumulate: {self.batches % self.accumulate} of {self.accumulate} batches of "
                f"step {self.steps + 1} are done, and gradients are not saved; save after the "
                "optimizer's step."
            )
        begun = self._saved_begun or self._begun == self.steps
        return {"batches": self.batches, "begun": int(begun), **self._identity()}

    def set_extra_state(self, state: Any) -> None:
        """Go on where a run was.

        Raises:
            UserError: if that was a run of other numbers.
        """
        for name, ours in self._identity().items():
            if state.get(name) != ours:
                raise UserError(
                    f"{name}: the state is of a run with {state.get(name)}, and this Stepper has "
                    f"{ours}. Give the same, or load the state of `method` alone to begin a run."
                )
        self.batches, self._begun, self._pending = int(state["batches"]), -1, None
        self._saved_begun = bool(state.get("begun"))  # not in states of earlier versions
        self._earlier = []

    def extra_repr(self) -> str:
        """The numbers of the run, for `repr`."""
        return ", ".join(f"{name}={value}" for name, value in self._identity().items())

    def _identity(self) -> dict[str, int]:
        names = ("seed", "steps_per_epoch", "total_steps", "accumulate")
        return {name: int(getattr(self, name)) for name in names}

    def _checked_schedule(self, from_epoch: int, ramp_epochs: int) -> MixtureSchedule:
        with renamed({"from_epoch": "mix_from_epoch", "ramp_epochs": "mix_ramp_epochs"}):
            schedule = MixtureSchedule(from_epoch, ramp_epochs)
        if schedule == MixtureSchedule():
            return schedule
        if not self.mixing and self.image_space is None:
            raise UserError("mix_from_epoch: is for a mixture; give one, or an image_space.")
        if from_epoch * self.steps_per_epoch >= self.total_steps:
            raise UserError(
                f"mix_from_epoch: after {from_epoch} epochs of {self.steps_per_epoch} steps none "
                f"of the {self.total_steps} of the run is left for the mixture."
            )
        return schedule

    def _objective(self, views: list[Tensor], index: Tensor) -> Objective:
        number = self.batches % self.accumulate
        generator = step_generator(self.seed, self.steps, *((number,) if number else ()))
        mixes = self.schedule.mixes(self.steps, self.steps_per_epoch, self.seed)
        if self.image_space is not None and mixes:
            with torch.no_grad():
                views = mix_views(self.image_space.draw(views[0].shape, generator), views)
        own, mixtures = with_mixtures(
            self.method, views, self.mixing,
            seed=self.seed, step=self.batches, joint=self.joint, mixes=mixes,
        )  # fmt: skip
        return objective(self.method, own, index, generator, mixtures)

    def _finish(self, update: MemoryUpdate) -> None:
        # A loss that was skipped, or has had a backward pass already, has nothing to keep.
        if self._pending is not update:
            return
        self._pending = None
        self.batches += 1
        if self.accumulate == 1:
            update()
            return
        self._earlier.append(update.kept())
        if self.batches % self.accumulate == 0:
            parts, self._earlier = self._earlier, []
            MemoryUpdate.joined(parts)()

    def _check_ready(self) -> None:
        self._check_backward("so the method kept nothing of it")
        if not torch.is_grad_enabled():
            raise UserError(
                "step: gradients are off (torch.no_grad), so nothing would be trained; "
                "unmix.objective gives a loss without a step."
            )
        if not self.method.training:
            raise UserError(
                "method: is in evaluation mode; call step.train() before the next step."
            )
        if self.steps >= self.total_steps:
            raise UserError(
                f"step: all {self.total_steps} steps of the run are done, and its schedules are at "
                "their end; give a Stepper of more epochs."
            )

    def _check_backward(self, why: str) -> None:
        if self._pending is not None:
            raise UserError(
                f"step {self.steps + 1}: loss.backward() was not called, {why}. Call it after each "
                "step(views, index), or step.skip() to leave a batch out."
            )

    def _checked(self, views: Sequence[Tensor]) -> list[Tensor]:
        """The views as a list, if they are what the method and the mixture need."""
        name = self._name
        if isinstance(views, Tensor) or not all(isinstance(view, Tensor) for view in views):
            raise UserError(f"views: {name} needs a list of {self._needed} tensors (N, C, H, W).")
        found, needed = len(views), self._needed
        if found < needed or (found > needed and not self.method.multi_crop):
            beside = f" and {self._extra} more for the mixture" if self._extra else ""
            raise UserError(f"views: {found} were given; {name} needs {self.method.views}{beside}.")
        check_crops([rule for _, rule in self.mixing], self.method, found - self._extra)
        n = len(views[0])
        for view in views:
            if view.ndim != 4 or not view.is_floating_point():
                raise UserError(
                    f"views: {view.dtype} {tuple(view.shape)}; {name} needs normalized floating-"
                    "point images (N, C, H, W), as unmix.views.Views makes of uint8 ones."
                )
            if len(view) != n:
                raise UserError(
                    f"views: of {n} and {len(view)} images; all must be of the same images."
                )
        if n < self.smallest:
            raise UserError(
                f"views: a batch of {n} is too small for {name}, which needs {self.smallest}; give "
                "your DataLoader drop_last=True."
            )
        return list(views)

    @property
    def _needed(self) -> int:
        return self.method.views + self._extra

    def _checked_index(self, index: Tensor | None, view: Tensor) -> Tensor:
        n, n_data = len(view), self.method.kept_images
        if index is None:
            if n_data is not None:
                raise UserError(
                    f"index: {self._name} remembers every image by its number in the data set; let "
                    "your data set give it, and call step(views, index)."
                )
            return torch.arange(n, device=view.device)
        index = torch.as_tensor(index, device=getattr(index, "device", "cpu"))
        if index.shape != (n,) or index.dtype not in (torch.int64, torch.int32):
            raise UserError(
                f"index: {index.dtype} {tuple(index.shape)}; it must be int64 ({n},), the images' "
                "numbers in the data set."
            )
        # On a GPU the host would have to wait for it; there a wrong row is an error of its own.
        if n_data is not None and index.device.type == "cpu":
            low, high = int(index.min()), int(index.max())
            if low < 0 or high >= n_data:
                raise UserError(
                    f"index: {low if low < 0 else high} is out of range; the method was built for "
                    f"n_data {n_data}, whose numbers are 0 to {n_data - 1}."
                )
        return to_device(index.long(), view.device)


def after_backward(loss: Tensor, run: Callable[[], None]) -> None:
    """Call a function at the end of every backward pass that goes through a loss.

    All gradients are there by then, also those that `DistributedDataParallel` averages: it puts
    them in place at the end of the pass, in a callback that is queued during the pass, and ours is
    queued after it.
    """
    engine: Any = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]

    def queue(_: Tensor) -> None:
        engine.queue_callback(lambda: engine.queue_callback(run))

    loss.register_hook(queue)
