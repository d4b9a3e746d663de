"""How long each stage of a training step takes, apart and together."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unmix.data import StreamedImages
from unmix.errors import UserError
from unmix.hardware.devices import hardware, peak_memory, timed, versions, wait
from unmix.methods import Progress
from unmix.randomness import generator_for
from unmix.step import Objective, mix_views, objective
from unmix.training.loading.loaders import Batch, FileCrops, build_loader
from unmix.training.loop.compiling import Compiling
from unmix.training.loop.optimizers import build_optimizer
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
    "optimiser": "step, momentum encoder, memory",
    "step": "whole training step, through the trainer",
}
"""What is measured, in the order of a step, and what it is."""

MODEL = ("forward", "backward")
_FILES = 64


@dataclass
class Times:
    """Seconds that stages took, each time for so many images.

    Attributes:
        seconds: For each stage the time of each run.
        images: For each stage the images of a run.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def add(self, stage: str, seconds: float, images: int) -> None:
        """Note one run of a stage."""
        self.seconds.setdefault(stage, []).append(seconds)
        self.images[stage] = images

    def rates(self, stage: str) -> dict[str, float]:
        """Median, least and greatest images a second."""
        rates = [self.images[stage] / s for s in self.seconds[stage]]
        return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}

    def per_image(self, stage: str) -> float:
        """The median of the seconds that an image takes; 0 for a stage that is not there."""
        if stage not in self.seconds:
            return 0.0
        return statistics.median(self.seconds[stage]) / self.images[stage]


def measure_stages(parts: Parts, *, steps: int = 5, warmup: int = 2) -> dict[str, Any]:
    """Measure whole steps through the trainer, then each stage apart.

    Whole steps are first, for in them is compiled what is to be. The stages of a step are taken in
    turn, `steps` times; each waits for the device.

    Args:
        parts: A run's parts; its method is trained meanwhile.
        steps: Runs that count.
        warmup: Runs before them.

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
    for seconds in whole_steps(parts, steps, warmup):
        times.add("step", seconds, parts.settings.run.batch_size)
    peak = peak_memory(device)
    # The trainer has put the module back on the CPU.
    module.to(device)
    module.train()
    stepping = _Stepping(parts, batch)
    for number in range(warmup + steps):
        found = stepping.run(number)
        if number >= warmup:
            for stage, seconds in found.items():
                times.add(stage, seconds, len(batch.index))
    return {
        "times": times,
        "flops_per_image": stepping.flops() / len(batch.index),
        "matmul_flops_per_second": matmul_rate(device, parts.machine.autocast),
        "peak_memory_bytes": peak,
    }


def facts(parts: Parts, found: dict[str, Any]) -> dict[str, Any]:
    """What was measured, as plain numbers: the content of the JSON file.

    Args:
        parts: Of the run.
        found: From `measure_stages`.
    """
    times: Times = found["times"]
    model = sum(times.per_image(stage) for stage in MODEL)
    step, flops = times.per_image("step"), found["flops_per_image"]
    limit = found["matmul_flops_per_second"]
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
        "peak_memory_bytes": found["peak_memory_bytes"],
        "hardware": {**hardware(parts.machine.device), "precision": parts.machine.precision},
        "versions": versions(),
    }


class _Stepping:
    """One batch through the stages of a step, with the clock read between them."""

    def __init__(self, parts: Parts, batch: Batch) -> None:
        self.parts, self.batch, self.module = parts, batch, parts.module
        self.device = parts.machine.device
        self.optimizer = build_optimizer(
            parts.settings.optimizer, self.module.method.parameters(), self.device,
            self.module.method.constant_lr_modules(),
        )  # fmt: skip
        self.image_space, self.module.image_space = self.module.image_space, None

    def run(self, number: int) -> dict[str, float]:
        """Seconds of each stage of one step."""
        module, method = self.module, self.module.method
        generator = generator_for(module.seed, "bench", number)
        found: dict[str, float] = {}
        with self._autocast():
            views = self._clocked(found, "views", lambda: module.make_views(self.batch, generator))
            views, mixture = self._clocked(found, "mixture", lambda: self._mix(views, generator))
            step: Objective = self._clocked(
                found,
                "forward",
                lambda: objective(method, views, self.batch.index, generator, mixture),
            )
        self._clocked(found, "backward", step.loss.backward)
        self._clocked(found, "optimiser", lambda: self._update(step))
        if self.image_space is None and module.label_space is None:
            del found["mixture"]
        return found

    def flops(self) -> int:
        """Floating-point operations of a step's matrix products and convolutions."""
        module, generator = self.module, generator_for(self.module.seed, "bench", "flops")
        # What is compiled hides its operations from the counter.
        with self._autocast(), torch.compiler.set_stance("force_eager"):
            views = module.make_views(self.batch, generator)
            views, mixture = self._mix(views, generator)
            with FlopCounterMode(display=False) as counter:
                objective(
                    module.method, views, self.batch.index, generator, mixture
                ).loss.backward()
        self.optimizer.zero_grad()
        self.module.image_space = self.image_space
        return counter.get_total_flops()

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.parts.machine.autocast
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _clocked(self, found: dict[str, float], stage: str, run: Callable[[], Any]) -> Any:
        result: list[Any] = []
        found[stage] = timed(lambda: result.append(run()), self.device)
        return result[0]

    def _mix(self, views: list[Tensor], generator: torch.Generator) -> tuple[list[Tensor], Any]:
        """The mixtures that the run makes; that of the label space is only drawn here."""
        if self.image_space is not None:
            views = mix_views(self.image_space.draw(views[0].shape, generator), views)
        views, others = self.module.apart(views)
        mixture = self.module.mixture(views, others)
        if mixture is not None and mixture.mixes_clean_pixels:
            draw = mixture.draw(views[0], generator)
            draw.apply(views[0], mixture.others)
            mixture = replace(mixture, operator=draw)
        return views, mixture

    def _update(self, step: Objective) -> None:
        step.update_memory()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.method.begin_step(Progress(1, 2, 2))


def _a_batch(parts: Parts) -> Batch:
    """A batch as the trainer gets it.

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
    """Reading and decoding, by one process and by the workers."""
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
    """Seconds and images of some batches from the workers, once they run."""
    loader = build_loader(
        parts.train, parts.module.views, parts.module.order,
        workers=parts.settings.machine.workers,
        pin_memory=parts.machine.device.type == "cuda",
    )  # fmt: skip
    # What the workers have read ahead while they started is not their rate.
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
    """Floating-point operations a second of a large matrix product: the device's practical limit.

    Args:
        device: Where.
        dtype: Number format; None is float32.
    """
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.ones(n, n, device=device, dtype=dtype or torch.float32) for _ in range(2))
    run = lambda: a @ b  # noqa: E731
    for _ in range(2):
        run()
    return 2 * n**3 / statistics.median(timed(run, device) for _ in range(5))


class _Marks(Callback):
    """Notes when steps end. On a GPU the host runs ahead, so only the ends of runs are waited for.

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


def whole_steps(parts: Parts, steps: int, warmup: int = 2) -> list[float]:
    """Seconds of a training step through the trainer, `steps` times.

    On a GPU each is the mean of several steps, so that waiting for the device at their end does
    not count.

    Args:
        parts: A run's parts; its method is trained meanwhile.
        steps: Times.
        warmup: Steps before them, in which memory is taken and code is compiled.
    """
    run = 1 if parts.machine.device.type == "cpu" else 10
    marks = _Marks(warmup, run)
    module = parts.module
    total = warmup + steps * run
    module.epochs = max(module.epochs, -(-total // len(module.order)))
    trainer = build_trainer(
        parts,
        [Compiling(parts.settings.machine.compile, lambda _: None), marks],
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
    with suppress(SystemExit):
        trainer.fit(module, loader)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return [
        (later - earlier) / run
        for earlier, later in zip(marks.times, marks.times[1:], strict=False)
    ]
