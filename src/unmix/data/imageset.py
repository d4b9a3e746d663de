"""An image set: one split of a data set, held as a tensor or as files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from unmix.data.decoding import BrokenImage, Decoding, decode
from unmix.data.skipped import Skipped

__all__ = ["RGB", "FileImages", "ImageSet", "StreamedImages", "TensorImages"]

RGB = tuple[float, float, float]
Images = TypeVar("Images", bound="ImageSet")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet(ABC):
    """One split of a data set.

    Args:
        name: The data set's name, or the folder's path.
        split: `train`, `test`, or `pretrain` where that differs from `train`.
        labels: Class indices, int64 `(N,)`; None when there are no classes.
        classes: The classes' names, in the order of the labels; None when there are no classes.
        mean: Of the training split's pixels, RGB in [0, 1].
        std: The standard deviation of the same.
        notes: What the user should hear of the images, in lines: what was taken for what.
    """

    name: str
    split: str
    labels: Tensor | None
    classes: tuple[str, ...] | None
    mean: RGB
    std: RGB
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert (self.labels is None) == (self.classes is None)
        if self.labels is not None and self.classes is not None:
            assert self.labels.dtype == torch.int64
            assert self.labels.shape == (len(self),)
            assert len(self) == 0 or int(self.labels.min()) >= 0
            assert len(self) == 0 or int(self.labels.max()) < len(self.classes)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _picked(self, index: Tensor) -> dict[str, Any]:
        """The fields that differ for some of the images only."""

    def evenly(self: Images, count: int) -> Images:
        """`count` of the images, evenly spaced, with their labels; all if there are not more.

        Args:
            count: At least 1.
        """
        if count >= len(self):
            return self
        index = torch.linspace(0, len(self) - 1, count, dtype=torch.float64).round().long()
        labels = None if self.labels is None else self.labels[index]
        return replace(self, labels=labels, **self._picked(index))


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorImages(ImageSet):
    """Images of one size, in memory.

    Args:
        images: uint8 `(N, 3, H, W)`.
    """

    images: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8
        assert self.images.ndim == 4
        assert self.images.shape[1] == 3
        super().__post_init__()

    def __len__(self) -> int:
        return len(self.images)

    def _picked(self, index: Tensor) -> dict[str, Any]:
        return {"images": self.images[index.to(self.images.device)]}


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamedImages(ImageSet):
    """Images that stay encoded on a disk, and are decoded when they are asked for.

    Args:
        skipped: Where those who decode note the broken ones; says whether to be strict.
        decoding: How they are decoded.
    """

    skipped: Skipped = field(default_factory=Skipped)
    decoding: Decoding = field(default_factory=Decoding)

    @abstractmethod
    def place(self, i: int) -> Path:
        """Where image `i` is, as messages name it."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Read image `i` as it is encoded.

        Raises:
            BrokenImage: if it cannot be read.
        """

    def decode(self, i: int, at_least: int | None = None) -> Image.Image:
        """Decode image `i` as 8-bit RGB, the right way up.

        Args:
            i: Its index.
            at_least: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size: the smallest
                whose sides are both at least this many pixels.

        Raises:
            BrokenImage: if the file cannot be read.
        """
        return decode(self.place(i), at_least, self.read(i), self.decoding)


@dataclass(frozen=True, eq=False, kw_only=True)
class FileImages(StreamedImages):
    """Images in files of their own.

    Args:
        paths: The files.
    """

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def _picked(self, index: Tensor) -> dict[str, Any]:
        return {"paths": [self.paths[i] for i in index.tolist()]}

    def place(self, i: int) -> Path:
        """The path of image `i`."""
        return self.paths[i]

    def read(self, i: int) -> bytes:
        """Read file `i`.

        Raises:
            BrokenImage: if it cannot be read.
        """
        path = self.paths[i]
        try:
            # Without Python's buffer, which would be filled once and emptied once.
            with open(path, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise BrokenImage(path, error.strerror or type(error).__name__) from error
