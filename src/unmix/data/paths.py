"""Many paths in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

__all__ = ["Paths"]


class Paths(Sequence[Path]):
    """A sequence of paths, stored in one block of bytes.

    A tuple of 1.28 million `Path`s takes 440 MB, and every forked data worker would get a copy,
    since reading a Python object writes its reference count.

    Args:
        paths: The paths.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        whole = "".join(paths)
        lengths: Iterable[int] = map(len, paths)
        if not whole.isascii():
            lengths = (len(os.fsencode(path)) for path in paths)
        self._bytes = np.frombuffer(os.fsencode(whole), dtype=np.uint8)
        self._ends = np.cumsum(np.fromiter(lengths, np.int64, len(paths)), dtype=np.int64)

    @classmethod
    def of_arrays(cls, block: np.ndarray, ends: np.ndarray) -> Paths:
        """The inverse of `arrays`."""
        paths = cls(())
        paths._bytes, paths._ends = block, ends
        return paths

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of all paths, uint8, and where each ends in them, int64."""
        return self._bytes, self._ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        start = self._ends[i - 1] if i else 0
        return Path(os.fsdecode(self._bytes[start : self._ends[i]].tobytes()))
