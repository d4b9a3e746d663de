"""Which images are held as uint8 on the training device, and which are streamed to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unmix.config import MachineSettings
from unmix.data import BrokenImage, ImageSet, StreamedImages, TensorImages
from unmix.data.from_python import DatasetImages
from unmix.data.opened import OpenedImage
from unmix.data.streams import ShardImages
from unmix.display import memory
from unmix.errors import UserError
from unmix.hardware.devices import Machine, free_memory
from unmix.training.loading.loaders import worker_count

__all__ = ["Held", "hold"]

_SAMPLE = 32
_DIFFER = "note: --resident: the items of the data set differ from call to call; "


@dataclass(frozen=True)
class Held:
    """An image set, and where its pixels are during training.

    Attributes:
        images: The image set. Files that are held were decoded to a tensor, without broken ones.
        resident: Whether it is to be held on the device.
        about: Where it is, for the first lines of a run: "on the device (154 MB)".
        notes: Lines for the user.
        kept: Indices of the images that could be decoded, int64; None for all of them.
    """

    images: ImageSet
    resident: bool
    about: str
    notes: tuple[str, ...] = ()
    kept: Tensor | None = None


def hold(images: ImageSet, machine: Machine, settings: MachineSettings) -> Held:
    """Decide where the training images are kept, and decode them once if they are to be held.

    Args:
        images: The training images.
        machine: The training device.
        settings: `resident`, `resident_share` and `workers`.

    Raises:
        UserError: if the images must be held (`resident` is "yes") but do not fit in memory or
            differ in size, or one is broken and the set is strict.
    """
    if settings.resident == "no" or len(images) == 0:
        return _streamed(images)
    if isinstance(images, TensorImages):
        size = images.images.nbytes
        # On a CPU they are on the device already.
        if machine.device.type == "cpu" or _fits(size, machine, settings):
            return Held(images, True, f"on the device ({memory(size)})")
        return _streamed(images)
    assert isinstance(images, StreamedImages)
    must = settings.resident == "yes"
    notes: tuple[str, ...] = ()
    if isinstance(images, DatasetImages) and images.digest() == b"":
        notes = (_DIFFER + ("the first of each is kept" if must else "each epoch reads them anew"),)
        if not must:
            return replace(_streamed(images), notes=notes)
    if isinstance(images, ShardImages) and not must:
        return _streamed(images)
    shapes = _sample_shapes(images)
    if len(shapes) != 1:
        if must:
            raise UserError(_needs_one_size(images, shapes))
        return _streamed(images)
    (shape,) = shapes
    if not _fits(len(images) * 3 * shape[0] * shape[1], machine, settings):
        return _streamed(images)
    count = worker_count(settings.devices) if settings.workers is None else settings.workers
    decoded, kept = _decode_all(images, shape, count)
    if isinstance(decoded, TensorImages):
        about = f"decoded once and held on the device ({memory(decoded.images.nbytes)})"
        return Held(decoded, True, about, notes, kept)
    if must:
        raise UserError(_needs_one_size(images, {shape, decoded}))
    return _streamed(images)


def _streamed(images: ImageSet) -> Held:
    if isinstance(images, TensorImages):
        return Held(images, False, "streamed from memory")
    kind = "shards" if isinstance(images, ShardImages) else "files"
    return Held(images, False, f"streamed from {kind}")


def _fits(size: int, machine: Machine, settings: MachineSettings) -> bool:
    """Whether this many bytes may be held on the device.

    Raises:
        UserError: if they must be held and do not fit.
    """
    free = free_memory(machine.device)
    if settings.resident == "yes":
        if size > free:
            raise UserError(
                f"--resident: yes needs {memory(size)}, but {memory(free)} are free on "
                f"{machine.device.type}; use --resident auto, or no."
            )
        return True
    return size <= settings.resident_share * free


def _needs_one_size(images: ImageSet, shapes: set[tuple[int, int]]) -> str:
    if not shapes:
        return f"--resident: yes, but none of the first images of {images.name} can be read."
    few = " and ".join(f"{height} x {width}" for height, width in sorted(shapes)[:2])
    return (
        f"--resident: yes needs images of one size, but {images.name} has {few} pixels; use "
        "--resident auto, or no."
    )


def _sample_shapes(images: StreamedImages) -> set[tuple[int, int]]:
    """The heights and widths of some images, evenly spaced."""
    shapes: set[tuple[int, int]] = set()
    for i in range(0, len(images), max(1, len(images) // _SAMPLE)):
        try:
            shapes.add(OpenedImage.of(images.read(i), images.place(i), images.decoding).size)
        except BrokenImage:
            continue  # reported when all are decoded, or when it is in a batch
        if len(shapes) > 1:
            break
    return shapes


class _Whole(Dataset[tuple[int, "Tensor | BrokenImage"]]):
    """Decoded images, or the errors of those that cannot be read."""

    def __init__(self, images: StreamedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[int, Tensor | BrokenImage]:
        try:
            images = self.images
            image = OpenedImage.of(images.read(i), images.place(i), images.decoding)
            return i, image.upright(image.pixels)
        except BrokenImage as error:
            return i, error


def _decode_all(
    images: StreamedImages, shape: tuple[int, int], workers: int
) -> tuple[TensorImages | tuple[int, int], Tensor | None]:
    """Decode every image into one tensor, or return the first shape that differs.

    Beside it the indices of those that can be read, unless all can.

    Raises:
        UserError: if a file is broken and the set is strict, or fewer than 2 can be read.
    """
    pixels = torch.empty(len(images), 3, *shape, dtype=torch.uint8)
    kept: list[int] = []
    loader = DataLoader(
        _Whole(images), batch_size=32, num_workers=workers, collate_fn=partial(list)
    )
    for items in loader:
        for i, image in items:
            if isinstance(image, BrokenImage):
                try:
                    images.skipped.add(image)
                except BrokenImage:
                    raise UserError(
                        f"--strict: {image}; fix or remove the file, or drop --strict to skip it."
                    ) from None
            elif tuple(image.shape[1:]) != shape:
                return (int(image.shape[1]), int(image.shape[2])), None
            else:
                pixels[len(kept)] = image
                kept.append(i)
    if len(kept) < 2:
        raise UserError(
            f"--data: of {len(images)} images of {images.name}, {len(kept)} can be read; "
            f"pretraining needs 2. {images.skipped.line()}"
        )
    whole = len(kept) == len(images)
    index = torch.tensor(kept)
    decoded = TensorImages(
        name=images.name,
        split=images.split,
        labels=images.labels if whole or images.labels is None else images.labels[index],
        classes=images.classes,
        mean=images.mean,
        std=images.std,
        # A clone, to free the memory of the unused rows.
        images=pixels if whole else pixels[: len(kept)].clone(),
    )
    return decoded, None if whole else index
