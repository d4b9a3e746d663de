"""Our own output among the images: run folders, and figures that unmix drew."""

from __future__ import annotations

import os
import re

__all__ = ["CONFIG", "FIGURE_MARK", "drawn_by_us", "is_own_figure", "is_run_folder"]

CONFIG = "config.yaml"
FIGURE_MARK = "unmix"
"""The text `Software` of the PNGs that unmix draws."""

_CHUNK = b"tEXtSoftware\0" + FIGURE_MARK.encode()
# Words of every resolved configuration, of which a file that someone writes states few.
_WORDS = ("method", "data", "backbone", "batch_size", "knn_every", "checkpoint_every", "seed")
_START = 200
_MOST_CONFIG = 100_000


def is_run_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder's `config.yaml` is one that a run of unmix wrote."""
    try:
        with open(os.path.join(folder, CONFIG), encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_CONFIG)
    except OSError:
        return False
    return all(re.search(rf"^{word}:", text, re.MULTILINE) for word in _WORDS)


def drawn_by_us(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a PNG that unmix drew."""
    return start.startswith(b"\x89PNG") and _CHUNK in start[:_START]


def is_own_figure(path: str) -> bool:
    """The same of a file; False if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return drawn_by_us(file.read(_START))
    except OSError:
        return False
