"""A batch of a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmix.data import BrokenImage, ImageSet, StreamedImages
from unmix.errors import UserError
from unmix.transfer import to_device
from unmix.views import Views

__all__ = ["Batch", "augmented", "note_broken"]


@dataclass(frozen=True)
class Batch:
    """The input of a training step.

    Attributes:
        index: Sample ids, int64 (N,).
        crops: For each view its crops, uint8 (N, 3, size, size), made by the data workers; None if
            the images are cropped on the device.
        images: Whole images from host memory, uint8 (N, 3, H, W); None if they are on the device.
        broken: Files that could not be read. Their samples are not in `index`.
    """

    index: Tensor
    crops: tuple[Tensor, ...] | None = None
    images: Tensor | None = None
    broken: tuple[BrokenImage, ...] = ()

    def pin_memory(self) -> Batch:
        """Pin the tensors, for asynchronous copies to a GPU."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on the device."""
        return self._each(lambda tensor: to_device(tensor, device))

    def rows(self, which: Tensor) -> Batch:
        """Select samples, int64 (M,), which may be repeated."""
        return self._each(lambda tensor: tensor[which])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        crops = None if self.crops is None else tuple(change(crop) for crop in self.crops)
        images = None if self.images is None else change(self.images)
        return Batch(change(self.index), crops, images, self.broken)


def note_broken(batch: Batch, images: ImageSet) -> None:
    """Count the broken images of a batch.

    Raises:
        UserError: for the first one, if the images are read strictly.
    """
    for error in batch.broken:
        assert isinstance(images, StreamedImages)
        try:
            images.skipped.add(error)
        except BrokenImage:
            raise UserError(
                f"--strict: {error}; fix or remove the file, or drop --strict to skip it."
            ) from None


def augmented(
    batch: Batch, views: Views, resident: Tensor | None, generator: torch.Generator
) -> list[Tensor]:
    """The views of a batch, from its images, from its crops, or from images on the device.

    Args:
        batch: The samples.
        views: Makes their views.
        resident: All training images, uint8, if they are held on the device.
        generator: Of the step.
    """
    if batch.images is not None:
        return views(batch.images, generator)
    if batch.crops is None:
        assert resident is not None
        return views(resident[batch.index], generator)
    n, size = len(batch.index), views.size
    draws = views.draw_all(n, size, size, generator)
    return [
        views.apply_crops(crops, draw, view)
        for view, (crops, draw) in enumerate(zip(batch.crops, draws, strict=True))
    ]
