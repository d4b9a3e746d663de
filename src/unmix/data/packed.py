"""Packs: images in a few large tar files, with an index for random access.

The layout, as written by `unmix.commands.pack`:

- `train-00000.tar`, `test-00000.tar`, ...: WebDataset shards. For each image `KEY.jpg` (or another
  extension), unchanged, `KEY.cls` with its class index if there are classes, and `KEY.json` with
  its original path.
- `train.npz`, `test.npz`: the location of each image; the arrays of `Index`.
- `pack.json`: classes, colors, and the shards with their sizes. It is written last, so that a
  folder without it is not a pack. Until then there is `.unfinished.json`.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from unmix.data.decoding import BrokenImage, Decoding
from unmix.data.imageset import Skipped, StreamedImages
from unmix.data.pack_index import Index, check_index, read_index
from unmix.data.paths import Paths
from unmix.errors import UserError
from unmix.files import kind_of, open_regular, read_json
from unmix.names import shown
from unmix.schema import Check, Count, Fraction, checked

__all__ = [
    "MANIFEST",
    "UNFINISHED",
    "VERSION",
    "PackedImages",
    "holds_pack",
    "load_pack",
    "plain_name",
    "read_unfinished",
]

MANIFEST, UNFINISHED = "pack.json", ".unfinished.json"
VERSION = 1
_LEAST_STD = 1e-4  # as colors are rounded; float16 has smaller numbers, but no reciprocals of them


class Shards:
    """Shard files, which each process opens when it first reads from them.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: dict[int, int] = {}

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Read bytes of a shard; fewer at the end of the file.

        Not by a memory map, whose pages would count as memory of this process.
        """
        if shard not in self._open:
            self._open[shard] = open_regular(self.paths[shard])
        return os.pread(self._open[shard], length, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "_open": {}}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedImages(StreamedImages):
    """Images in the shards of a pack.

    Args:
        shards: The files.
        index: Locations of the images in them.
        names: Original paths, indexed by the index's `number`.
    """

    shards: Shards
    index: Index
    names: Paths

    def __len__(self) -> int:
        return len(self.index)

    def _picked(self, index: Tensor) -> dict[str, Any]:
        return {"index": self.index[index.numpy()]}

    def place(self, i: int) -> Path:
        """The shard's path, followed by the image's original path."""
        name = self.names[int(self.index.number[i])]
        return self.shards.paths[int(self.index.shard[i])] / name

    def read(self, i: int) -> bytes:
        """Read image `i`.

        Raises:
            BrokenImage: if it cannot be read, or its checksum is wrong.
        """
        rows = self.index
        try:
            content = self.shards.read(int(rows.shard[i]), int(rows.offset[i]), int(rows.length[i]))
        except OSError as error:
            raise BrokenImage(self.place(i), error.strerror or type(error).__name__) from error
        if zlib.crc32(content) != int(rows.crc[i]):
            raise BrokenImage(self.place(i), "its bytes are not those that were packed")
        return content


def plain_name(name: object) -> bool:
    """Whether a name is that of a file in the same folder."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(letter in name for letter in "/\\\0")
        and Path(name).name == name
        and len(name) < 256
    )


FileName = Annotated[str, Check(plain_name, "the name of a file in this folder")]


@dataclass(frozen=True)
class Note:
    """The content of `.unfinished.json`.

    Attributes:
        unmix_pack: The version.
        fingerprint: A digest of what determines the shards.
        again: The command that continues the pack.
        files: Those that it has written or begun; no others are removed or written over.
    """

    unmix_pack: Literal[1]
    fingerprint: str
    again: str
    files: list[FileName]


@dataclass(frozen=True)
class ShardEntry:
    """A shard in the manifest."""

    file: FileName
    bytes: Count
    images: Count


@dataclass(frozen=True)
class SplitEntry:
    """A split in the manifest."""

    images: Count
    shards: list[ShardEntry]


_Std = Annotated[float, Check(lambda std: std == 0 or _LEAST_STD <= std <= 1, "from 0.0001 to 1")]
_Increasing = Check(lambda pair: pair[0] < pair[1], "a list of two numbers, the first smaller")


@dataclass(frozen=True)
class Manifest:
    """What of `pack.json` is read."""

    unmix_pack: Literal[1]
    classes: tuple[str, ...] | None
    mean: tuple[Fraction, Fraction, Fraction]
    std: tuple[_Std, _Std, _Std]
    splits: Mapping[str, SplitEntry]
    range: Annotated[tuple[float, float], _Increasing] | None = None  # not in earlier packs


def read_unfinished(folder: Path) -> Note | None:
    """The content of `.unfinished.json`; None if there is none, or it is not ours."""
    path = folder / UNFINISHED
    try:
        return checked(Note, read_json(path), path)
    except (OSError, ValueError):
        return None


def holds_pack(folder: Path) -> bool:
    """Whether a folder is a pack.

    Raises:
        UserError: if it is an unfinished pack.
    """
    if (folder / MANIFEST).is_file():
        return True
    note = read_unfinished(folder)
    if note is not None:
        raise UserError(f"{folder}: this pack is not finished; to continue it, give: {note.again}")
    return False


def load_pack(
    folder: Path, split: str, skipped: Skipped, decoding: Decoding | None = None
) -> PackedImages:
    """Load a split of a pack.

    Args:
        folder: The pack.
        split: `train`, `test`, or `pretrain`, which is `train` here.
        skipped: Collects broken images.
        decoding: How images are decoded; without a range, by that which was measured when they were
            packed.

    Raises:
        UserError: if the pack is of another version or damaged, or does not have the split.
    """
    manifest = _manifest(folder)
    split = "test" if split == "test" else "train"
    if split not in manifest.splits:
        if split == "train":
            raise _damaged(folder / MANIFEST, ValueError("splits.train is missing"))
        raise UserError(
            f"{folder}: this pack has no test split, as its images had none; pack a folder "
            f"with classes, or with a val/ beside its train/."
        )
    parts = manifest.splits[split]
    paths = [folder / shard.file for shard in parts.shards]
    for path, shard in zip(paths, parts.shards, strict=True):
        _check_whole(path, shard.bytes)
    index, names = _index(folder / f"{split}.npz", parts, manifest.classes)
    how = decoding or Decoding()
    if how.range is None and manifest.range is not None:
        how = replace(how, range=manifest.range)
    return PackedImages(
        name=str(folder),
        split=split,
        labels=None if manifest.classes is None else torch.from_numpy(index.label),
        classes=manifest.classes,
        mean=manifest.mean,
        std=manifest.std,
        skipped=skipped,
        decoding=how,
        shards=Shards(paths),
        index=index,
        names=names,
    )


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    version = content.get("unmix_pack", VERSION) if isinstance(content, dict) else VERSION
    if isinstance(version, int) and version != VERSION:
        raise UserError(f"{path}: is of version {version}; this unmix reads version {VERSION}.")
    try:
        return checked(Manifest, content, path)
    except UserError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{shown(path)}: ")
    reason = " ".join(reason.split()).rstrip(".") or type(error).__name__
    return UserError(f"{path}: is damaged or cannot be read: {reason}. Pack the images again.")


def _check_whole(path: Path, size: int) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"{path}: this shard of the pack cannot be read ({error.strerror})."
        ) from error
    if (kind := kind_of(status.st_mode)) is not None:
        raise UserError(f"{path}: this shard of the pack is {kind}, not a regular file.")
    if status.st_size != size:
        raise UserError(
            f"{path}: has {status.st_size:,} bytes, but {size:,} were packed; copy or pack it "
            "again."
        )


def _index(path: Path, parts: SplitEntry, classes: Sequence[str] | None) -> tuple[Index, Paths]:
    try:
        index, names = read_index(path)
        if len(index) == parts.images:
            sizes = [shard.bytes for shard in parts.shards]
            check_index(index, names, sizes, None if classes is None else len(classes))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if len(index) != parts.images:
        raise UserError(
            f"{path}: has {len(index):,} images, but {parts.images:,} were packed; pack them again."
        )
    return index, names
