"""The order of the images, and their way from memory or files to the training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from unmix.data import ImageSet, StreamedImages, TensorImages
from unmix.distributed import rank
from unmix.hardware.threads import usable_cores
from unmix.randomness import generator_for
from unmix.training.loading.batch import Batch
from unmix.training.loading.crops import FileCrops
from unmix.views import Views

__all__ = ["Batch", "EpochOrder", "FileCrops", "build_loader", "worker_count"]

_AHEAD = 2


class EpochOrder:
    """Batches of sample numbers; the order depends on the seed and the epoch alone.

    The last batch of an epoch may be short. If it is smaller than `smallest`, or with `drop_last`,
    it is left out.

    Args:
        n: Number of samples.
        batch_size: Samples in a batch.
        seed: Of the run.
        smallest: The least that a batch must have, of each process.
        processes: Each gets an equal share of every batch.
        drop_last: Leave a short last batch out.

    Attributes:
        smallest: As given.
        share: Samples of a full batch that each process gets.
        position: Says where the run stands when an iteration begins: the epoch, and the batch of it
            to start with, which is not the first where a run is resumed.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        smallest: int = 2,
        processes: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.n, self.batch_size, self.seed, self.processes = n, batch_size, seed, processes
        self.smallest, self.share = smallest, batch_size // processes
        full, rest = divmod(n, batch_size)
        self.length = full + (not drop_last and rest >= smallest * processes)
        self.position: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        epoch, start = self.position()
        order = torch.randperm(self.n, generator=generator_for(self.seed, "order", epoch))
        for index in order.split(self.batch_size)[start : self.length]:
            # As many for each process, for what they say of their images is put together.
            whole = len(index) // self.processes * self.processes
            yield epoch, index[rank() : whole : self.processes] if self.processes > 1 else index


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


class _Requests:
    """The order as lists of (epoch, number), which is what `FileCrops` is asked for."""

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, index in self.order:
            yield [(epoch, i) for i in index.tolist()]


def _as_it_is(batch: Batch) -> Batch:
    """What `FileCrops` gives for a list of requests is a batch already."""
    return batch


def worker_count(cores: int | None = None) -> int:
    """How many processes decode if nobody says it: one a core, but one core is for the step.

    At least 1, at most 16: more wait for the disk, and each holds batches that are ahead.

    Args:
        cores: Those that this process may use; by default asked for, so that a container's or a
            batch system's share counts and not the whole machine.
    """
    if cores is None:
        cores = usable_cores()
    return min(16, max(1, cores - 1))


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
        workers: Processes that decode files; by default see `worker_count`.
        pin_memory: For a GPU.
    """
    if isinstance(images, TensorImages):
        return IndexLoader(order) if resident else HostLoader(images.images, order, pin_memory)
    assert isinstance(images, StreamedImages)
    count = worker_count() if workers is None else workers
    return DataLoader(
        FileCrops(images, views, order.seed),  # type: ignore[arg-type]
        batch_sampler=_Requests(order),  # type: ignore[arg-type]
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=count,
        persistent_workers=count > 0,
        # Batches ready beside the one in work, in each worker: memory does not grow beyond them.
        prefetch_factor=_AHEAD if count else None,
        pin_memory=pin_memory,
    )
