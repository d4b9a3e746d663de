"""Recognizing output of unmix among images: run folders and figures."""

from __future__ import annotations

import os
import re

from unmix.files import open_regular

__all__ = ["CONFIG", "FIGURE_MARK", "drawn_by_us", "is_own_figure", "is_run_folder"]

CONFIG = "config.yaml"
FIGURE_MARK = "unmix"
"""The `Software` entry of PNGs drawn by unmix."""

_CHUNK = b"tEXtSoftware\0" + FIGURE_MARK.encode()
# Settings of every resolved configuration, few of which are in a file written by hand.
_WORDS = ("method", "data", "backbone", "batch_size", "knn_every", "checkpoint_every", "seed")
_START = 200
_MOST_CONFIG = 100_000


def is_run_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has a `config.yaml` written by a run of unmix."""
    try:
        with open(open_regular(os.path.join(folder, CONFIG)), "rb") as file:
            text = file.read(_MOST_CONFIG).decode("utf-8", errors="replace")
    except OSError:
        return False
    return all(re.search(rf"^{word}:", text, re.MULTILINE) for word in _WORDS)


def drawn_by_us(start: bytes) -> bool:
    """Whether the first bytes are those of a PNG drawn by unmix."""
    return start.startswith(b"\x89PNG") and _CHUNK in start[:_START]


def is_own_figure(path: str) -> bool:
    """Whether a file is a PNG drawn by unmix; False if it cannot be read."""
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            return drawn_by_us(file.read(_START))
    except OSError:
        return False
