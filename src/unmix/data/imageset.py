"""Image sets: one split of a data set, as a tensor or as files."""

from __future__ import annotations

import csv
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from unmix.data.bit_depth import Range, may_be_deep
from unmix.data.decoding import BrokenImage, Decoding, decode, gray_range, read_image
from unmix.names import shown, stored

__all__ = ["RGB", "FileImages", "ImageSet", "Skipped", "StreamedImages", "TensorImages"]


class Skipped:
    """Collects broken image files, each once, in the order in which they occur.

    A data worker has a copy of its own: its errors are sent back with the batch, and added in the
    main process.

    Args:
        strict: Whether the first broken file ends the run.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._errors: dict[Path, BrokenImage] = {}
        self._file: Path | None = None

    def add(self, error: BrokenImage) -> None:
        """Add a broken file, unless it was added before.

        Raises:
            BrokenImage: `error` itself, if strict.
        """
        if self.strict:
            raise error
        if error.path not in self._errors:
            self._errors[error.path] = error
            self._write(error)

    def add_pairs(self, broken: Iterable[tuple[str, str]]) -> None:
        """Add broken files of which path and reason are known."""
        for path, reason in broken:
            self.add(BrokenImage(Path(path), reason))

    def record(self, file: Path) -> None:
        """Write all broken files, also later ones, to a CSV of path and reason.

        Several sets may share the CSV. Paths are written as by `unmix.names.stored`. A file that is
        listed already, as by the first part of a run, is not listed again.
        """
        self._file = file
        for error in self._errors.values():
            self._write(error)

    def _write(self, error: BrokenImage) -> None:
        if self._file is None:
            return
        place = stored(error.path)
        # A list that cannot be written does not end a run; a full disk is reported elsewhere.
        with suppress(OSError, csv.Error):
            begun = self._file.is_file()
            if begun:
                with open(self._file, newline="", encoding="utf-8", errors="replace") as file:
                    if any(row[:1] == [place] for row in csv.reader(file)):
                        return
            text = io.StringIO(newline="")
            rows = csv.writer(text)
            if not begun:
                rows.writerow(["path", "reason"])
            rows.writerow([place, shown(error.reason)])
            # Appended in one call, since several processes may write at once.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            descriptor = os.open(self._file, flags, 0o666)
            try:
                os.write(descriptor, text.getvalue().encode())
            finally:
                os.close(descriptor)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The broken files."""
        return tuple(self._errors)

    @property
    def errors(self) -> tuple[BrokenImage, ...]:
        """The error of each broken file."""
        return tuple(self._errors.values())

    def __len__(self) -> int:
        return len(self._errors)

    def line(self) -> str | None:
        """A line for the end of a run: their number, and the first by path; None without any."""
        if not self._errors:
            return None
        first = self._errors[min(self._errors)]
        where = "" if self._file is None else f"; listed in {shown(self._file)}"
        if len(self) == 1:
            return f"Skipped 1 image file that cannot be read: {first}{where}"
        return f"Skipped {len(self):,} image files that cannot be read, first {first}{where}"


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
        notes: Lines for the user: how the data was interpreted.
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
        """The fields that change for a subset of the images."""

    def picked(self: Images, index: Tensor) -> Images:
        """Select images.

        Args:
            index: Their indices, int64 (M,), in any order.
        """
        labels = None if self.labels is None else self.labels[index]
        return replace(self, labels=labels, **self._picked(index))

    def evenly(self: Images, count: int) -> Images:
        """Select `count` evenly spaced images, or all if there are not more.

        Args:
            count: At least 1.
        """
        if count >= len(self):
            return self
        return self.picked(self.evenly_spaced(count))

    def evenly_spaced(self, count: int) -> Tensor:
        """The indices of the images that `evenly` selects, int64."""
        if count >= len(self):
            return torch.arange(len(self))
        return torch.linspace(0, len(self) - 1, count, dtype=torch.float64).round().long()

    def sample(self: Images, count: int) -> Images:
        """Select `count` images to look at: evenly spaced, unless that would take long."""
        return self.evenly(count)

    def between(self: Images, start: int, stop: int) -> Images:
        """Select the images from `start` up to, but not including, `stop`."""
        return self.picked(torch.arange(start, min(stop, len(self))))


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
    """Encoded images on disk, decoded when they are read.

    Args:
        skipped: Collects broken images, and knows whether to be strict.
        decoding: How images are decoded.
    """

    skipped: Skipped = field(default_factory=Skipped)
    decoding: Decoding = field(default_factory=Decoding)

    @abstractmethod
    def place(self, i: int) -> Path:
        """Name of image `i` in messages."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Read the encoded image `i`.

        Raises:
            BrokenImage: if it cannot be read.
        """

    def prepare(self, indices: Sequence[int]) -> None:
        """Make ready images that will be read next; nothing to do for files of a disk."""

    def may_be_deep(self, i: int) -> bool:
        """Whether image `i` may have more than 8 bits, by the name of its file."""
        return may_be_deep(self.place(i).name)

    def value_range(self, i: int) -> Range | None:
        """Minimum and maximum value of image `i` if it has more than 8 bits; else None.

        Raises:
            BrokenImage: if it cannot be read.
        """
        if not self.may_be_deep(i):
            return None
        return gray_range(self.place(i), self.read(i), self.decoding)

    def decode(self, i: int, at_least: int | None = None) -> Image.Image:
        """Decode image `i` to upright 8-bit RGB.

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
        return read_image(self.paths[i], self.decoding)
