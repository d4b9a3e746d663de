"""The order of the images, and the data loaders."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from unmix.data import ImageSet, StreamedImages, TensorImages
from unmix.distributed import rank
from unmix.hardware.threads import cores_each
from unmix.randomness import generator_for
from unmix.training.loading.batch import Batch
from unmix.training.loading.crops import FileCrops
from unmix.views import Views

__all__ = ["Batch", "EpochOrder", "FileCrops", "build_loader", "worker_count"]

_PREFETCH = 2
_GRACE = 60  # seconds between SIGTERM and the end of a data worker


class EpochOrder:
    """Batches of sample ids, shuffled by seed and epoch alone.

    The last batch of an epoch may be smaller. It is dropped if it is smaller than `smallest`, or
    with `drop_last`.

    Args:
        n: Number of samples.
        batch_size: Samples per batch, over all processes.
        seed: Seed of the run.
        smallest: Minimum number of samples of a batch, per process.
        processes: Number of processes; each gets an equal part of every batch.
        drop_last: Drop an incomplete last batch.

    Attributes:
        smallest: As given.
        share: Samples of a full batch per process.
        position: Returns the epoch and the batch in it at which an iteration starts; not the first
            batch where a run is resumed within an epoch.
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
        self.drop_last = drop_last
        self.length = self.length_with(n)
        self.position: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def length_with(self, n: int) -> int:
        """Batches of an epoch of `n` samples."""
        full, rest = divmod(n, self.batch_size)
        return full + (not self.drop_last and rest >= self.smallest * self.processes)

    def of_processes(self, processes: int) -> EpochOrder:
        """The order of the same samples for another number of processes."""
        return EpochOrder(
            self.n, self.batch_size, self.seed, self.smallest, processes, self.drop_last
        )

    def last_share(self) -> int:
        """The images of an epoch's last batch that each process has."""
        return min(self.batch_size, self.n - (self.length - 1) * self.batch_size) // self.processes

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        epoch, start = self.position()
        order = torch.randperm(self.n, generator=generator_for(self.seed, "order", epoch))
        for index in order.split(self.batch_size)[start : self.length]:
            # Equally many per process, since their outputs are gathered.
            whole = len(index) // self.processes * self.processes
            yield epoch, index[rank() : whole : self.processes] if self.processes > 1 else index


class IndexLoader:
    """Batches of images that are on the device already: sample ids alone."""

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return (Batch(index) for _, index in self.order)


class HostLoader:
    """Batches of images in host memory, gathered one batch ahead of the device.

    Args:
        images: uint8 (M, 3, H, W).
        order: The order of the samples.
        pin_memory: Whether to pin the batches, for a GPU.
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
    """The order as lists of (epoch, sample id), the indices of `FileCrops`."""

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, index in self.order:
            yield [(epoch, i) for i in index.tolist()]


def _identity(batch: Batch) -> Batch:
    """Collate nothing: `FileCrops` returns whole batches."""
    return batch


def _outlast_signals(worker: int) -> None:
    """Leave signals that a whole process group receives to the process that trains.

    It saves, and ends its workers; if it does not, SIGTERM ends them later.
    """
    trainer = multiprocessing.parent_process()
    if trainer is not None and os.getppid() != trainer.pid:
        # Killed while this process started. PyTorch only sees a parent that changes from now on,
        # so this worker would wait for its first batch for ever.
        os._exit(1)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def worker_count(processes: int = 1) -> int:
    """Default number of data workers of a process: one per core, less one for the training step.

    At least 1 and at most 16: more would wait for the disk, and each holds prefetched batches.

    Args:
        processes: Processes of the run on this machine, which share its cores (`cores_each`).
    """
    return min(16, max(1, cores_each(processes) - 1))


def build_loader(
    images: ImageSet,
    views: Views,
    order: EpochOrder,
    *,
    resident: bool = True,
    workers: int | None = None,
    pin_memory: bool = False,
) -> IndexLoader | HostLoader | DataLoader[Batch]:
    """Build the data loader for where the images are: sample ids, whole images, or crops of files.

    Args:
        images: The training images.
        views: Number and sizes of the crops.
        order: The order of the samples; the caller sets its `position`.
        resident: Whether images in memory are on the device; then batches have sample ids alone.
        workers: Processes that decode files; by default `worker_count()`.
        pin_memory: Whether to pin the batches, for a GPU.
    """
    if isinstance(images, TensorImages):
        return IndexLoader(order) if resident else HostLoader(images.images, order, pin_memory)
    assert isinstance(images, StreamedImages)
    count = worker_count() if workers is None else workers
    after = getattr(order, "after", None)
    return DataLoader(
        FileCrops(images, views, order.seed, after),  # type: ignore[arg-type]
        batch_sampler=_Requests(order),  # type: ignore[arg-type]
        collate_fn=_identity,  # type: ignore[arg-type]
        num_workers=count,
        persistent_workers=count > 0,
        worker_init_fn=_outlast_signals,
        # Batches prefetched per worker, which bounds the memory.
        prefetch_factor=_PREFETCH if count else None,
        pin_memory=pin_memory,
    )
