"""Writing one shard of a pack atomically."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmix.data.decoding import BrokenImage
from unmix.data.pack_index import Index
from unmix.files import parse_json
from unmix.schema import Count, checked

__all__ = ["Shard", "ShardWriter"]

_BLOCK = 512


@dataclass(frozen=True)
class _Facts:
    """What is in the mark of a finished shard, beside its index."""

    size: Count
    seen: Count
    broken: list[tuple[str, str]]


class Shard:
    """A finished shard of an unfinished pack, marked by a hidden file beside it.

    Args:
        path: The tar file.
        index: Its images.
        size: Its size in bytes.
        seen: Number of images of the listing in this and earlier shards, including broken ones.
        broken: Path and reason of broken images.
    """

    def __init__(
        self, path: Path, index: Index, size: int, seen: int, broken: list[tuple[str, str]]
    ) -> None:
        self.path, self.index, self.size, self.seen, self.broken = path, index, size, seen, broken

    @staticmethod
    def note(path: Path) -> Path:
        """The hidden file that marks the shard as finished."""
        return path.with_name(f".{path.stem}.npz")

    @classmethod
    def finished(cls, path: Path) -> Shard | None:
        """Find a finished shard; None if there is none at this path, or it is incomplete."""
        try:
            with np.load(cls.note(path), allow_pickle=False) as mark:
                arrays = {name: mark[name] for name in mark.files}
            facts = checked(_Facts, parse_json(arrays.pop("facts").tobytes(), path.name), path)
            shard = cls(path, Index(**arrays), facts.size, facts.seen, facts.broken)
            return shard if path.stat().st_size == shard.size else None
        # If anything is wrong with the mark, the shard is written again.
        except Exception:
            return None


class ShardWriter:
    """Writes images to a hidden file, which `finish` renames.

    Args:
        path: Path of the tar file.
        number: Index of the shard in its split.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.beside = path.with_name(f".{path.name}.partial")
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        # Both are closed by `finish` or `discard`.
        self._file = open(self.beside, "wb")  # noqa: SIM115
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)

    @staticmethod
    def makes(path: Path) -> list[str]:
        """Names of the files that are created while a shard is written."""
        return [path.name, f".{path.name}.partial", Shard.note(path).name]

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._tar.offset

    def add(self, number: int, content: bytes, extension: str, label: int, name: str) -> None:
        """Write an image.

        Args:
            number: Its position in the listing, used as key.
            content: The encoded bytes.
            extension: Extension without a dot.
            label: Class index; -1 for none.
            name: Original path.
        """
        self._member(number, extension, content)
        blocks = -(-len(content) // _BLOCK)
        offset = self._tar.offset - blocks * _BLOCK
        crc = zlib.crc32(content)
        self._rows.append((number, self.number, offset, len(content), crc, label))
        if label >= 0:
            self._member(number, "cls", str(label).encode())
        self._member(number, "json", json.dumps({"path": name}).encode())

    def finish(self, seen: int, broken: list[BrokenImage]) -> Shard:
        """Rename the shard; its mark is written first.

        Args:
            seen: See `Shard`.
            broken: Broken images up to the last one of this shard.
        """
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        index = Index.of(self._rows)
        told = [(os.fspath(error.path), error.reason) for error in broken]
        facts = json.dumps({"size": size, "seen": seen, "broken": told}).encode()
        with open(Shard.note(self.path), "wb") as note:
            np.savez(note, facts=np.frombuffer(facts, np.uint8), **index.arrays())  # type: ignore[arg-type]
        self.beside.replace(self.path)
        return Shard(self.path, index, size, seen, told)

    def discard(self) -> None:
        """Remove the hidden file of an unfinished shard."""
        # On a full disk closing the file fails again.
        with contextlib.suppress(OSError):
            self._file.close()
        self.beside.unlink(missing_ok=True)

    def _member(self, number: int, extension: str, content: bytes) -> None:
        member = tarfile.TarInfo(f"{number:09d}.{extension}")
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
