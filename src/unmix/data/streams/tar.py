"""Where the images are in a tar file: read from its headers, nothing is extracted.

The members of one sample follow each other, and their names are alike up to the first dot after the
last slash (`0001.jpg`, `0001.cls`, `0001.json`): the format of WebDataset.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np

from unmix.data.formats import extensions
from unmix.data.paths import Paths
from unmix.data.streams.remote import ShardError
from unmix.files import parse_json

__all__ = ["Located", "Source", "locate"]

_BLOCK = 512
_LONGEST_HEADER = 1 << 20  # of a name or a set of attributes
_LONGEST_LABEL = 1 << 20
_LABEL_KEYS = ("label", "cls", "class", "class_id", "target", "y")
_LABEL_CHARS = 200


class Source(Protocol):
    """Bytes of a file of known size."""

    size: int

    def read(self, start: int, stop: int) -> bytes:
        """Read a range."""


@dataclass(frozen=True, eq=False)
class Located:
    """The images of one shard, in its order.

    Attributes:
        offset: Of the first byte of each image, int64 (N,).
        length: Bytes of each image, int64 (N,); -1 for a sample without an image.
        label: Label of each as text, an array of strings; empty without one.
        names: Names of the images in the shard.
        notes: Peculiarities of the shard, for the user.
    """

    offset: np.ndarray
    length: np.ndarray
    label: np.ndarray
    names: Paths
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.offset)


@dataclass
class _Sample:
    key: str
    image: tuple[int, int, str] | None = None
    label: str = ""
    kinds: list[str] = field(default_factory=list)
    images: int = 0


class _Headers:
    """A file for `tarfile` that reads headers alone, and refuses those that claim gigabytes."""

    def __init__(self, source: Source) -> None:
        self.source, self.position = source, 0

    def tell(self) -> int:
        return self.position

    def seek(self, position: int, whence: int = 0) -> int:
        assert whence == 0
        if position < 0:
            raise tarfile.ReadError("a member of negative size")
        self.position = position
        return position

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        stop = min(self.position + count, self.source.size)
        content = self.source.read(self.position, stop) if stop > self.position else b""
        self.position += len(content)
        return content


def locate(source: Source, name: str) -> Located:
    """Find the images in a tar file.

    Links, devices and FIFOs are passed over, and names are never used as paths of a disk.

    Args:
        source: The bytes.
        name: For messages.

    Raises:
        ShardError: if it is no tar file, is compressed, damaged or cut off, or holds no image.
    """
    samples: list[_Sample] = []
    strange = 0
    ended = True
    for member in _members(source, name):
        if member is None:
            ended = False
        elif not member.isreg() or member.issparse():
            strange += not member.isdir()
        else:
            _add(samples, member, source)
    images = [sample for sample in samples if sample.image is not None]
    if not images:
        kinds = sorted({kind for sample in samples for kind in sample.kinds})[:6]
        held = f"; it holds {', '.join(f'.{kind}' for kind in kinds)}" if kinds else ""
        raise ShardError(f"{name}: holds no images{held}.")
    notes = []
    if strange:
        notes.append(f"{strange:,} members that are no regular files are ignored")
    if (several := sum(sample.images > 1 for sample in images)) > 0:
        notes.append(f"of {several:,} samples with several images the first is used")
    if not ended:
        notes.append("the mark at its end is missing: it may be cut off")
    return Located(
        np.array([sample.image[0] if sample.image else 0 for sample in samples], np.int64),
        np.array([sample.image[1] if sample.image else -1 for sample in samples], np.int64),
        np.array([sample.label for sample in samples], dtype=np.str_),
        Paths([sample.image[2] if sample.image else sample.key for sample in samples]),
        tuple(notes),
    )


def _add(samples: list[_Sample], member: tarfile.TarInfo, source: Source) -> None:
    path = PurePosixPath(member.name.lstrip("/"))
    stem, dot, kind = path.name.partition(".")
    if not stem or not dot:
        return  # hidden, or no part of a sample
    key, kind = str(path.with_name(stem)), kind.lower()
    if not samples or samples[-1].key != key:
        samples.append(_Sample(key))
    sample = samples[-1]
    sample.kinds.append(kind)
    if kind.rpartition(".")[2] in extensions():
        sample.images += 1
        if sample.image is None:
            sample.image = member.offset_data, member.size, str(path)
    elif kind in ("cls", "json") and member.size <= _LONGEST_LABEL:
        content = source.read(member.offset_data, member.offset_data + member.size)
        found = _label(kind, content)
        if found and (kind == "cls" or not sample.label):
            sample.label = found


def _label(kind: str, content: bytes) -> str:
    try:
        value: Any = content.decode().strip()
        if kind == "json":
            value = parse_json(content, kind)
            value = next((value[key] for key in _LABEL_KEYS if key in value), "")
    except (ValueError, TypeError):
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return ""
    return str(value)[:_LABEL_CHARS]


def _members(source: Source, name: str) -> Iterator[tarfile.TarInfo | None]:
    """The members; at last None if the end is not marked.

    Raises:
        ShardError: if the file is no tar file, damaged or cut off.
    """
    start = source.read(0, min(source.size, 6))
    for magic, kind in ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2"),
                        (b"\x28\xb5\x2f\xfd", "zstd")):  # fmt: skip
        if start.startswith(magic):
            raise ShardError(
                f"{name}: is compressed by {kind}; images of a compressed shard cannot be read "
                "one by one: unpack it to .tar (images are compressed already)."
            )
    last, offset = None, 0
    try:
        archive = tarfile.TarFile(fileobj=_Headers(source))  # type: ignore[arg-type]
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # of a large archive they would fill memory
            if member.size < 0 or archive.offset <= offset:
                raise tarfile.ReadError(f"{member.name} has a negative size")
            if member.offset_data + member.size > source.size:
                raise ShardError(
                    f"{name}: is cut off, or damaged: {member.name} would end at byte "
                    f"{member.offset_data + member.size:,} of {source.size:,}."
                )
            last, offset = member, archive.offset
            yield member
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ShardError):
            raise
        after = f" after {last.name}" if last is not None else ""
        raise ShardError(f"{name}: is damaged, or no tar file{after} ({error}).") from None
    rest = source.read(min(offset, source.size), min(offset + _BLOCK, source.size))
    if rest.strip(b"\0"):
        after = f" after {last.name}" if last is not None else ""
        raise ShardError(f"{name}: is damaged{after}, at byte {offset:,}.")
    if not rest:
        yield None
