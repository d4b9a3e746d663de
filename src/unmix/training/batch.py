"""What a training step gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmix.data import BrokenImage

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """What a step gets.

    Attributes:
        index: Numbers of the samples in the data set, int64 (N,).
        crops: uint8 (V, N, 3, size, size), cropped where they were decoded; None if the images are
            in memory and are cropped on the device.
        broken: Files that could not be read; their samples are not in `index`.
    """

    index: Tensor
    crops: Tensor | None = None
    broken: tuple[BrokenImage, ...] = ()

    def pin_memory(self) -> Batch:
        """Pin the tensors, so that they can be copied to a GPU while it computes."""
        crops = None if self.crops is None else self.crops.pin_memory()
        return Batch(self.index.pin_memory(), crops, self.broken)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on the device."""
        crops = None if self.crops is None else self.crops.to(device, non_blocking=True)
        return Batch(self.index.to(device, non_blocking=True), crops, self.broken)
