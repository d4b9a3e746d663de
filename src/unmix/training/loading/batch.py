"""What a training step gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmix.data import BrokenImage
from unmix.transfer import to_device

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """What a step gets.

    Attributes:
        index: Numbers of the samples in the data set, int64 (N,).
        crops: For each view uint8 (N, 3, size, size) of its size, cropped where they were decoded;
            None if the images are cropped on the device.
        images: uint8 (N, 3, H, W), whole, from the host's memory; None if they are on the device.
        broken: Files that could not be read; their samples are not in `index`.
    """

    index: Tensor
    crops: tuple[Tensor, ...] | None = None
    images: Tensor | None = None
    broken: tuple[BrokenImage, ...] = ()

    def pin_memory(self) -> Batch:
        """Pin the tensors, so that they can be copied to a GPU while it computes."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on the device."""
        return self._each(lambda tensor: to_device(tensor, device))

    def rows(self, which: Tensor) -> Batch:
        """The batch of some of its samples, int64 (M,), which may be repeated."""
        return self._each(lambda tensor: tensor[which])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        crops = None if self.crops is None else tuple(change(crop) for crop in self.crops)
        images = None if self.images is None else change(self.images)
        return Batch(change(self.index), crops, images, self.broken)
