"""Atomic file writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unmix.errors import UserError

__all__ = ["atomic_path", "atomic_write"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write to a temporary file beside `path`, then rename it: readers never see half a file.

    Args:
        path: The file to write; missing parent folders are created.

    Yields:
        The temporary path. If the block fails it is removed, and an older file at `path` is kept.

    Raises:
        UserError: if the folder cannot be created, or the block fails with an OSError.
    """
    # Not tempfile: its files are readable by their owner alone, and a rename keeps that.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        kept = "; the file that was there before is kept" if path.is_file() else ""
        raise UserError(f"{path}: cannot be written ({reason}){kept}.") from error


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        UserError: if it cannot be written; an older file at `path` is then kept.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
