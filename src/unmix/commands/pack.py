"""`unmix data pack`: a folder of images into a few large files."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from unmix.commands.packing import Options, SplitPacker
from unmix.data import FileImages, StreamedImages, load
from unmix.data.hf import HuggingFaceImages
from unmix.data.packed import (
    MANIFEST,
    UNFINISHED,
    VERSION,
    Index,
    PackedImages,
    plain_name,
    read_unfinished,
)
from unmix.data.paths import Paths
from unmix.data.shards import Shard
from unmix.display import counted
from unmix.errors import UserError, check_number
from unmix.files import as_path, atomic_path, atomic_write
from unmix.names import shown
from unmix.training.console import say as print_line

__all__ = ["pack"]

_MB = 1_000_000


def pack(
    folder: str,
    *,
    out: str,
    short_side: int | None = None,
    quality: int = 95,
    shard_size: int = 1000,
    workers: int | None = None,
    strict: bool = False,
    data_dir: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    say: Callable[[str], None] = print_line,
) -> Path:
    """Pack a folder of images into a few large files, for `--data OUT`.

    Give the same command again to continue an interrupted pack. Images that cannot be read are
    reported and left out.

    Args:
        folder: A folder of images, as for --data, or the name of a set of files, with --data_dir.
        out: The folder to create; it must not exist yet.
        short_side: Resize larger images to this shorter side, as JPEG; by default all are
            unchanged.
        quality: JPEG quality of the resized images, 1 to 100.
        shard_size: Size in MB after which the next file is begun.
        workers: Processes that read, verify and resize; by default one per core, at most 16.
        strict: Stop at the first image that cannot be read.
        data_dir: The folder with the files of a named set.
        train_folder: Folder of the training images, relative to FOLDER, if its name is not a usual
            one.
        test_folder: Folder of the images to evaluate on, likewise.
        say: Prints a line.

    Returns:
        The pack.

    Raises:
        UserError: if the images cannot be read, or the pack cannot be written.
    """
    if short_side is not None:
        check_number("short_side", short_side, at_least=1)
    check_number("quality", quality, at_least=1, at_most=100)
    check_number("shard_size", shard_size, at_least=1)
    if workers is not None:
        check_number("workers", workers, at_least=0)
    place = as_path(out)
    _check_place(place, folder)
    where = {"data_dir": data_dir, "train_folder": train_folder, "test_folder": test_folder}
    sources = _sources(folder, strict, where)
    given = {"short_side": short_side, "quality": quality, "shard_size": shard_size}
    again = shlex.join(_words(folder, out, {**given, **where}))
    for line in sources["train"].notes:
        say(line)
    options = Options(short_side, quality, shard_size * _MB, workers, strict)
    root = as_path(data_dir if data_dir is not None else folder)
    if root.is_file():
        root = root.absolute().parent  # of a list
    work = _Work(place, root, sources, options, again)
    try:
        work.begin(say)
        broken = work.write()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(
            f"{place}: the pack cannot be written ({reason}); give the same command again to "
            "continue."
        ) from error
    if broken:
        first, reason = broken[0]
        files = "1 image file" if len(broken) == 1 else f"{len(broken):,} image files"
        say(f"Skipped {files} that cannot be read, first {shown(first)}: {shown(reason)}")
    say(work.summary())
    return place


def _check_place(out: Path, folder: str) -> None:
    source = as_path(folder)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"OUT: {out} is inside {folder}; a pack must be outside the folder of its images."
        )
    if (out / MANIFEST).exists():
        raise UserError(f"OUT: {out} is a finished pack; remove it first, or give another OUT.")
    try:
        taken = os.path.lexists(out) and (
            not out.is_dir() or (any(out.iterdir()) and read_unfinished(out) is None)
        )
    except OSError as error:
        raise UserError(f"OUT: {out} cannot be read ({error.strerror}).") from error
    if taken:
        raise UserError(f"OUT: {out} exists and is not a pack; give another OUT.")


def _sources(folder: str, strict: bool, where: dict[str, str | None]) -> dict[str, StreamedImages]:
    """The available splits."""
    sources: dict[str, StreamedImages] = {}
    for split in ("train", "test"):
        try:
            images = load(folder, split, strict=strict, **where)  # type: ignore[arg-type]
        except UserError as error:
            if split == "test" and sources["train"].labels is None:
                break  # images without classes need no test split
            raise UserError(error.on_command_line().replace("--data:", "FOLDER:", 1)) from None
        if not isinstance(images, StreamedImages):
            raise UserError(f"FOLDER: {folder} is held in memory; only files need to be packed.")
        sources[split] = images
    return sources


def _words(folder: str, out: str, options: dict[str, Any]) -> list[str]:
    flags = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    return ["unmix", "data", "pack", folder, out, *(word for flag in flags for word in flag)]


@dataclass
class _Work:
    """One pack in progress."""

    out: Path
    root: Path
    sources: dict[str, StreamedImages]
    options: Options
    again: str
    files_made: list[str] = field(default_factory=list)

    def begin(self, say: Callable[[str], None]) -> None:
        """Create the folder, or find in it what an earlier call has finished."""
        self.names = {split: self._names(images) for split, images in self.sources.items()}
        same = self._fingerprint()
        note = self.out / UNFINISHED
        if note.is_file():
            found = read_unfinished(self.out)
            self.files_made = [] if found is None else list(found.files)
            if found is not None and found.fingerprint == same:
                say(f"continuing {shown(self.out)}")
            else:
                say(f"{shown(self.out)} was begun with other images or options; starting over")
                self._clear(keep=note)
        self.out.mkdir(parents=True, exist_ok=True)
        self.same = same
        self._write_note()

    def _write_note(self) -> None:
        """Record the files of this pack: no others are ever overwritten or removed."""
        content = {
            "unmix_pack": VERSION, "fingerprint": self.same, "again": self.again,
            "files": self.files_made,
        }  # fmt: skip
        atomic_write(self.out / UNFINISHED, (json.dumps(content) + "\n").encode())

    def _claim(self, names: Sequence[str]) -> None:
        """Record files that are going to be written.

        Raises:
            UserError: if one exists that this pack did not write.
        """
        new = [name for name in names if name not in self.files_made]
        for name in new:
            if os.path.lexists(self.out / name):
                raise UserError(
                    f"OUT: {self.out / name} exists and is not part of this pack; move it, "
                    "or give another OUT."
                )
        if new:
            self.files_made += new
            self._write_note()

    def write(self) -> list[tuple[str, str]]:
        """Write what is missing; return path and reason of the broken images."""
        total = sum(map(len, self.sources.values()))
        shards: dict[str, list[Shard]] = {}
        broken: list[tuple[str, str]] = []
        with tqdm(total=total, unit="image", file=sys.stderr, disable=None, leave=False) as bar:
            for split, images in self.sources.items():
                packer = SplitPacker(
                    self.out, split, images, self.names[split], self.options, self._claim,
                    frozenset(self.files_made),
                )  # fmt: skip
                shards[split] = packer.write(bar.update)
                broken += packer.broken
        for split, parts in shards.items():
            if not parts:
                self._clear()
                self.out.rmdir()
                raise UserError(
                    f"{self.root}: no {split} image can be read, so nothing was packed; first "
                    f"{': '.join(broken[0])}."
                )
        self._finish(shards, broken)
        return broken

    def summary(self) -> str:
        """One line about the pack."""
        counts = " and ".join(f"{n:,} {split}" for split, n in self.counts.items())
        return (
            f"{shown(self.out)}: {counts} images in {counted(self.files, 'file')}, "
            f"{self.size / _MB:,.1f} MB"
        )

    def _finish(self, shards: dict[str, list[Shard]], broken: list[tuple[str, str]]) -> None:
        splits: dict[str, Any] = {}
        for split, parts in shards.items():
            index = Index.joined([part.index for part in parts])
            names = Paths(self.names[split]).arrays()
            self._claim([f"{split}.npz"])
            with atomic_path(self.out / f"{split}.npz") as beside, open(beside, "wb") as file:
                np.savez(file, names=names[0], name_ends=names[1], **index.arrays())  # type: ignore[arg-type]
            files = [
                {"file": part.path.name, "bytes": part.size, "images": len(part.index)}
                for part in parts
            ]
            splits[split] = {"images": len(index), "shards": files}
        train = self.sources["train"]
        manifest = {
            "unmix_pack": VERSION,
            "made_by": self.again,
            "classes": train.classes,
            "mean": train.mean,
            "std": train.std,
            "range": train.decoding.range,
            "splits": splits,
            "skipped": [list(each) for each in broken],
        }
        atomic_write(self.out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        for parts in shards.values():
            for part in parts:
                Shard.note(part.path).unlink(missing_ok=True)
        (self.out / UNFINISHED).unlink(missing_ok=True)
        self.counts = {split: facts["images"] for split, facts in splits.items()}
        self.files = sum(map(len, shards.values()))
        self.size = sum(part.size for parts in shards.values() for part in parts)

    def _names(self, images: StreamedImages) -> list[str]:
        if isinstance(images, PackedImages):
            return [str(images.names[int(number)]) for number in images.index.number]
        if isinstance(images, HuggingFaceImages):
            return [str(images.place(i)).removeprefix(images.name) for i in range(len(images))]
        return [os.path.relpath(images.place(i), self.root) for i in range(len(images))]

    def _fingerprint(self) -> str:
        """A digest of what determines the shards: listing, sizes and times of files, options."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr(self.options.fingerprint()).encode())
        for split, images in self.sources.items():
            digest.update(repr((split, images.classes, images.mean, images.std)).encode())
            labels = [] if images.labels is None else images.labels.tolist()
            digest.update(repr(labels).encode())
            for i, name in enumerate(self.names[split]):
                digest.update(os.fsencode(name) + b"\0")
                if isinstance(images, FileImages):
                    digest.update(repr(_stamp(images.place(i))).encode())
        return digest.hexdigest()

    def _clear(self, keep: Path | None = None) -> None:
        """Remove the recorded files of an unfinished pack, and nothing else."""
        for name in filter(plain_name, self.files_made):
            if name != UNFINISHED:
                (self.out / name).unlink(missing_ok=True)
        self.files_made = []
        if keep is None:
            (self.out / UNFINISHED).unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
