"""The names and labels of the images of a split, as they are written beside their features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from unmix.data import ImageSet, PackedImages, StreamedImages
from unmix.data.fingerprint import fingerprint
from unmix.names import stored

__all__ = ["NamedSet"]


@dataclass(frozen=True)
class NamedSet:
    """A split whose images have names.

    Attributes:
        images: The split.
        start: Position of its first image among all that are encoded.
    """

    images: ImageSet
    start: int = 0

    def names(self, index: np.ndarray) -> list[str]:
        """Names of some images: the path of a file, the original path of an image in a pack, or
        `DATA/SPLIT/NUMBER`. Bytes that are not UTF-8 are escaped as by `unmix.names.stored`.
        """
        images = self.images
        if isinstance(images, PackedImages):
            return [stored(images.names[int(images.index.number[i])]) for i in index.tolist()]
        if isinstance(images, StreamedImages):
            return [stored(images.place(i)) for i in index.tolist()]
        return [stored(f"{images.name}{os.sep}{images.split}{os.sep}{i}") for i in index.tolist()]

    def labels(self, index: np.ndarray) -> np.ndarray | None:
        """Class indices of some images, int64; None without classes."""
        labels: Tensor | None = self.images.labels
        return None if labels is None else labels.numpy()[index]

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes; None without classes."""
        classes = self.images.classes
        return None if classes is None else tuple(map(stored, classes))

    def digest(self, start: int, stop: int) -> str:
        """Digest of the images from `start` to `stop`, of their names, sizes and labels."""
        return fingerprint(self.images.between(start, stop)).digest
