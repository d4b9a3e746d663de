"""The pixels of a split in batches; files are read by data workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unmix.data import BrokenImage, ImageSet, Skipped, StreamedImages, read_uint8
from unmix.hardware.threads import usable_cores

__all__ = ["MAX_WORKERS", "pixel_batches"]

MAX_WORKERS = 8


@dataclass(frozen=True)
class _Chunk:
    """Images of one batch, and what could not be read of it."""

    pixels: Tensor
    index: Tensor
    broken: tuple[BrokenImage, ...]

    def pin_memory(self) -> _Chunk:
        return replace(self, pixels=self.pixels.pin_memory())


def pixel_batches(
    images: ImageSet,
    size: int,
    batch_size: int,
    *,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read a split as `read_uint8` does, batch by batch, in order.

    Args:
        images: The split; broken files are noted in its `skipped`.
        size: Side of the images in pixels.
        batch_size: Images at a time.
        workers: Processes that read files; by default one per core, at most 8 or one per batch,
            and none for a single batch. Images in memory need none.
        device: Where the pixels will go: for a GPU their memory is pinned, so that the copy does
            not wait for what the GPU is doing.
        start: Index of the first image.
        stop: Index after the last one; by default that of the split.

    Returns:
        uint8 images `(n, 3, size, size)` and their indices int64 `(n,)`; batches without a readable
        image are left out.

    Raises:
        BrokenImage: if a file cannot be read and the set is strict.
    """
    pin = torch.device(device).type == "cuda"
    left = torch.arange(start, len(images) if stop is None else min(stop, len(images)))
    chunks = left.split(batch_size) if len(left) else ()
    if isinstance(images, StreamedImages):
        if workers is None:
            workers = min(MAX_WORKERS, usable_cores(), len(chunks))
            workers = workers if len(chunks) > 1 else 0
        loader = DataLoader(
            _Chunks(images, chunks, size),
            batch_size=None,
            num_workers=workers,
            pin_memory=pin,
            generator=torch.Generator(),  # otherwise a number is drawn from the global one
        )
        for chunk in loader:
            for error in chunk.broken:
                images.skipped.add(error)
            if len(chunk.index):
                yield chunk.pixels, chunk.index
        return
    for wanted in chunks:
        pixels, index = read_uint8(images, wanted, size)
        yield pixels.pin_memory() if pin and pixels.device.type == "cpu" else pixels, index


class _Chunks(Dataset[_Chunk]):
    """Reads the images of a batch."""

    def __init__(self, images: StreamedImages, chunks: tuple[Tensor, ...], size: int) -> None:
        self.images, self.chunks, self.size = images, chunks, size

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> _Chunk:
        broken = _Broken()
        images = replace(self.images, skipped=broken)
        pixels, index = read_uint8(images, self.chunks[number], self.size)
        return _Chunk(pixels, index, tuple(broken.found))


class _Broken(Skipped):
    """Collects the errors of one batch, to be added in the main process."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[BrokenImage] = []

    def add(self, error: BrokenImage) -> None:
        self.found.append(error)
