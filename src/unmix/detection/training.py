"""Training a detector, and its average precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN

from unmix.detection.boxes import BoxImages
from unmix.errors import UserError
from unmix.randomness import generator_for

__all__ = ["DetectionSchedule", "Detector", "average_precision_metric", "evaluate", "train"]

Batch = tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]]


@dataclass(frozen=True)
class DetectionSchedule:
    """How a detector is trained; by default as MoCo's on VOC (arXiv 1911.05722, appendix).

    Attributes:
        steps: Of the optimizer; the rate is divided by 10 after 3/4 and after 11/12 of them.
        batch_size: Images in a batch.
        lr: Learning rate of SGD, for 16 images; it is scaled with the batch size.
        warmup: Steps of linear warmup.
        seed: Of order and flips.
    """

    steps: int = 24_000
    batch_size: int = 16
    lr: float = 0.02
    warmup: int = 100
    seed: int = 0

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step, from 0."""
        warmup = min(self.warmup, self.steps // 4)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        passed = sum(12 * step >= k * self.steps for k in (9, 11))
        return 0.1**passed


class Detector(L.LightningModule):
    """A detector in training.

    All random numbers of a step depend on the seed and the step alone, so a training that goes on
    after an interruption ends as one that was not interrupted.

    Args:
        model: torchvision's Faster R-CNN.
        schedule: How it is trained.
        start: A `state` to go on from.
    """

    def __init__(
        self, model: FasterRCNN, schedule: DetectionSchedule, start: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.schedule, self._start = model, schedule, start
        self.begun: int = 0 if start is None else start["step"]
        self.loss: float | None = None if start is None else start["loss"]
        if start is not None:
            model.load_state_dict(start["model"])

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.begun + self.global_step

    def state(self) -> dict[str, Any]:
        """All that is needed to go on."""
        optimizer: Any = self.optimizers()
        return {
            "step": self.step, "loss": self.loss, "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }  # fmt: skip

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the losses of proposals and of regions."""
        images, targets = batch
        # Proposals are sampled by the global generator.
        torch.manual_seed(generator_for(self.schedule.seed, "proposals", self.step).initial_seed())
        generator = generator_for(self.schedule.seed, "flip", self.step)
        flipped = [
            _flipped(image, target) if coin else (image, target)
            for image, target, coin in zip(
                images, targets, torch.rand(len(images), generator=generator) < 0.5, strict=True
            )
        ]
        losses = self.model([image for image, _ in flipped], [target for _, target in flipped])
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise UserError(
                f"the loss is not finite at step {self.step + 1}; try a smaller value.",
                parameter="lr",
            )
        self.loss = total.item()
        return total

    def configure_optimizers(self) -> Any:
        """SGD with momentum, as published."""
        chosen = self.schedule
        optimizer = torch.optim.SGD(
            [p for p in self.parameters() if p.requires_grad],
            chosen.lr * chosen.batch_size / 16, momentum=0.9, weight_decay=1e-4,
        )  # fmt: skip
        if self._start is not None:
            optimizer.load_state_dict(self._start["optimizer"])
            for group in optimizer.param_groups:  # where the schedule begins again
                group["lr"] = group["initial_lr"]
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: chosen.rate(self.begun + step)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def train(
    model: FasterRCNN,
    images: BoxImages,
    schedule: DetectionSchedule,
    *,
    accelerator: str = "cpu",
    precision: Any = "32-true",
    workers: int = 0,
    say: Callable[[str], None] = print,
    start: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> float | None:
    """Train a detector in place; gives the loss of the last step.

    Args:
        model: torchvision's Faster R-CNN.
        images: Training images.
        schedule: How long, and how.
        accelerator: Of Lightning: cpu, cuda or mps.
        precision: Of Lightning.
        workers: Data workers.
        say: Prints a line, ten times.
        start: A `Detector.state` to go on from.
        callbacks: Others of Lightning, which may save the `Detector.state` and stop the training.

    Raises:
        UserError: if the loss is not finite.
    """
    module = Detector(model, schedule, start)
    left = schedule.steps - module.begun
    if left <= 0:
        return module.loss
    loader = DataLoader(
        images, batch_sampler=_Batches(len(images), schedule, module.begun), collate_fn=_collated,
        num_workers=workers, persistent_workers=workers > 0,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator=accelerator, devices=1, precision=precision, max_steps=left, max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[_Said(say, schedule.steps), *callbacks],
        log_every_n_steps=schedule.steps,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        trainer.fit(module, loader)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return module.loss


class _Batches:
    """Indices of the batches of all steps, from one on; each epoch has an order of its own."""

    def __init__(self, images: int, schedule: DetectionSchedule, begun: int) -> None:
        self.images, self.schedule, self.begun = images, schedule, begun
        self.an_epoch = max(1, images // schedule.batch_size)  # an incomplete last one is dropped

    def __len__(self) -> int:
        return self.schedule.steps - self.begun

    def __iter__(self) -> Iterator[list[int]]:
        size, known = self.schedule.batch_size, -1
        order: list[int] = []
        for step in range(self.begun, self.schedule.steps):
            epoch, number = divmod(step, self.an_epoch)
            if epoch != known:
                generator = generator_for(self.schedule.seed, "detection", epoch)
                order, known = torch.randperm(self.images, generator=generator).tolist(), epoch
            yield order[number * size : (number + 1) * size]


class _Said(Callback):
    def __init__(self, say: Callable[[str], None], steps: int) -> None:
        self.say, self.every = say, max(1, steps // 10)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Detector)
        step = pl_module.step
        if step % self.every == 0:
            self.say(f"step {step:,}/{pl_module.schedule.steps:,}  loss {pl_module.loss:.3f}")


@torch.inference_mode()
def evaluate(
    model: FasterRCNN,
    images: BoxImages,
    device: torch.device | str = "cpu",
    *,
    batch_size: int = 4,
    workers: int = 0,
) -> dict[str, Any]:
    """Average precision as COCO defines it, by pycocotools: "ap", "ap50", "ap75" in percent.

    Args:
        model: The detector.
        images: Test images; their ignored objects count neither way.
        device: Where to compute.
        batch_size: Images at a time.
        workers: Data workers.

    Returns:
        The three, and "per_class": AP by the name of the class, None where it has no object.

    Raises:
        UserError: if pycocotools is not installed.
    """
    metric = average_precision_metric()
    model.to(device).eval()
    loader = DataLoader(images, batch_size, collate_fn=_collated, num_workers=workers)
    for pictures, targets in loader:
        found = model([picture.to(device) for picture in pictures])
        metric.update([{k: v.cpu() for k, v in one.items()} for one in found], list(targets))
    result = metric.compute()
    by_class = dict(
        zip(torch.atleast_1d(result["classes"]).tolist(),
            torch.atleast_1d(result["map_per_class"]).tolist(), strict=True)
    )  # fmt: skip
    per_class = {
        name: _percent(by_class.get(number, -1.0))
        for number, name in enumerate(images.classes, start=1)
    }
    values = {ours: _percent(result[theirs].item()) for ours, theirs in _NAMES.items()}
    return {**values, "per_class": per_class}


_NAMES = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * value


def average_precision_metric() -> Any:
    """COCO's average precision.

    Raises:
        UserError: if pycocotools is not installed.
    """
    try:
        import pycocotools  # noqa: F401
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError:
        raise UserError(
            "average precision needs pycocotools: pip install 'unmix[detection]'"
        ) from None
    metric = MeanAveragePrecision(class_metrics=True, backend="pycocotools")
    metric.warn_on_many_detections = False
    return metric


def _collated(batch: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> Batch:
    pictures, targets = zip(*batch, strict=True)
    return pictures, targets


def _flipped(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its boxes, left to right."""
    boxes, width = target["boxes"], image.shape[2]
    mirrored = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return image.flip(2), {**target, "boxes": mirrored}
