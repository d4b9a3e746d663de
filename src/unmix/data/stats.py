"""Facts of many files, which the disk or the network answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["stats"]

_CHUNK = 2000
# A stat waits for the disk or the network, not for the processor.
_THREADS = 16


def stats(
    names: Sequence[str] | Sequence[bytes], fact: Callable[[os.stat_result], int]
) -> np.ndarray:
    """A number of each file, links followed, int64 (N,); -1 where it is not known.

    Args:
        names: The files.
        fact: What is asked of a file's status, such as its size.
    """

    def of(name: str | bytes) -> int:
        try:
            return fact(os.stat(name))
        except (OSError, ValueError):
            return -1

    chunks = [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]
    if len(chunks) < 2:
        return np.array([of(name) for name in names], dtype=np.int64)
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(lambda chunk: [of(name) for name in chunk], chunks)
        return np.array([number for part in parts for number in part], dtype=np.int64)
