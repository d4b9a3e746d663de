"""Bytes of files on a disk, a server or in a bucket, with retries, by fsspec."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from unmix.errors import UserError
from unmix.files import open_regular

__all__ = [
    "FULL", "Facts", "ShardError", "chunks", "facts", "facts_of_all", "filesystem", "local_path",
    "read_range", "read_whole",
]  # fmt: skip

TRIES = 6
FIRST_DELAY = 0.5  # seconds before the second try; doubled for each further one
CONNECT, SILENCE = 15, 30  # seconds until a server that does not answer is given up, at each try
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a local disk that is full."""
PATIENCE = 90  # seconds after which nothing is tried again
_CHUNK = 1 << 24
_AT_ONCE = 32  # requests for sizes wait for the network
_REFUSED = range(400, 500)
_TEMPORARY = (408, 425, 429)
_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}

T = TypeVar("T")


class ShardError(UserError):
    """A shard that cannot be read; the message names it.

    PyTorch raises an error of a data worker again in the main process, from a text with its
    traceback: only the message is taken of that.

    Attributes:
        refused: Whether the file does not exist, or may not be read.
    """

    def __init__(self, message: object = "", *, refused: bool = False) -> None:
        text = str(message)
        if text.startswith(f"Caught {type(self).__name__} in "):
            text = text.rstrip().splitlines()[-1].partition(": ")[2]
        super().__init__(text)
        self.refused = refused


@dataclass(frozen=True)
class Facts:
    """What is known of a file without reading it.

    Attributes:
        size: In bytes.
        version: Its ETag or time of modification; empty if there is none.
    """

    size: int
    version: str = ""


def local_path(url: str) -> str | None:
    """The path of a local file; None for others."""
    if url.startswith("file://"):
        return url.removeprefix("file://")
    return None if "://" in url else url


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of fsspec for a URL, of this process, and the path in it.

    Raises:
        UserError: if the protocol is unknown, or needs a package that is not installed.
    """
    import fsspec  # only here: runs on folders do not need it

    protocol = url.partition("://")[0] if "://" in url else "file"
    mine = os.getpid(), protocol  # what was opened before a fork has no threads after it
    try:
        if mine not in _OPENED:
            _OPENED[mine] = fsspec.filesystem(protocol, **_options(protocol))
        return _OPENED[mine], _OPENED[mine]._strip_protocol(url)
    except ImportError as error:
        package = _EXTRAS.get(protocol)
        what = f"{package}, which unmix[stream] has" if package else f"a package ({error})"
        raise UserError(f"{url}: {protocol}:// needs {what}; install it.") from None
    except ValueError as error:
        raise UserError(f"{url}: cannot be read ({error}).") from None


_OPENED: dict[tuple[int, str], Any] = {}


def _options(protocol: str) -> dict[str, Any]:
    if protocol not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
    return {"client_kwargs": {"timeout": timeout}}


def facts(url: str) -> Facts:
    """Size and version of a file.

    Raises:
        ShardError: if there is none, or it cannot be reached.
    """
    path = local_path(url)
    if path is not None:
        try:
            os.close(open_regular(path))
            status = os.stat(path)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ShardError(f"{url}: this shard cannot be read ({reason}).") from None
        return Facts(status.st_size, str(status.st_mtime_ns))
    fs, place = filesystem(url)
    found = _tried(url, lambda: fs.info(place))
    size = found.get("size")
    if not isinstance(size, int) or size < 0:
        raise ShardError(f"{url}: the server does not tell its size, which is needed.")
    names = ("ETag", "etag", "LastModified", "Last-Modified", "updated", "mtime", "created")
    return Facts(size, next((str(found[name]) for name in names if found.get(name)), ""))


def facts_of_all(urls: Iterable[str]) -> list[Facts]:
    """Size and version of several files, asked for at the same time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(facts, urls))


def read_range(url: str, start: int, stop: int) -> bytes:
    """Read the bytes of a remote file from `start` to `stop`.

    Raises:
        ShardError: if they cannot be read after several tries.
    """
    fs, place = filesystem(url)

    def read() -> bytes:
        content = fs.cat_file(place, start=start, end=stop)
        if len(content) > stop - start:
            raise ShardError(
                f"{url}: the server ignores requests for a range of bytes, so shards can only be "
                "read whole; give --cache_size with room for them."
            )
        if len(content) < stop - start:
            raise EOFError(f"{len(content):,} of {stop - start:,} bytes came")
        return content

    return _tried(url, read)


def chunks(url: str, size: int) -> Iterator[bytes]:
    """The bytes of a remote file, in parts that fit in memory; each is tried again on its own.

    Raises:
        ShardError: if one cannot be read.
    """
    for start in range(0, size, _CHUNK):
        yield read_range(url, start, min(start + _CHUNK, size))


def read_whole(url: str, path: Path) -> None:
    """Copy a remote file at once, from a server that does not know ranges.

    Raises:
        ShardError: if it cannot be read.
        OSError: if it cannot be written.
    """
    fs, place = filesystem(url)

    def copy() -> None:
        with fs.open(place, "rb", block_size=0) as source, open(path, "wb") as target:
            while content := source.read(_CHUNK):
                target.write(content)

    _tried(url, copy)


def _tried(url: str, call: Callable[[], T]) -> T:
    """Call, again after a pause if it fails for a reason that may pass.

    Raises:
        ShardError: if it does not pass, in one line.
    """
    begun, pause = time.monotonic(), FIRST_DELAY
    for number in range(1, TRIES + 1):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:  # libraries of each protocol have their own
            cause = error
            if isinstance(error, FileNotFoundError) and url.startswith("http"):
                cause = error.__cause__ or error  # type: ignore[assignment]  # also refused ones
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            reason = _reason(cause)
            status = getattr(cause, "status", None)
            if isinstance(cause, FileNotFoundError) or status in (404, 410):
                raise ShardError(f"{url}: there is no such file.", refused=True) from None
            forever = status in _REFUSED and status not in _TEMPORARY
            if forever or isinstance(cause, PermissionError):
                raise ShardError(f"{url}: cannot be read ({reason}).", refused=True) from None
            seconds = time.monotonic() - begun
            if number == TRIES or seconds > PATIENCE:
                raise ShardError(
                    f"{url}: cannot be read ({reason}); {number} tries in {seconds:.0f} s; "
                    "the same command goes on when it is there again."
                ) from None
        time.sleep(pause * (0.75 + random.random() / 2))  # workers shall not all come back at once
        pause *= 2
    raise AssertionError("the last try returns or raises")


def _reason(error: BaseException) -> str:
    status, text = getattr(error, "status", None), getattr(error, "message", None)
    if isinstance(status, int):
        return f"{status} {text}".strip()
    if (inner := getattr(error, "os_error", None)) is not None:
        host, port = getattr(error, "host", "the server"), getattr(error, "port", None)
        return f"no connection to {host}{f':{port}' if port else ''}: {inner.strerror or inner}"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"no answer within {SILENCE} s"
    return " ".join(str(error).split()) or type(error).__name__
