"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unmix.errors import UserError

__all__ = ["replacing", "write_whole"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside its place, then rename it, so that no reader ever sees half of it.

    Args:
        path: Where the file goes; folders on the way are made.

    Yields:
        The path to write to. If the block fails, that is removed, and an older file at `path` is
        kept.

    Raises:
        UserError: if the folder cannot be made, or the block fails with an OSError.
    """
    # Not tempfile: its files are readable by their owner alone, and a rename keeps that.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        kept = "; the file that was there before is kept" if path.is_file() else ""
        raise UserError(f"{path}: cannot be written ({reason}){kept}.") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        UserError: if it cannot be written; an older file at `path` is then kept.
    """
    with replacing(path) as beside:
        beside.write_bytes(content)
