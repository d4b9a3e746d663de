"""A shard that is open: a local file, or a remote one that is read by ranges of bytes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from unmix.data.streams.remote import ShardError, read_range
from unmix.files import open_regular

__all__ = ["LocalFile", "RemoteFile", "RemovedError"]

_WINDOW = 1 << 22


class RemovedError(ShardError):
    """A file that is not there, or not any more."""


class LocalFile:
    """A local file, which can be read after it was removed.

    Args:
        path: Its path.
        url: What messages call it.

    Raises:
        RemovedError: if it is not there.
        ShardError: if it cannot be read.
    """

    def __init__(self, path: str | Path, url: str) -> None:
        self.url = url
        try:
            self.descriptor = open_regular(path)
        except FileNotFoundError as error:
            raise RemovedError(f"{url}: this shard cannot be read ({error.strerror}).") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ShardError(f"{url}: this shard cannot be read ({reason}).") from None
        self.size = os.fstat(self.descriptor).st_size

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`.

        Raises:
            ShardError: if they cannot be read.
        """
        try:
            return os.pread(self.descriptor, stop - start, start)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ShardError(f"{self.url}: this shard cannot be read ({reason}).") from None

    @property
    def removed(self) -> bool:
        """Whether it was removed since it was opened."""
        return os.fstat(self.descriptor).st_nlink == 0

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            with suppress(OSError):
                os.close(self.descriptor)


class RemoteFile:
    """A remote file, read in windows.

    Args:
        url: Its address.
        size: In bytes.
    """

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size = url, size
        self._start, self._held = 0, b""

    def read(self, start: int, stop: int) -> bytes:
        """As of `LocalFile`."""
        if not self._start <= start <= stop <= self._start + len(self._held):
            self._start = start
            end = min(max(stop, start + _WINDOW), self.size)
            self._held = read_range(self.url, start, end) if end > start else b""
        return self._held[start - self._start : stop - self._start]
