"""Reading files of strangers, and atomic writes."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unmix.errors import UserError

__all__ = [
    "atomic_path",
    "atomic_write",
    "flush",
    "kind_of",
    "open_regular",
    "read_regular",
    "remove_left_over",
]

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)  # as `atomic_path` names them
_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def kind_of(mode: int) -> str | None:
    """What a path is that is not a regular file, from its mode; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "something else")


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading, links followed: a FIFO or a device might never end.

    Returns:
        The file descriptor.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    # Opening a FIFO would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if (kind := kind_of(os.fstat(descriptor).st_mode)) is not None:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", os.fspath(path))
    return descriptor


def read_regular(path: str | os.PathLike[str], at_most: int | None = None) -> bytes:
    """Read a regular file at once.

    Args:
        path: The file.
        at_most: Greatest size in bytes, since a file may be larger than memory.

    Raises:
        OSError: if it cannot be read, is not a regular file, or is larger.
    """
    with open(open_regular(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if at_most is not None and size > at_most:
            reason = f"the file has {size:,} bytes, more than {at_most:,}"
            raise OSError(errno.EFBIG, reason, os.fspath(path))
        return file.read()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write to a temporary file beside `path`, then rename it: readers never see half a file.

    Both are flushed to the disk, so that after a power failure the file is the old or the new one.

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
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        kept = "; the file that was there before is kept" if path.is_file() else ""
        raise UserError(f"{path}: cannot be written ({reason}){kept}.") from error


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: if what was written to the file cannot be stored.
    """
    folder = path.is_dir()
    if folder and sys.platform == "win32":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush folders; they have other ways.
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        UserError: if it cannot be written; an older file at `path` is then kept.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def remove_left_over(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in a folder.

    Files of processes that are alive are kept, and what cannot be removed.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if match is not None and not _is_alive(int(match[1])):
                with suppress(OSError):
                    path.unlink()


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user, or no number of a process
    return True
