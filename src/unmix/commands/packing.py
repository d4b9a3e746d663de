"""Images of a split to shards: read, verified and resized by workers, written by one process."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from unmix.data import BrokenImage, StreamedImages, decode
from unmix.data.shards import Shard, ShardWriter
from unmix.errors import UserError
from unmix.hardware.threads import usable_cores

__all__ = ["Options", "SplitPacker"]

Item = tuple[bytes, str] | BrokenImage
"""The bytes and extension of an image, or the reason why it cannot be packed."""


@dataclass(frozen=True)
class Options:
    """Options of a pack.

    Attributes:
        short_side: Resize larger images to this shorter side; None leaves all unchanged.
        quality: JPEG quality of the resized ones.
        shard_size: Bytes after which the next shard is begun.
        workers: Processes; None for one per core, at most 16.
        strict: Whether to stop at the first broken image.
    """

    short_side: int | None
    quality: int
    shard_size: int
    workers: int | None
    strict: bool

    def fingerprint(self) -> tuple[int | None, ...]:
        """The options that determine the bytes of the shards."""
        return self.short_side, self.quality, self.shard_size


class _Prepared(Dataset[Item]):
    """Images as they are packed. Each is decoded, so that broken ones are found."""

    def __init__(self, images: StreamedImages, names: list[str], options: Options) -> None:
        self.images, self.names, self.options = images, names, options

    def __getitem__(self, i: int) -> Item:
        try:
            content, place = self.images.read(i), self.images.place(i)
            side = self.options.short_side
            # Twice the side, so that the resize and not the decoder decides how it looks.
            image = decode(place, 1 if side is None else 2 * side, content, self.images.decoding)
            if side is not None and min(image.size) > side:
                return _shrunk(image, side, self.options.quality), "jpg"
        except BrokenImage as error:
            return error
        extension = os.path.splitext(self.names[i])[1][1:].lower()
        if not extension:  # of a row of a table
            extension = "png" if content.startswith(b"\x89PNG") else "jpg"
        return content, "jpg" if extension == "jpeg" else extension


def _shrunk(image: Image.Image, side: int, quality: int) -> bytes:
    shorter = min(image.size)
    width, height = (max(side, round(length * side / shorter)) for length in image.size)
    file = io.BytesIO()
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    resized.save(file, "JPEG", quality=quality)
    return file.getvalue()


@dataclass
class SplitPacker:
    """Writes the missing shards of one split.

    Args:
        out: The pack's folder.
        split: `train` or `test`.
        images: What to pack.
        names: Their paths within what is packed.
        options: How.
        claim: Called with the names of files before they are made.
        claimed: Those that an earlier call has made.
    """

    out: Path
    split: str
    images: StreamedImages
    names: list[str]
    options: Options
    claim: Callable[[list[str]], None]
    claimed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.broken: list[tuple[str, str]] = []
        """The broken images, path and reason."""

    def write(self, advance: Callable[[int], Any]) -> list[Shard]:
        """Write the shards; return all, including those that an earlier call has finished.

        Args:
            advance: Called with the number of images done since it was last called.

        Raises:
            UserError: with `strict`, at the first broken image.
            OSError: if they cannot be written.
        """
        shards = self._finished()
        self.broken = [each for shard in shards for each in shard.broken]
        start = shards[-1].seen if shards else 0
        advance(start)
        labels = self.images.labels
        writer: ShardWriter | None = None
        fresh: list[BrokenImage] = []
        try:
            for i, item in self._prepared(start):
                advance(1)
                if isinstance(item, BrokenImage):
                    self._note(item)
                    fresh.append(item)
                    continue
                if writer is None:
                    self.claim(ShardWriter.makes(self._path(len(shards))))
                    writer = ShardWriter(self._path(len(shards)), len(shards))
                content, extension = item
                label = -1 if labels is None else int(labels[i])
                writer.add(i, content, extension, label, self.names[i])
                if writer.size >= self.options.shard_size:
                    shards.append(writer.finish(i + 1, fresh))
                    writer, fresh = None, []
            if writer is not None:
                shards.append(writer.finish(len(self.images), fresh))
                writer = None
        finally:
            if writer is not None:
                writer.discard()
        return shards

    def _path(self, number: int) -> Path:
        return self.out / f"{self.split}-{number:05d}.tar"

    def _finished(self) -> list[Shard]:
        shards: list[Shard] = []
        while self._path(len(shards)).name in self.claimed:
            shard = Shard.finished(self._path(len(shards)))
            if shard is None:
                break
            shards.append(shard)
        return shards

    def _note(self, error: BrokenImage) -> None:
        if self.options.strict:
            raise UserError(
                f"--strict: {error}; fix or remove the file, or drop --strict to skip it."
            )
        self.broken.append((os.fspath(error.path), error.reason))

    def _prepared(self, start: int) -> Iterator[tuple[int, Item]]:
        wanted = range(start, len(self.images))
        workers = self.options.workers
        if workers is None:
            workers = min(16, usable_cores())
        if len(wanted) < 100 * workers:
            workers = 0  # they would take longer to start
        loader = DataLoader(
            _Prepared(self.images, self.names, self.options),
            sampler=wanted,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            prefetch_factor=16 if workers else None,
        )
        return zip(wanted, loader, strict=True)


def _as_it_is(item: Item) -> Item:
    return item
