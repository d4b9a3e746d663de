"""Shards and the images in them: read by ranges of bytes, of a local file or copy, or remotely."""

from __future__ import annotations

import io
import os
import queue
import sys
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from unmix.data.paths import Paths
from unmix.data.streams.cache import ShardCache, key_of
from unmix.data.streams.remote import ShardError, chunks, local_path, read_range, read_whole
from unmix.data.streams.sources import LocalFile, RemoteFile, RemovedError
from unmix.data.streams.tar import Located, locate
from unmix.errors import UserError
from unmix.files import atomic_write

__all__ = ["Shard", "ShardStore"]

_INDICES = 256  # of shards that are held in memory, where not all are
_OPEN = 256
_AT_ONCE = 16
_COPIES = 4
_TRIES = 3  # at opening a copy that is removed before it is open
_HELD_BYTES = 1 << 28  # of images that are requested at the same time


@dataclass(frozen=True)
class Shard:
    """A tar file.

    Attributes:
        url: URL or path.
        size: In bytes.
        version: Its ETag or time of modification, or empty.
        count: Number of samples that a `sizes.json` states; None without.
    """

    url: str
    size: int
    version: str = ""
    count: int | None = None

    @property
    def key(self) -> str:
        """Name of its copy and its index in the cache."""
        return key_of(self.url, self.size, self.version)

    @property
    def place(self) -> str:
        """Its path or URL without the protocol, which a `Path` would change."""
        return self.url.partition("://")[2] or self.url


class ShardStore:
    """The shards of a split.

    Args:
        shards: The files.
        cache: Whole copies of remote ones, and the indices of all.
        copies: Whether remote shards are copied; otherwise each image is a request.
    """

    def __init__(self, shards: Sequence[Shard], cache: ShardCache, copies: bool = True) -> None:
        self.shards, self.cache, self.copies = tuple(shards), cache, copies
        self.held: dict[int, Located] = {}
        self._begin()

    def _begin(self) -> None:
        self._recent: OrderedDict[int, Located] = OrderedDict()
        self._open: OrderedDict[int, LocalFile] = OrderedDict()
        self._ready: dict[tuple[int, int], bytes | ShardError] = {}
        self._queue: queue.SimpleQueue[int] | None = None
        self._queued: set[int] = set()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        names = ("shards", "cache", "copies", "held")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _fresh(self) -> None:
        if self._process != os.getpid():  # forked: threads and connections stayed behind
            self._begin()

    # --- indices ------------------------------------------------------------------------------

    def index(self, number: int) -> Located:
        """Where the images of a shard are; read from the shard if it is not known yet.

        Raises:
            ShardError: if it cannot be read, or has another number of images than was stated.
        """
        self._fresh()
        if number in self.held:
            return self.held[number]
        if number not in self._recent:
            self._recent[number] = self._known(number) or self._located(number)
            while len(self._recent) > _INDICES:
                self._recent.popitem(last=False)
        self._recent.move_to_end(number)
        return self._recent[number]

    def hold(self, say: Callable[[int], None] | None = None) -> None:
        """Load the indices of all shards; those that are not known are read.

        Args:
            say: Called with the number that is done.
        """
        self._fresh()
        numbers = range(len(self.shards))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for number, found in zip(numbers, pool.map(self._known, numbers), strict=True):
                if found is not None:
                    self.held[number] = found
            missing = [number for number in numbers if number not in self.held]
            for done, (number, found) in enumerate(
                zip(missing, pool.map(self._located, missing), strict=True), 1
            ):
                self.held[number] = found
                if say is not None:
                    say(done)

    def unknown(self) -> list[int]:
        """The shards whose index is not known yet."""
        numbers = range(len(self.shards))
        return [n for n in numbers if n not in self.held and not self._index_path(n).is_file()]

    def _index_path(self, number: int) -> Path:
        shard = self.shards[number]
        place = local_path(shard.url)
        place = shard.url if place is None else os.path.abspath(place)
        name = key_of(place, shard.size, shard.version)
        return self.cache.root / "index" / f"{name}.npz"

    def _known(self, number: int) -> Located | None:
        try:
            with np.load(self._index_path(number), allow_pickle=False) as found:
                names = Paths.of_arrays(found["names"], found["ends"])
                notes = tuple(map(str, found["notes"]))
                located = Located(found["offset"], found["length"], found["label"], names, notes)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        return self._checked(number, located)

    def _located(self, number: int) -> Located:
        shard = self.shards[number]
        located = locate(self._source(number), shard.url)
        names, ends = located.names.arrays()
        content = io.BytesIO()
        np.savez(
            content, offset=located.offset, length=located.length, label=located.label,
            names=names, ends=ends, notes=np.array(located.notes, dtype=np.str_),
        )  # fmt: skip
        with suppress(UserError):  # it is only slower without
            atomic_write(self._index_path(number), content.getvalue())
        return self._checked(number, located)

    def _checked(self, number: int, located: Located) -> Located:
        shard = self.shards[number]
        if shard.count is not None and shard.count != len(located):
            raise ShardError(
                f"{shard.url}: has {len(located):,} samples, and the list of sizes says "
                f"{shard.count:,}; correct that, or remove it."
            )
        return located

    # --- bytes --------------------------------------------------------------------------------

    def _source(self, number: int) -> LocalFile | RemoteFile:
        """A shard, as a local file if it is one or may be copied."""
        shard = self.shards[number]
        return self._file(number, make=True) or RemoteFile(shard.url, shard.size)

    def _file(self, number: int, make: bool) -> LocalFile | None:
        """A shard as a local file: itself, its copy, or a copy that is made; None without one.

        Another thread or process may remove a copy, to make room for its own, before it is open.
        """
        shard = self.shards[number]
        if (path := local_path(shard.url)) is not None:
            return LocalFile(path, shard.url)
        for _ in range(_TRIES):
            copy = self._copy(number, wait=True) if make and self.copies else self._found(number)
            if copy is None:
                break
            with suppress(RemovedError):
                return LocalFile(copy, shard.url)
        return None

    def _found(self, number: int) -> Path | None:
        shard = self.shards[number]
        return self.cache.find(shard.key, shard.size)

    def _copy(self, number: int, *, wait: bool) -> Path | None:
        """The local copy of a shard, which is made; None if there is no room, or no waiting."""
        shard = self.shards[number]

        def write(path: Path) -> None:
            try:
                with open(path, "wb") as file:
                    for content in chunks(shard.url, shard.size):
                        file.write(content)
            except ShardError as error:
                if "ignores requests for a range" not in str(error):
                    raise
                read_whole(shard.url, path)

        try:
            copy = self.cache.fetch(shard.key, shard.size, write, wait=wait)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ShardError(
                f"{shard.url}: cannot be copied to {self.cache.folder} ({reason})."
            ) from None
        if copy is None and wait:
            self._note_full()
        return copy

    def _note_full(self) -> None:
        worker = get_worker_info()
        self.copies = False  # do not try again and again
        if worker is None or worker.id == 0:
            print(
                f"note: there is no room for shards in {self.cache.root}; images are requested "
                "one by one",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def _opened(self, number: int, make: bool) -> LocalFile | None:
        """As `_file`, kept open for the images that are read next."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if (file := self._file(number, make)) is None:
            return None
        self._open[number] = file
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return self._open[number]

    def read(self, number: int, position: int) -> bytes:
        """The bytes of an image.

        Raises:
            ShardError: if the shard cannot be read.
        """
        self._fresh()
        if (ready := self._ready.pop((number, position), None)) is not None:
            if isinstance(ready, ShardError):
                raise ready
            return ready
        located = self.index(number)
        start, length = int(located.offset[position]), int(located.length[position])
        file = self._opened(number, make=False)
        url = self.shards[number].url
        content = (
            read_range(url, start, start + length)
            if file is None
            else file.read(start, start + length)
        )
        if len(content) != length:
            raise ShardError(f"{url}: is shorter than when it was indexed; it has been changed.")
        return content

    def prepare(self, wanted: Sequence[tuple[int, int]], whole: Iterable[int]) -> None:
        """Make ready what will be read next: copy shards, or request images at the same time.

        Args:
            wanted: Shard and position of each image.
            whole: The shards of these that are to be copied.

        Raises:
            ShardError: if a shard cannot be read.
        """
        self._fresh()
        whole, shards = set(whole), {number for number, _ in wanted}
        for number in [n for n, file in self._open.items() if n not in shards and file.removed]:
            del self._open[number]
        self._ready.clear()
        self._copy_all([n for n in sorted(shards & whole) if n not in self._open])
        for number in sorted(shards):
            self._opened(number, make=number in whole)
            self.index(number)
        alone = self._within_memory(n for n in dict.fromkeys(wanted) if n[0] not in self._open)
        if len(alone) < 2:
            return
        with ThreadPoolExecutor(min(_AT_ONCE, len(alone))) as pool:
            self._ready.update(zip(alone, pool.map(self._requested, alone), strict=True))

    def _within_memory(self, wanted: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """As many of these images as may be held at once; the others are read on their own."""
        chosen, size = [], 0
        for number, position in wanted:
            size += max(0, int(self.index(number).length[position]))
            if size > _HELD_BYTES:
                break
            chosen.append((number, position))
        return chosen

    def _copy_all(self, numbers: Sequence[int]) -> None:
        """Copy several shards at the same time."""
        missing = [
            n
            for n in numbers
            if self.copies and local_path(self.shards[n].url) is None and self._found(n) is None
        ]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(_COPIES, len(missing))) as pool:
                list(pool.map(lambda number: self._copy(number, wait=True), missing))

    def _requested(self, each: tuple[int, int]) -> bytes | ShardError:
        number, position = each
        located = self.index(number)
        start, length = int(located.offset[position]), int(located.length[position])
        try:
            return read_range(self.shards[number].url, start, start + max(length, 0))
        except ShardError as error:
            return error

    def fetch_ahead(self, numbers: Iterable[int]) -> None:
        """Copy shards in the background, each once, if there is room."""
        self._fresh()
        if not self.copies:
            return
        for number in numbers:
            if number in self._queued or local_path(self.shards[number].url) is not None:
                continue
            if self._queue is None:
                self._queue = queue.SimpleQueue()
                threading.Thread(
                    target=self._fetch_queued, args=(self._queue,), daemon=True
                ).start()
            self._queued.add(number)
            self._queue.put(number)

    def _fetch_queued(self, numbers: queue.SimpleQueue[int]) -> None:
        while True:
            number = numbers.get()
            # An error is told when the shard is needed.
            with suppress(Exception):
                self._copy(number, wait=False)
            self._queued.discard(number)
