"""The training images of an evaluation in augmented batches."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from unmix.commands.finished import FinishedRun
from unmix.data import ImageSet, StreamedImages, TensorImages
from unmix.evaluation.protocol import Batches
from unmix.randomness import generator_for
from unmix.training.loading.loaders import EpochOrder, build_loader
from unmix.views import Views, ViewSettings

__all__ = ["augmented_batches", "batch_order"]


def augmented_batches(
    finished: FinishedRun,
    images: ImageSet,
    labels: Tensor,
    augmentation: ViewSettings,
    order: EpochOrder,
    purpose: str = "probe",
) -> Batches:
    """The images of each epoch, augmented anew, with their labels.

    Args:
        finished: Says how the encoder wants its images, and on which device.
        images: To train on.
        labels: int64 (N,).
        augmentation: Of the images.
        order: Of the images; its `position` is set.
        purpose: What the random numbers are for; they depend on it, the seed, epoch and step.
    """
    machine, plain = finished.machine, finished.encoder.views
    views = Views(
        augmentation, plain.size, plain.mean, plain.std, 1, plain.color_space,
        channels_last=machine.channels_last,
    )  # fmt: skip
    resident = images.images.to(machine.device) if isinstance(images, TensorImages) else None
    loader = build_loader(
        images, views, order,
        workers=finished.settings.machine.workers, pin_memory=machine.device.type == "cuda",
    )  # fmt: skip

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order.position = lambda: (epoch, 0)
        for step, batch in enumerate(loader):
            generator = generator_for(order.seed, purpose, epoch, step)
            for error in batch.broken:
                assert isinstance(images, StreamedImages)
                images.skipped.add(error)
            if len(batch.index) == 0:
                continue
            chosen = labels[batch.index]
            if resident is not None:
                yield views(resident[batch.index.to(resident.device)], generator)[0], chosen
                continue
            assert batch.crops is not None
            crops = batch.crops[0].to(machine.device)
            draw = views.draw(len(crops), plain.size, plain.size, generator)
            yield views.apply_crops(crops, draw), chosen

    return batches


def batch_order(images: ImageSet, batch_size: int, seed: int, smallest: int = 1) -> EpochOrder:
    """The images in batches, shuffled by seed and epoch."""
    return EpochOrder(len(images), batch_size, seed, smallest=smallest)
