"""The order of the images, and their way from memory or files to the training step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unmix.data import BrokenImage, FileImages, ImageSet, TensorImages
from unmix.randomness import generator_for
from unmix.views import Views, crop_pil

__all__ = ["Batch", "EpochOrder", "FileCrops", "build_loader"]


@dataclass(frozen=True)
class Batch:
    """What a step gets.

    Attributes:
        index: Numbers of the samples in the data set, int64 (N,).
        crops: uint8 (V, N, 3, size, size), cropped where they were decoded; None if the images are
            cropped on the device.
        images: uint8 (N, 3, H, W), whole, from the host's memory; None if they are on the device.
        broken: Files that could not be read; their samples are not in `index`.
    """

    index: Tensor
    crops: Tensor | None = None
    images: Tensor | None = None
    broken: tuple[BrokenImage, ...] = ()

    def pin_memory(self) -> Batch:
        """Pin the tensors, so that they can be copied to a GPU while it computes."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on the device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        crops, images = (None if x is None else change(x) for x in (self.crops, self.images))
        return Batch(change(self.index), crops, images, self.broken)


class EpochOrder:
    """Batches of sample numbers; the order depends on the seed and the epoch alone.

    The last batch of an epoch may be short. If it is smaller than `smallest` it is left out.

    Args:
        n: Number of samples.
        batch_size: Samples in a batch.
        seed: Of the run.
        smallest: The least that a batch must have.

    Attributes:
        position: Says where the run stands when an iteration begins: the epoch, and the batch of it
            to start with, which is not the first where a run is resumed.
    """

    def __init__(self, n: int, batch_size: int, seed: int, smallest: int = 2) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        full, rest = divmod(n, batch_size)
        self.length = full + (rest >= smallest)
        self.position: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        epoch, start = self.position()
        order = torch.randperm(self.n, generator=generator_for(self.seed, "order", epoch))
        for index in order.split(self.batch_size)[start : self.length]:
            yield epoch, index


class IndexLoader:
    """Batches whose images are on the device: only the numbers travel."""

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return (Batch(index) for _, index in self.order)


class HostLoader:
    """Batches of images that are in the host's memory, gathered one batch ahead of the device.

    Args:
        images: uint8 (M, 3, H, W).
        order: Of the samples.
        pin_memory: For a GPU.
    """

    def __init__(self, images: Tensor, order: EpochOrder, pin_memory: bool = False) -> None:
        self.images, self.order, self.pin_memory = images, order, pin_memory

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(1) as thread:
            ahead: Future[Batch] | None = None
            for _, index in self.order:
                current, ahead = ahead, thread.submit(self._gather, index)
                if current is not None:
                    yield current.result()
            if ahead is not None:
                yield ahead.result()

    def _gather(self, index: Tensor) -> Batch:
        batch = Batch(index, images=self.images[index])
        return batch.pin_memory() if self.pin_memory else batch


Item = tuple[int, Tensor | BrokenImage]


class FileCrops(Dataset[Item]):
    """Decodes an image and cuts its views' crops, by draws of its own.

    An item is asked for by epoch and number, so that what is drawn does not depend on which worker
    draws it.
    """

    def __init__(self, images: FileImages, views: Views, seed: int) -> None:
        self.images, self.views, self.seed = images, views, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> Item:
        """The sample's number and its crops (V, 3, size, size), or why it cannot be read."""
        epoch, i = item
        try:
            image = self.images.decode(i)
        except BrokenImage as error:
            return i, error
        generator = generator_for(self.seed, "crop", epoch, i)
        height, width, views = image.height, image.width, self.views
        crops = []
        for _ in range(views.count):
            box = views.draw_boxes(1, height, width, generator)[0]
            crops.append(crop_pil(image, box, views.size, views.settings.interpolation))
        return i, torch.stack(crops)


class _Requests:
    """The order as lists of (epoch, number), which is what `FileCrops` is asked for."""

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, index in self.order:
            yield [(epoch, i) for i in index.tolist()]


def collate(items: Sequence[Item]) -> Batch:
    """Put items together; broken ones are named instead."""
    whole = [(i, crops) for i, crops in items if isinstance(crops, Tensor)]
    broken = tuple(error for _, error in items if isinstance(error, BrokenImage))
    index = torch.tensor([i for i, _ in whole], dtype=torch.long)
    crops = torch.stack([c for _, c in whole], dim=1) if whole else None
    return Batch(index, crops, broken=broken)


def build_loader(
    images: ImageSet,
    views: Views,
    order: EpochOrder,
    *,
    resident: bool = True,
    workers: int | None = None,
    pin_memory: bool = False,
) -> IndexLoader | HostLoader | DataLoader[Batch]:
    """The loader of an image set: numbers, images, or crops, by where the images are.

    Args:
        images: The training images.
        views: Says how many crops of which size.
        order: Shared with the caller, who sets its epoch.
        resident: Whether images in memory are on the device; then only their numbers travel.
        workers: Processes that decode files; see `count_workers`.
        pin_memory: For a GPU.
    """
    if isinstance(images, TensorImages):
        return IndexLoader(order) if resident else HostLoader(images.images, order, pin_memory)
    assert isinstance(images, FileImages)
    count = count_workers(workers)
    return DataLoader(
        FileCrops(images, views, order.seed),  # type: ignore[arg-type]
        batch_sampler=_Requests(order),  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=count,
        persistent_workers=count > 0,
        pin_memory=pin_memory,
    )


def count_workers(workers: int | None) -> int:
    """Processes that decode: what is asked for, or one a core, at most 8."""
    return min(8, os.cpu_count() or 1) if workers is None else workers
