"""Features on disk while they are computed: a folder beside the result, with a file a chunk.

A chunk's file is complete or not there. So a process may be killed at any moment, and the next one
goes on after the last chunk; the result is put together when all are there.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from unmix.embedding.names import NamedSet
from unmix.errors import UserError
from unmix.files import atomic_path, atomic_write, parse_json, read_json
from unmix.names import restored, stored
from unmix.schema import checked

__all__ = ["Chunk", "Chunks"]

VERSION = 1
_BYTES = 2**24
_MOST_ROWS = 4096


@dataclass(frozen=True)
class Chunk:
    """Features of neighboring images of one split.

    Attributes:
        features: (n, D).
        index: Indices of the images in the split, int64 (n,), without broken ones.
        broken: Path and reason of each image that could not be read.
    """

    features: np.ndarray
    index: np.ndarray
    broken: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Place:
    """The images of a chunk: those from `start` to `stop` of a split."""

    split: int
    start: int
    stop: int


class Chunks:
    """The chunks of a result that is being made.

    Args:
        out: The file of the result.
        sets: The splits.
        plan: What else the features depend on, as JSON types.
        dim: D.
        batch_size: Images that are encoded at a time; chunks consist of whole batches, so that a
            continued run has the same batches.
        dtype: Type of the features: "float32" or "float16".
    """

    def __init__(
        self,
        out: Path,
        sets: Sequence[NamedSet],
        plan: Mapping[str, Any],
        *,
        dim: int,
        batch_size: int,
        dtype: str = "float32",
    ) -> None:
        self.out, self.sets = out, tuple(sets)
        self.folder = out.with_name(f".{out.name}.partial")
        self.dim, self.dtype = dim, np.dtype(dtype)
        self.bytes_per_row = self.dtype.itemsize * dim
        fitting = min(_MOST_ROWS, _BYTES // self.bytes_per_row)
        rows = batch_size * max(1, fitting // batch_size)
        self.places = tuple(
            Place(number, start, min(start + rows, len(each.images)))
            for number, each in enumerate(sets)
            for start in range(0, len(each.images), rows)
        )
        counts = [[each.images.split, len(each.images)] for each in sets]
        self.plan = {"version": VERSION, "rows": rows, "images": counts, "dtype": dtype, **plan}

    def __len__(self) -> int:
        return len(self.places)

    def path(self, number: int) -> Path:
        """File of a chunk."""
        return self.folder / f"chunk-{number:06d}.npz"

    @property
    def ready(self) -> Path:
        """Folder of the finished result, before it is moved to its place."""
        return self.folder / "ready"

    @contextmanager
    def opened(self, overwrite: bool) -> Iterator[None]:
        """Lock the folder, created if needed, and write the plan.

        Args:
            overwrite: Whether chunks of another plan are removed.

        Raises:
            UserError: if another process has it, it cannot be written, or its chunks are of
                another plan.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.out}: another process is writing it; wait for that, or give another file.",
                parameter="out",
            ) from None
        except OSError as error:
            raise UserError(
                f"{self.out}: cannot be written ({error.strerror}).", parameter="out"
            ) from None
        try:
            self._check_plan(overwrite)
            yield
        finally:
            lock.release()
            if not any(self.folder.glob("chunk-*")) and not self.ready.exists():
                self.remove()

    def _check_plan(self, overwrite: bool) -> None:
        file = self.folder / "plan.json"
        plan = json.loads(json.dumps(self.plan))
        try:
            found = read_json(file)
        except (OSError, ValueError):
            found = None
        if found != plan:
            if found is not None and not overwrite:
                raise UserError(
                    f"{self.out}: an unfinished one with {_difference(found, plan)} is in "
                    f"{self.folder}; give its command to finish it, or `overwrite=True` to start "
                    "anew.",
                    parameter="out",
                )
            for old in self.folder.glob("chunk-*"):
                old.unlink()
            shutil.rmtree(self.ready, ignore_errors=True)
            atomic_write(file, json.dumps(plan).encode())

    def done(self, overwrite: bool = False) -> int:
        """How many chunks at the beginning are there, intact, and of the present images.

        Args:
            overwrite: Whether those of images that have changed since are made anew.

        Raises:
            UserError: if images have changed, and not `overwrite`.
        """
        for number, place in enumerate(self.places):
            found = self._load(number)
            if found is None:
                return number
            if found[1] != self.sets[place.split].digest(place.start, place.stop):
                if overwrite:
                    return number
                raise UserError(
                    f"{self.out}: its images have changed since the first part was encoded; give "
                    "`overwrite=True` to encode them anew.",
                    parameter="out",
                )
        return len(self)

    def assembled(self, overwrite: bool = False) -> bool:
        """Whether the result is put together, and of the present images.

        Args:
            overwrite: As of `done`.

        Raises:
            UserError: as `done`.
        """
        if self.ready.is_dir() and self.done(overwrite) == len(self):
            return True
        shutil.rmtree(self.ready, ignore_errors=True)
        return False

    def check_room(self, done: int) -> None:
        """Check that there is room on the disk for the features, and for a copy of all.

        Raises:
            UserError: if not.
        """
        total = sum(place.stop - place.start for place in self.places)
        stored_ = sum(place.stop - place.start for place in self.places[:done])
        needed = (2 * total - stored_) * self.bytes_per_row
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"{self.out.parent}: features of {total:,} images need {_size(needed)} while they "
                f"are written, and the disk has {_size(free)} left; give a file on another disk, "
                "or `dtype=float16`.",
                parameter="out",
            )

    def save(self, number: int, chunk: Chunk) -> None:
        """Write a chunk.

        Raises:
            UserError: if it cannot be written.
        """
        place = self.places[number]
        broken = [[stored(path), reason] for path, reason in chunk.broken]
        digest = self.sets[place.split].digest(place.start, place.stop)
        try:
            with atomic_path(self.path(number)) as temporary, open(temporary, "wb") as file:
                np.savez(
                    file, features=chunk.features, index=chunk.index, digest=np.array(digest),
                    broken=np.array(json.dumps(broken)),
                )  # fmt: skip
        except UserError as error:
            kept = f"; {number} of {len(self)} parts are kept: give the command again to continue"
            raise UserError(f"{str(error).rstrip('.')}{kept if number else ''}.") from None

    def _load(self, number: int) -> tuple[Chunk, str] | None:
        """A chunk and the digest of its images; None if it is not there, or damaged."""
        path, place = self.path(number), self.places[number]
        try:
            with np.load(path) as file:
                features, index = file["features"], file["index"]
                texts = {name: str(file[name].item()) for name in ("digest", "broken")}
            listed = parse_json(texts["broken"], os.fspath(path))
            broken = checked(list[tuple[str, str]], listed, path)
            chunk = Chunk(features, index, tuple((restored(p), why) for p, why in broken))
            fits = (
                features.dtype == self.dtype and features.shape == (len(index), self.dim)
                and index.dtype == np.int64 and index.shape == (len(index),)
                and bool(np.all((index >= place.start) & (index < place.stop)))
            )  # fmt: skip
        except (
            OSError, ValueError, KeyError, EOFError, TypeError, MemoryError, zipfile.BadZipFile,
        ):  # fmt: skip
            return None
        return (chunk, texts["digest"]) if fits else None

    def __iter__(self) -> Iterator[tuple[NamedSet, Chunk]]:
        """The chunks that were written, each with its split; one is in memory at a time."""
        for number, place in enumerate(self.places):
            found = self._load(number)
            if found is None:
                raise UserError(f"{self.path(number)}: is gone or damaged; give the command again.")
            yield self.sets[place.split], found[0]

    def finish(self) -> None:
        """Move the finished files to their places, and remove the folder.

        Raises:
            UserError: if a file cannot be moved.
        """
        # The result itself comes last: where it is, everything is.
        files = sorted(self.ready.iterdir(), key=lambda path: path.name == self.out.name)
        for file in files:
            try:
                file.replace(self.out.with_name(file.name))
            except OSError as error:
                raise UserError(
                    f"{self.out.with_name(file.name)}: cannot be written ({error.strerror})."
                ) from None
        self.remove()

    def remove(self) -> None:
        """Remove the folder with all chunks."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _difference(found: Any, plan: Mapping[str, Any]) -> str:
    """What another plan has, in words."""
    if not isinstance(found, dict):
        return "other settings"
    names = [name for name in plan if found.get(name) != plan[name]]
    words = {
        "encoder": "another encoder", "prepares": "another encoder", "images": "other images",
        "data": "other data",
    }  # fmt: skip
    name = next((name for name in words if name in names), names[0] if names else "settings")
    return words.get(name) or f"{name} {found.get(name)!r} instead of {plan.get(name)!r}"


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
