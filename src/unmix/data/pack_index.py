"""The index of a pack's split, in an npz file: where each image is, and what it is."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from unmix.data.paths import Paths
from unmix.files import open_regular

__all__ = ["Index", "check_index", "read_index"]

_ARRAYS: dict[str, type[np.integer[Any]]] = {
    "number": np.int64, "shard": np.int32, "offset": np.int64, "length": np.int64,
    "crc": np.uint32, "label": np.int64, "names": np.uint8, "name_ends": np.int64,
}  # fmt: skip
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# What zipfile and NumPy raise on damaged files, beside ValueError and OSError.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, TypeError, RuntimeError,
    MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Index:
    """The locations of the images of a split, one element for each.

    Attributes:
        number: Position in the listing that was packed, int64, without broken images.
        shard: Index of the shard, int32.
        offset: Offset of the first byte in it, int64.
        length: Number of bytes, int64.
        crc: CRC-32 of the bytes, uint32.
        label: Class, int64; -1 without classes.
    """

    number: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc: np.ndarray
    label: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, int, int, int]]) -> Index:
        """Make an index from rows, whose columns are the attributes."""
        kinds = (np.int64, np.int32, np.int64, np.int64, np.uint32, np.int64)
        columns = zip(*rows, strict=True) if rows else ((),) * len(kinds)
        return cls(*(np.array(c, dtype=kind) for c, kind in zip(columns, kinds, strict=True)))

    @classmethod
    def joined(cls, parts: Sequence[Index]) -> Index:
        """Concatenate several."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as they are saved."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, index: np.ndarray) -> Index:
        return Index(**{name: array[index] for name, array in self.arrays().items()})


def read_index(path: Path) -> tuple[Index, Paths]:
    """Read an index, and the names of all images that were listed.

    No array is made that is larger than the file, whatever it says.

    Raises:
        OSError: if it cannot be read, or is not a regular file.
        ValueError: if it is damaged: an array is missing, or does not hold integers that fit.
    """
    with open(open_regular(path), "rb") as file:
        try:
            arrays = _arrays(file)
        except _DAMAGED as error:
            raise ValueError(str(error) or type(error).__name__) from error
    index = Index(**{field.name: arrays[field.name] for field in fields(Index)})
    return index, Paths.of_arrays(arrays["names"], arrays["name_ends"])


def _arrays(file: IO[bytes]) -> dict[str, np.ndarray]:
    size = os.fstat(file.fileno()).st_size
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name, kind in _ARRAYS.items():
            if f"{name}.npy" not in archive.namelist():
                raise ValueError(f"the array {name} is missing")
            entry = archive.getinfo(f"{name}.npy")
            # They are stored as they are; a compressed one might be a thousand times as large.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise ValueError(f"the array {name} is compressed")
            with archive.open(entry) as member:
                found[name] = _array(name, member, kind, entry.file_size)
    return found


def _array(name: str, member: IO[bytes], kind: type[np.integer[Any]], size: int) -> np.ndarray:
    read = _HEADERS.get(npy.read_magic(member))
    if read is None:
        raise ValueError(f"the array {name} is of an unknown version")
    shape, _, dtype = read(member)
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ValueError(f"the array {name} is {dtype} of shape {shape}, not a row of integers")
    if not 0 <= shape[0] * dtype.itemsize <= size:
        raise ValueError(f"the array {name} says that it has {shape[0]:,} elements")
    array = np.frombuffer(member.read(shape[0] * dtype.itemsize), dtype)
    if len(array) != shape[0]:
        raise ValueError(f"the array {name} is cut off")
    limits = np.iinfo(kind)
    if len(array) and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise ValueError(f"the array {name} has a number that is out of range")
    # A copy: labels become a tensor, which needs memory of its own in native byte order.
    return array.astype(kind)


def check_index(index: Index, names: Paths, sizes: Sequence[int], classes: int | None) -> None:
    """Check that an index leads to bytes, names and classes that there are.

    Args:
        index: The index.
        names: Of all images that were listed.
        sizes: Of the shards, in bytes.
        classes: Their number, if there are any.

    Raises:
        ValueError: if not.
    """
    arrays = index.arrays()
    if len({len(array) for array in arrays.values()}) != 1:
        raise ValueError("its arrays differ in length")
    block, ends = names.arrays()
    if np.any(np.diff(ends, prepend=0) < 0) or (len(ends) and int(ends[-1]) > len(block)):
        raise ValueError("the array name_ends does not fit the array names")
    if len(index) == 0:
        return
    limits = {"number": len(names), "shard": len(sizes), "offset": None, "length": None}
    if classes is not None:
        limits["label"] = classes
    for name, count in limits.items():
        low, high = int(arrays[name].min()), int(arrays[name].max())
        if low < 0 or (count is not None and high >= count):
            below = "" if count is None else f" and below {count:,}"
            raise ValueError(
                f"a {name} is {low if low < 0 else high:,}; it must be at least 0{below}"
            )
    # Not the sum of offset and length, which may be larger than an integer can be.
    if np.any(index.length > np.array(sizes, np.int64)[index.shard] - index.offset):
        raise ValueError("an image lies beyond the end of its shard")
