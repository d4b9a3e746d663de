"""Which paths of a list are regular files, asked of the folders rather than of each file."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

import numpy as np

from unmix.data.stats import stats

__all__ = ["file_modes"]

_FEWEST = 32
"""Paths of one folder; fewer are asked for one by one."""
_MOST_OTHERS = 8
"""Entries of a folder for each path in it; with more, the paths are asked for one by one."""


def file_modes(paths: Sequence[str]) -> np.ndarray:
    """The mode (`st_mode`) of each file, links followed, int64 (N,); -1 where there is none.

    Listing a folder tells which of its entries are regular files, at a fraction of the work of
    asking for each. Of those only the type is in the mode.

    Args:
        paths: The files, absolute.
    """
    folders: dict[str, list[int]] = {}
    for i, path in enumerate(paths):
        folder = path[: path.rfind(os.sep)]
        if folder in folders:
            folders[folder].append(i)
        else:
            folders[folder] = [i]
    modes = np.full(len(paths), -1, dtype=np.int64)
    rest: list[int] = []
    for folder, members in folders.items():
        regular = _regular(folder, len(members)) if len(members) >= _FEWEST else set()
        if not regular:
            rest += members
            continue
        start = len(folder) + 1
        here = [i for i in members if paths[i][start:] in regular]
        modes[here] = stat.S_IFREG
        if len(here) < len(members):
            rest += [i for i in members if modes[i] < 0]
    if rest:
        rest.sort()
        modes[rest] = stats([paths[i] for i in rest], lambda status: status.st_mode)
    return modes


def _regular(folder: str, wanted: int) -> set[str]:
    """Names of the regular files in a folder; none if it cannot be listed, or is too large."""
    names: set[str] = set()
    try:
        with os.scandir(folder or os.sep) as entries:
            for count, entry in enumerate(entries):
                if count > wanted * _MOST_OTHERS:
                    return set()
                if entry.is_file(follow_symlinks=False):
                    names.add(entry.name)
    except OSError:
        return set()
    return names
