"""Profiling of a training step: the time of each stage, and of the whole."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.flop_counter import FlopCounterMode

from unmix.data import StreamedImages
from unmix.errors import UserError
from unmix.hardware.devices import hardware, peak_memory, timed, versions, wait
from unmix.randomness import generator_for
from unmix.stages import observe_stages
from unmix.training.loading.loaders import Batch, FileCrops, build_loader
from unmix.training.loop.compiling import Compiling
from unmix.training.loop.module import Pretraining
from unmix.training.run.parts import Parts
from unmix.training.run.trainer import build_trainer

__all__ = ["STAGES", "Times", "facts", "matmul_rate", "measure_stages", "whole_steps"]

STAGES = {
    "read": "bytes of the files, one process",
    "decode": "decode and crop, one process",
    "load": "read, decode and crop, all workers",
    "views": "uint8 images to views, on the device",
    "mixture": "draw and apply",
    "forward": "encoders and loss",
    "backward": "gradients",
    "optimizer": "step, momentum encoder, memory",
    "step": "whole training step, through the trainer",
}
"""The stages in the order of a step, with a description."""

MODEL = ("forward", "backward")
_FILES = 64


@dataclass
class Times:
    """Durations of stages, and their numbers of images.

    Attributes:
        seconds: For each stage the duration of each run.
        images: For each stage the number of images of a run.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def add(self, stage: str, seconds: float, images: int) -> None:
        """Add one run of a stage."""
        self.seconds.setdefault(stage, []).append(seconds)
        self.images[stage] = images

    def rates(self, stage: str) -> dict[str, float]:
        """Median, minimum and maximum images per second."""
        rates = [self.images[stage] / s for s in self.seconds[stage]]
        return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}

    def per_image(self, stage: str) -> float:
        """Median seconds per image; 0 for a stage that was not timed."""
        if stage not in self.seconds:
            return 0.0
        return statistics.median(self.seconds[stage]) / self.images[stage]


def measure_stages(parts: Parts, *, steps: int = 5, warmup: int = 2) -> dict[str, Any]:
    """Time whole steps through the trainer, then the stages of further steps.

    Whole steps are first: compilation happens in them, and they do not wait for the device between
    stages.

    Args:
        parts: Components of a run; its method is trained meanwhile.
        steps: Number of timed steps, of either kind.
        warmup: Number of steps before them.

    Returns:
        "times" (`Times`), "flops_per_image" of the matrix products and convolutions of forward and
        backward, "matmul_flops_per_second", and "peak_memory_bytes".

    Raises:
        UserError: if fewer than 2 images of a batch can be read.
    """
    times = Times()
    module, device = parts.module, parts.machine.device
    batch = _a_batch(parts).to(device)
    if isinstance(parts.train, StreamedImages):
        _file_stages(parts, times, steps)
    clock = _StageClock(parts, times, steps)
    for seconds in whole_steps(parts, steps, warmup, clock):
        times.add("step", seconds, parts.settings.run.batch_size)
    peak = peak_memory(device)
    # The trainer has put the module back on the CPU.
    module.to(device)
    module.train()
    # Not the whole batch at once, if it is encoded in parts because it does not fit.
    part = batch.rows(torch.arange(module.parts_of(len(batch.index))[0], device=device))
    flops = count_flops(module, part, parts.machine.autocast)
    return {
        "times": times,
        "flops_per_image": flops / len(part.index),
        "matmul_flops_per_second": matmul_rate(device, parts.machine.autocast),
        "peak_memory_bytes": peak,
    }


def facts(parts: Parts, measured: dict[str, Any]) -> dict[str, Any]:
    """The measurements as plain numbers: the content of the JSON file.

    Args:
        parts: Components of the run.
        measured: From `measure_stages`.
    """
    times: Times = measured["times"]
    model = sum(times.per_image(stage) for stage in MODEL)
    step, flops = times.per_image("step"), measured["flops_per_image"]
    limit = measured["matmul_flops_per_second"] * parts.settings.machine.processes
    return {
        "schema": 1,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": parts.settings.flat(),
        "images": parts.where,
        "stages": {
            stage: {
                "images_per_second": times.rates(stage),
                "milliseconds_per_step": 1e3
                * times.per_image(stage)
                * parts.settings.run.batch_size,
                "runs": len(times.seconds[stage]),
            }
            for stage in STAGES
            if stage in times.seconds
        },
        "outside_model_share": max(0.0, 1 - model / step),
        "flops_per_image": flops,
        "model_flops_per_second": flops / model,
        "matmul_flops_per_second": limit,
        "model_share_of_matmul_rate": flops / model / limit,
        "images_per_second_at_matmul_rate": limit / flops,
        "peak_memory_bytes": measured["peak_memory_bytes"],
        "hardware": {**hardware(parts.machine.device), "precision": parts.machine.precision},
        "versions": versions(),
    }


class _StageClock(Callback):
    """Times the stages of the trainer's steps; waits for the device where one ends.

    Args:
        parts: Of the run.
        times: Where the stages are noted.
        steps: How many steps.

    Attributes:
        start: Steps that are done before the first that is timed.
    """

    def __init__(self, parts: Parts, times: Times, steps: int) -> None:
        self.device, self.batch_size = parts.machine.device, parts.settings.run.batch_size
        self.share = self.batch_size // parts.settings.machine.processes
        self.times, self.steps, self.start = times, steps, 0
        self.stack: list[str] = []
        self.found: dict[str, float] = {}
        self.images, self.since = 0, 0.0
        self.observing = ExitStack()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, *_: Any
    ) -> None:
        """Begin a step."""
        if trainer.global_step < self.start:
            return
        self.found, self.stack, self.images = {}, [""], len(batch.index)
        self.observing.enter_context(observe_stages(self._stage))
        self._lap()

    def on_before_backward(self, *_: Any) -> None:
        """The loss is computed."""
        self._go_on_with("backward")

    def on_after_backward(self, *_: Any) -> None:
        """The gradients are computed; the module's own hook comes after this one."""
        self._go_on_with("optimizer")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the step, as of a whole batch; not one without enough images that can be read."""
        if not self.stack:
            return
        self._lap()
        self.observing.close()
        if "backward" in self.found:
            for name in STAGES.keys() & self.found.keys():
                seconds = self.found[name] * self.share / self.images
                self.times.add(name, seconds, self.batch_size)
        self.stack = []

    def _go_on_with(self, stage: str) -> None:
        if self.stack:
            self._lap()
            self.stack = [stage]

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._lap()
        self.stack.append(name)
        yield
        self._lap()
        self.stack.pop()

    def _lap(self) -> None:
        """Give the time since the last call to the innermost stage."""
        wait(self.device)
        now = time.perf_counter()
        self.found[self.stack[-1]] = self.found.get(self.stack[-1], 0.0) + now - self.since
        self.since = time.perf_counter()


def count_flops(module: Pretraining, batch: Batch, dtype: torch.dtype | None) -> int:
    """Floating-point operations of the matrix products and convolutions of forward and backward.

    No weight changes.

    Args:
        module: What is trained.
        batch: On the module's device.
        dtype: Of autocast; None is without.
    """
    generator = generator_for(module.seed, "bench", "flops")
    autocast = torch.autocast(module.device.type, dtype=dtype, enabled=dtype is not None)
    # The counter does not see operations in compiled code.
    with autocast, torch.compiler.set_stance("force_eager"):
        views = module.make_views(batch, generator)
        with FlopCounterMode(display=False) as counter:
            module.objective(views, batch.index, generator).loss.backward()
    module.zero_grad()
    return counter.get_total_flops()


def _a_batch(parts: Parts) -> Batch:
    """A batch from the data loader.

    Raises:
        UserError: if fewer than 2 of its images can be read.
    """
    module = parts.module
    loader = build_loader(
        parts.train, module.views, module.order, resident=module.resident is not None, workers=0
    )
    batch = next(iter(loader))
    if isinstance(parts.train, StreamedImages):
        for error in batch.broken:
            parts.train.skipped.add(error)
        if len(batch.index) < 2:
            raise UserError(
                f"--data: of a batch of {parts.train.name}, {len(batch.index)} images can be read; "
                f"a step needs 2. {parts.train.skipped.line()}"
            )
    return batch


def _file_stages(parts: Parts, times: Times, steps: int) -> None:
    """Time reading and decoding, in one process and in the workers."""
    images, module = parts.train, parts.module
    assert isinstance(images, StreamedImages)
    chosen = range(0, len(images), max(1, len(images) // _FILES))
    crops = FileCrops(images, module.views, module.seed)
    readable = [i for i in chosen if not crops[0, i].broken]
    if readable:
        for number in range(steps):
            start = time.perf_counter()
            for i in readable:
                images.read(i)
            times.add("read", time.perf_counter() - start, len(readable))
            start = time.perf_counter()
            for i in readable:
                crops[number, i]
            times.add("decode", time.perf_counter() - start, len(readable))
    for seconds, count in _loading(parts, steps):
        times.add("load", seconds, count)


def _loading(parts: Parts, batches: int) -> Iterator[tuple[float, int]]:
    """Seconds and images of some batches from running workers."""
    loader = build_loader(
        parts.train, parts.module.views, parts.module.order,
        workers=parts.settings.machine.workers,
        pin_memory=parts.machine.device.type == "cuda",
    )  # fmt: skip
    # Batches prefetched during the start are not counted.
    ahead = 2 * max(1, getattr(loader, "num_workers", 1))
    whole = max(1, len(loader) - ahead)
    iterator = iter(loader)
    for _ in range(min(ahead, len(loader) - 1)):
        next(iterator)
    start, count = time.perf_counter(), 0
    for batch in islice(iterator, min(batches, whole)):
        count += len(batch.index)
    if count:
        yield time.perf_counter() - start, count


def matmul_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """FLOP/s of a large matrix product: the practical limit of the device.

    Args:
        device: The device.
        dtype: Type of the matrices; None for float32.
    """
    n = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)
    # Of ones, which toggle few transistors, a product is up to an eighth faster on a large GPU.
    a, b = (
        torch.rand(n, n, device=device, dtype=dtype or torch.float32, generator=generator) - 0.5
        for _ in range(2)
    )
    run = lambda: a @ b  # noqa: E731
    for _ in range(2):
        run()
    return 2 * n**3 / statistics.median(timed(run, device) for _ in range(5))


class _Marks(Callback):
    """Records when steps end. On a GPU it synchronizes only at the ends of runs.

    Args:
        warmup: Steps before the first mark.
        run: Steps between marks.
    """

    def __init__(self, warmup: int, run: int) -> None:
        self.warmup, self.run = warmup, run
        self.times: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Mark the end of a run of steps."""
        done = trainer.global_step - self.warmup
        if done >= 0 and done % self.run == 0:
            wait(pl_module.device)
            self.times.append(time.perf_counter())


def whole_steps(
    parts: Parts, steps: int, warmup: int = 2, clock: _StageClock | None = None
) -> list[float]:
    """Duration of a training step through the trainer, `steps` times, in seconds.

    On a GPU each is the mean of several steps, so that synchronization does not count.

    Args:
        parts: Components of a run; its method is trained meanwhile.
        steps: Number of measurements.
        warmup: Number of steps before them, for allocation and compilation.
        clock: Times the stages of further steps.
    """
    run = 1 if parts.machine.device.type == "cpu" else 10
    marks = _Marks(warmup, run)
    module = parts.module
    total = warmup + steps * run
    callbacks: list[Callback] = [Compiling(parts.settings.machine.compile, lambda _: None), marks]
    if clock is not None:
        clock.start, total = total, total + clock.steps
        callbacks.append(clock)
    module.epochs = max(module.epochs, -(-total // len(module.order)))
    trainer = build_trainer(
        parts,
        callbacks,
        max_epochs=module.epochs,
        max_steps=total,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    loader = build_loader(
        parts.train, module.views, module.order,
        resident=module.resident is not None, workers=parts.settings.machine.workers,
        pin_memory=parts.machine.device.type == "cuda",
    )  # fmt: skip
    with suppress(SystemExit), clock.observing if clock is not None else nullcontext():
        trainer.fit(module, loader)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return [(later - earlier) / run for earlier, later in pairwise(marks.times[: steps + 1])]
