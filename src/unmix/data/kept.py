"""Files of the cache: of this user alone, with a checksum, and not more than 64 of a kind."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmix.errors import UserError
from unmix.files import atomic_write, read_regular
from unmix.names import shown

__all__ = ["checksum", "file_name", "is_settled", "read_kept", "stamp", "write_kept"]

_SETTLED = 2_000_000_000  # ns: file systems' times may be two seconds coarse
_MOST_KEPT = 64


def file_name(words: Sequence[Any]) -> str:
    """The name of the file for what these words describe."""
    name = hashlib.blake2b(repr(words).encode("utf-8", "surrogateescape"), digest_size=16)
    return name.hexdigest()


def read_kept(file: Path) -> tuple[bytes | None, str | None]:
    """What `write_kept` wrote, or None; and a note for the user if there is something to say.

    Raises:
        ValueError: if the checksum is wrong.
    """
    try:
        status = file.stat()
        owner = getattr(os, "geteuid", lambda: status.st_uid)()
        if status.st_uid not in (owner, 0):
            return None, f"note: {shown(file)} is another user's and is not read"
        digest, _, body = read_regular(file).partition(b"\n")
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"note: {shown(file)} cannot be read ({error.strerror})"
    if digest != checksum(body):
        raise ValueError("its checksum is wrong")
    return body, None


def write_kept(file: Path, body: bytes) -> str | None:
    """Write a file beside its place, rename it, and remove the oldest of its kind.

    Returns:
        A note, if it cannot be written.
    """
    try:
        atomic_write(file, checksum(body) + b"\n" + body)
        same = file.parent.glob(f"*{file.suffix}")
        for old in sorted(same, key=lambda each: each.stat().st_mtime, reverse=True)[_MOST_KEPT:]:
            old.unlink(missing_ok=True)
    except (UserError, OSError) as error:
        return f"note: the names of the files are not kept: {error}"
    return None


def checksum(body: bytes) -> bytes:
    """The checksum of the content of a file."""
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()


def stamp(status: os.stat_result) -> list[int]:
    """Device, inode and time of modification: others, if a file or folder was changed."""
    return [status.st_dev, status.st_ino, status.st_mtime_ns]


def is_settled(status: os.stat_result) -> bool:
    """Whether a change from now on gets another time than the last one: clocks are coarse."""
    return time.time_ns() - status.st_mtime_ns > _SETTLED
