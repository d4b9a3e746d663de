"""Whole shards on a local disk, as many as a limit allows, shared by processes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from unmix.data.streams.remote import FULL
from unmix.files import as_path

__all__ = ["ShardCache", "default_folder", "key_of"]

# Bytes that it will have, machine and process.
_PART = re.compile(r"\.[0-9a-f]{32}\.(\d+)\.([0-9a-f]{8})\.(\d+)\.part")
_LOCKS = 64
_FREE_SHARE = 0.02  # of a disk is left free
_ABANDONED = 3600.0  # seconds since a part of another machine was written to


def default_folder() -> Path:
    """`$UNMIX_CACHE`, or `$XDG_CACHE_HOME/unmix`, by default `~/.cache/unmix`."""
    if own := os.environ.get("UNMIX_CACHE"):
        return as_path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unmix"


def key_of(*words: object) -> str:
    """A name for a file of the cache, of what it is a copy of."""
    return hashlib.blake2b(repr(words).encode(), digest_size=16).hexdigest()


class ShardCache:
    """Copies of files, of which the least recently used are removed for new ones.

    Files are written beside and renamed. A reservation is the name of a file being written, which
    has its final size, so that all processes together stay within the limit.

    Args:
        root: The folder of the cache; created when something is written. Copies are in `shards/`.
        limit: Bytes of all copies.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.folder, self.limit = root, root / "shards", limit

    def find(self, key: str, size: int) -> Path | None:
        """A whole copy, which counts as used now; None if there is none."""
        path = self.folder / f"{key}.tar"
        try:
            if path.stat().st_size == size:
                os.utime(path)
                return path
            path.unlink()  # not written by us
        except OSError:
            pass
        return None

    def fetch(
        self, key: str, size: int, write: Callable[[Path], None], *, wait: bool = True
    ) -> Path | None:
        """A copy, which is made if there is none.

        Args:
            key: As by `key_of`.
            size: Its size in bytes.
            write: Writes it to a path.
            wait: Whether to wait for another process that is making it.

        Returns:
            None if there is no room for it, or another process is making it and `wait` is not set.
        """
        if (found := self.find(key, size)) is not None or size > self.limit:
            return found
        try:
            with self._locked(f"{int(key, 16) % _LOCKS:02d}", wait):
                return self.find(key, size) or self._made(key, size, write)
        except TimeoutError:
            return None
        except OSError as error:
            if error.errno in FULL or isinstance(error, PermissionError):
                return None
            raise

    def _made(self, key: str, size: int, write: Callable[[Path], None]) -> Path | None:
        part = self.folder / f".{key}.{size}.{_machine()}.{os.getpid()}.part"
        with self._locked("room", True):
            if not self._make_room(size):
                return None
            part.touch()
        try:
            write(part)
            if part.stat().st_size != size:
                raise OSError(f"{part}: has {part.stat().st_size:,} bytes, not {size:,}")
            path = self.folder / f"{key}.tar"
            with self._locked("room", True):  # or another's count might see neither name
                part.replace(path)
            return path
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used copies until there is room; False if there cannot be."""
        copies: list[tuple[float, int, Path]] = []
        reserved = unwritten = 0
        for entry in os.scandir(self.folder):
            with suppress(OSError):  # removed meanwhile
                status = entry.stat(follow_symlinks=False)
                match = _PART.fullmatch(entry.name)
                if match is not None and _left_over(match, status.st_mtime):
                    os.unlink(entry.path)
                elif match is not None:
                    reserved += int(match[1])
                    unwritten += max(0, int(match[1]) - status.st_size)
                elif entry.name.endswith(".tar"):
                    copies.append((status.st_mtime, status.st_size, Path(entry.path)))
        copies.sort()
        used = reserved + sum(copy[1] for copy in copies)

        def fits() -> bool:
            disk = shutil.disk_usage(self.folder)
            free = disk.free - unwritten - _FREE_SHARE * disk.total
            return used + size <= self.limit and size <= free

        while not fits():
            if not copies:
                return False
            _, bytes_, oldest = copies.pop(0)
            oldest.unlink(missing_ok=True)
            used -= bytes_
        return True

    @contextmanager
    def _locked(self, name: str, wait: bool) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f".{name}.lock", timeout=-1 if wait else 0)
        with lock.acquire(poll_interval=0.05):
            yield


def _machine() -> str:
    """Of machines and containers that share a folder, which this is."""
    return key_of(socket.gethostname())[:8]


def _left_over(match: re.Match[str], written: float) -> bool:
    """Whether the process that wrote a part is gone."""
    if time.time() - written > _ABANDONED:
        return True
    if match[2] != _machine():
        return False
    try:
        os.kill(int(match[3]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False
