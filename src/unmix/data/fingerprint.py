"""Fingerprints of splits, to detect that data has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unmix.data.from_python import DatasetImages
from unmix.data.hf import HuggingFaceImages
from unmix.data.imageset import FileImages, ImageSet, TensorImages
from unmix.data.packed import PackedImages
from unmix.data.paths import Paths
from unmix.data.statistics import even_indices
from unmix.data.stats import stats
from unmix.data.streams import ShardImages
from unmix.schema import Count

__all__ = ["Fingerprint", "digest_of", "fingerprint"]

_PIXELS_OF = 2000


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a split.

    Attributes:
        images: Number of images.
        classes: Names of the classes, or None.
        size: Total size of the files in bytes; None for images in memory.
        digest: Digest of the labels, and of the files' names and sizes. For a pack, of its
            checksums; for images in memory, of the pixels of 2,000 evenly spaced ones; for a data
            set given in Python, of 16, if it returns the same twice; for shards, of their names and
            sizes.
        versions: Of shards, digests of their URLs, and of ETags or times of modification.
        left_out: How many images could not be read when all were decoded once, and a digest of
            which: the others are numbered without them. None for none, and where images are read
            one by one.
    """

    images: Count
    classes: tuple[str, ...] | None
    size: Count | None
    digest: str
    versions: str | None = None
    left_out: str | None = None

    def without(self, kept: Tensor, images: int) -> Fingerprint:
        """The fingerprint of the split without images that cannot be read.

        Args:
            kept: Indices of the others, int64 (M,).
            images: How many are wanted of the split.
        """
        digest = hashlib.blake2b(kept.cpu().numpy().astype("<i8").tobytes(), digest_size=8)
        return replace(self, left_out=f"{images - len(kept)}:{digest.hexdigest()}")

    @property
    def read(self) -> int:
        """Number of images without those that are known to be unreadable."""
        return self.images - int((self.left_out or "0").partition(":")[0])

    def plain(self) -> dict[str, Any]:
        """The fingerprint as JSON types."""
        classes = None if self.classes is None else list(self.classes)
        plain = {
            "images": self.images, "classes": classes, "size": self.size, "digest": self.digest
        }  # fmt: skip
        optional = {"versions": self.versions, "left_out": self.left_out}
        return {**plain, **{name: value for name, value in optional.items() if value is not None}}

    def difference(self, then: Fingerprint) -> str | None:
        """How the split differs from `then`, in a clause; None if it does not."""
        if replace(self, versions=None, left_out=None) == replace(
            then, versions=None, left_out=None
        ):
            return self._changed_in_place(then)
        if self.images != then.images:
            return f"the data has {_images(self.images)}, the run had {then.images:,}"
        if self.classes != then.classes:
            return _other_classes(self.classes, then.classes)
        if self.size != then.size and None not in (self.size, then.size):
            return f"the data's files have {self.size:,} bytes, the run's had {then.size:,}"
        return "the data has other images or labels at the same positions than the run had"

    def other_numbers(self, then: Fingerprint) -> str | None:
        """How images come to have other numbers in training than with `then`; None if they do not.

        A clause, for splits that do not differ.
        """
        if self.left_out == then.left_out:
            return None
        return (
            f"of the data's images that cannot be read {_counted(self)} left out, since all are "
            f"decoded at once, and of the run's {_counted(then)}, so that others have their "
            "numbers (resident, and what can be read, must be as before)"
        )

    def _changed_in_place(self, then: Fingerprint) -> str | None:
        """Whether files of the same names and sizes were written again since."""
        ours, theirs = ((each.versions or ":").split(":") for each in (self, then))
        if ours[0] != theirs[0] or ours[1:] == theirs[1:]:
            return None
        return "shards were written again since (other ETags or times of modification)"


def _counted(found: Fingerprint) -> str:
    count = int((found.left_out or "0").partition(":")[0])
    return f"{count or 'none'} is" if count < 2 else f"{count:,} are"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _other_classes(now: tuple[str, ...] | None, then: tuple[str, ...] | None) -> str:
    if now is None or then is None:
        has, had = ("no classes", "some") if now is None else ("classes", "none")
        return f"the data has {has}, the run had {had}"
    if len(now) != len(then):
        return f"the data has {len(now):,} classes, the run had {len(then):,}"
    ours, theirs = next((a, b) for a, b in zip(now, then, strict=True) if a != b)
    return f"the data has a class {ours!r} where the run had {theirs!r}"


def fingerprint(images: ImageSet, *, sizes: bool = True) -> Fingerprint:
    """Compute the fingerprint of a split, from names and sizes, without reading files.

    A file whose content has changed, with the same name and size, is not detected.

    Args:
        images: The split.
        sizes: Whether to ask for the sizes of files, which is slow for many; without them the
            digest is of the labels and names.
    """
    digest = hashlib.blake2b(digest_size=16)
    versions = None
    if images.labels is not None:
        digest.update(images.labels.cpu().numpy().tobytes())
    size: int | None = None
    if isinstance(images, FileImages):
        names = _encoded(images.paths)
        start = len(_folder_of_all(names))
        relative = b"\0".join(name[start:] for name in names)
        digest.update(relative.replace(os.sep.encode(), b"/"))
        if sizes:
            found = stats(names, lambda status: status.st_size)
            size = int(found[found > 0].sum())
            digest.update(found.tobytes())
    elif isinstance(images, PackedImages):
        size = int(images.index.length.sum())
        for column in (images.index.number, images.index.length, images.index.crc):
            digest.update(np.ascontiguousarray(column).tobytes())
    elif isinstance(images, TensorImages):
        digest.update(repr(tuple(images.images.shape)).encode())
        chosen = list(even_indices(len(images), _PIXELS_OF))
        digest.update(images.images[chosen].cpu().numpy().tobytes())
    elif isinstance(images, (DatasetImages, HuggingFaceImages)):
        digest.update(images.digest())
    elif isinstance(images, ShardImages):
        size = sum(shard.size for shard in images.store.shards)
        digest.update(images.digest())
        versions = images.versions()
    return Fingerprint(len(images), images.classes, size, digest.hexdigest(), versions)


def digest_of(images: ImageSet, index: Tensor) -> str:
    """Compute a digest of some images of a split, in order.

    Args:
        images: The split.
        index: Indices of the images, int64 (M,).
    """
    digest = hashlib.blake2b(fingerprint(images).digest.encode(), digest_size=16)
    digest.update(index.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _encoded(paths: Sequence[Path]) -> list[bytes]:
    if not isinstance(paths, Paths):
        return [os.fsencode(path) for path in paths]
    block, ends = paths.arrays()
    whole, edges = block.tobytes(), [0, *ends.tolist()]
    return [whole[a:b] for a, b in pairwise(edges)]


def _folder_of_all(names: Sequence[bytes]) -> bytes:
    """The deepest common folder of all files, with a separator at the end."""
    if not names:
        return b""
    first, last = min(names), max(names)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    common = first[:shared]
    return common[: common.rfind(os.sep.encode()) + 1]
