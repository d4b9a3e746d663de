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

import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmix.data.decoding import BrokenImage, Decoding
from unmix.data.imageset import Skipped, StreamedImages
from unmix.data.paths import Paths
from unmix.errors import UserError
from unmix.files import kind_of, open_regular

__all__ = [
    "MANIFEST",
    "UNFINISHED",
    "VERSION",
    "Index",
    "PackedImages",
    "holds_pack",
    "load_pack",
    "plain_name",
    "read_unfinished",
]

MANIFEST, UNFINISHED = "pack.json", ".unfinished.json"
VERSION = 1


@dataclass(frozen=True)
class Index:
    """The locations of the images of a split, one element for each.

    Attributes:
        number: Position in the listing that was packed, int64, without broken images.
        shard: Index of the shard, int32.
        offset: Offset of the first byte in it, int64.
        length: Number of bytes, int64.
        crc: CRC-32 of the bytes, uint32.
        label: Class, int64; -1 without classes.
    """

    number: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc: np.ndarray
    label: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, int, int, int]]) -> Index:
        """Make an index from rows, whose columns are the attributes."""
        kinds = (np.int64, np.int32, np.int64, np.int64, np.uint32, np.int64)
        columns = zip(*rows, strict=True) if rows else ((),) * len(kinds)
        return cls(*(np.array(c, dtype=kind) for c, kind in zip(columns, kinds, strict=True)))

    @classmethod
    def joined(cls, parts: Sequence[Index]) -> Index:
        """Concatenate several."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as they are saved."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, index: np.ndarray) -> Index:
        return Index(**{name: array[index] for name, array in self.arrays().items()})


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
    )


def read_unfinished(folder: Path) -> dict[str, Any] | None:
    """The content of `.unfinished.json`; None if there is none, or it is not ours."""
    try:
        note = json.loads((folder / UNFINISHED).read_text(encoding="utf-8"))
        ours = note["unmix_pack"] == VERSION and all(map(plain_name, note["files"]))
        texts = isinstance(note["again"], str) and isinstance(note["fingerprint"], str)
        return note if ours and texts else None
    except (OSError, ValueError, KeyError, TypeError):
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
        raise UserError(
            f"{folder}: this pack is not finished; to continue it, give: {note['again']}"
        )
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
    if split not in manifest["splits"]:
        raise UserError(
            f"{folder}: this pack has no test split, as its images had none; pack a folder "
            f"with classes, or with a val/ beside its train/."
        )
    parts = manifest["splits"][split]
    for shard in parts["shards"]:
        if not plain_name(shard["file"]):
            raise UserError(
                f"{folder / MANIFEST}: names a shard {shard['file']!r}, which is not in this "
                "folder; pack the images again."
            )
    paths = [folder / shard["file"] for shard in parts["shards"]]
    for path, shard in zip(paths, parts["shards"], strict=True):
        _check_whole(path, shard["bytes"])
    index, names = _index(folder / f"{split}.npz", parts["images"])
    classes = None if manifest["classes"] is None else tuple(manifest["classes"])
    how = decoding or Decoding()
    own = manifest.get("range")  # not in packs of earlier versions
    if how.range is None and own is not None:
        how = replace(how, range=(float(own[0]), float(own[1])))
    return PackedImages(
        name=str(folder),
        split=split,
        labels=None if classes is None else torch.from_numpy(index.label),
        classes=classes,
        mean=tuple(manifest["mean"]),
        std=tuple(manifest["std"]),
        skipped=skipped,
        decoding=how,
        shards=Shards(paths),
        index=index,
        names=names,
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["unmix_pack"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged or cannot be read; pack the images again.") from error
    if version != VERSION:
        raise UserError(f"{path}: is of version {version}; this unmix reads version {VERSION}.")
    return manifest


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


def _index(path: Path, count: int) -> tuple[Index, Paths]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index = Index(**{field.name: arrays[field.name] for field in fields(Index)})
            names = Paths.of_arrays(arrays["names"], arrays["name_ends"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: is damaged or cannot be read; pack the images again.") from error
    if len(index) != count:
        raise UserError(
            f"{path}: has {len(index):,} images, but {count:,} were packed; pack them again."
        )
    # Labels become a tensor, which needs memory of its own in native byte order.
    return replace(index, label=np.ascontiguousarray(index.label, dtype=np.int64)), names
