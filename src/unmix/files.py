"""Reading files of strangers, and atomic writes."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unmix.errors import UserError

__all__ = [
    "as_path",
    "atomic_path",
    "atomic_write",
    "flush",
    "kind_of",
    "open_regular",
    "parse_json",
    "read_json",
    "read_regular",
    "read_rows",
    "read_text",
    "remove_left_over",
]

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)  # as `atomic_path` names them
_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
_MOST_TEXT = 1 << 26
_DEEPEST, _MOST_DIGITS = 50, 40  # of JSON


def as_path(given: str | os.PathLike[str]) -> Path:
    """A path as it was typed, in which ~ is the home folder, as in a shell."""
    # Not Path.expanduser, which raises where there is no such user.
    return Path(os.path.expanduser(given))


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
        if at_most is None:
            return file.read()
        parts: list[bytes] = []
        left = at_most + 1  # a file may grow while it is read
        while left > 0 and (part := file.read(min(left, max(size, 1 << 16) + 1))):
            parts.append(part)
            left -= len(part)
        if left <= 0:
            reason = f"the file grows while it is read, beyond {at_most:,} bytes"
            raise OSError(errno.EFBIG, reason, os.fspath(path))
        return parts[0] if len(parts) == 1 else b"".join(parts)


def read_text(path: str | os.PathLike[str], at_most: int = _MOST_TEXT) -> str:
    """Read a regular text file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: as `read_regular`.
        UnicodeDecodeError: if it is not UTF-8.
    """
    return read_regular(path, at_most).decode("utf-8-sig")


def read_json(path: str | os.PathLike[str], at_most: int = _MOST_TEXT) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        at_most: Greatest size in bytes.

    Raises:
        OSError: as `read_regular`.
        UserError: as `parse_json`; it names the file.
    """
    return parse_json(read_regular(path, at_most), os.fspath(path))


def read_rows(
    path: str | os.PathLike[str], at_most: int = _MOST_TEXT
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV file with a header, in UTF-8.

    Args:
        path: The file.
        at_most: Greatest size in bytes.

    Yields:
        The number of the line in the file and the fields of each row that are there and not empty.

    Raises:
        OSError: as `read_regular`.
        UserError: if it is no text or no CSV, or has a column twice; it names the file.
    """
    name = os.fspath(path)
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, at_most), newline=""))
        counts = Counter(reader.fieldnames or ())
        if twice := [column for column, count in counts.items() if count > 1]:
            raise UserError(f"{name}: has the column {twice[0][:40]!r} twice.")
        for row in reader:
            # Fields beyond the header have the key None, and missing ones the value None.
            yield reader.line_num, {key: text for key, text in row.items() if key and text}
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start} is not UTF-8.") from None
    except csv.Error as error:
        raise UserError(f"{name}: is not valid CSV ({error}).") from None


def parse_json(content: bytes | str, name: str) -> Any:
    """Parse JSON that anyone may have written.

    Args:
        content: Bytes in UTF-8, or text.
        name: What messages call it.

    Raises:
        UserError: if it is not JSON, or not UTF-8, has a key twice, is nested more than 50 deep, or
            has a number of more than 40 digits, which take long to parse.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_object, parse_int=_whole)
        _check_depth(value)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except RecursionError:
        reason = f"it is nested more than {_DEEPEST} deep"
    except ValueError as error:
        reason = str(error)
    else:
        return value
    raise UserError(f"{name}: is not valid JSON ({reason}).")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # `json` would silently take the last
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    """Check that no function that calls itself for each level reaches Python's limit.

    Raises:
        RecursionError: if one might.
    """
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise RecursionError


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
