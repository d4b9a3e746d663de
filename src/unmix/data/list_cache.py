"""What a list of files held, kept in the cache, so that a million lines are read once.

It holds as long as the list is the same file, written at the same time, and so is each folder of
its images: names that are added to a folder, or removed, change its time. A file that is written
again in its place is not seen here, as in a manifest of a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmix.data.kept import file_name, is_settled, read_kept, stamp, write_kept
from unmix.data.listing import Listing
from unmix.names import shown

__all__ = ["Found", "ListCache"]

_VERSION = 3  # since rows without a path are left out with their labels
_FEWEST = 10_000  # paths; a shorter list is read as fast as what is kept of it
_IN_A_FOLDER = 8  # paths, at least; asking for each folder's time must be less work than for files
_BETWEEN = "//"  # not in a path that was normalized


@dataclass(frozen=True)
class Found:
    """The images of a list.

    Attributes:
        train: The training images that are there.
        test: Those to evaluate on; None if there are none, or they cannot be used.
        notes: How the list was understood and what is missing, for the user.
        test_notes: The same of the images to evaluate on.
        lost: Whether paths of either are missing.
    """

    train: Listing
    test: Listing | None
    notes: tuple[str, ...] = ()
    test_notes: tuple[str, ...] = ()
    lost: bool = False


class ListCache:
    """What is kept of one list, read in one way.

    Args:
        path: The list.
        words: What else the reading depends on.
        cache: Folder of listings; None to keep nothing.
    """

    def __init__(self, path: Path, words: Sequence[Any], cache: Path | None) -> None:
        self.path = str(path)
        self.notes: list[str] = []
        self.file: Path | None = None
        if cache is None:
            return
        try:
            self._status = os.stat(path)
        except OSError:
            return
        name = file_name([_VERSION, self.path, os.path.expanduser("~"), *words])
        self.file = cache / "listings" / f"{name}.list"

    def find(self) -> Found | None:
        """What was found before, if nothing has changed since."""
        if self.file is None:
            return None
        try:
            body, note = read_kept(self.file)
            self.notes += [] if note is None else [note]
            if body is None:
                return None
            content = json.loads(body)
            if content["list"] != self.path:
                raise ValueError("it is of another list")
            stamps = {str(path): list(map(int, then)) for path, then in content["folders"].items()}
            if list(content["stamp"]) != [*stamp(self._status), self._status.st_size]:
                return None
            if any(_stamp(path) != then for path, then in stamps.items()):
                return None
            train, test = (_listing(part) for part in content["parts"])
            assert train is not None
            notes, test_notes = (tuple(map(str, each)) for each in content["notes"])
            found = Found(train, test, notes, test_notes, bool(content["lost"]))
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
            self.notes.append(
                f"note: {shown(self.file)} is damaged; the list is read again, and it is rewritten"
            )
            return None
        count = len(train.paths) + (0 if test is None else len(test.paths))
        self.notes.append(
            f"note: {count:,} paths are from {shown(self.file)}; --no-manifest reads the list again"
        )
        return found

    def folders(self, paths: Sequence[str]) -> dict[str, list[int]] | None:
        """Stamps of the folders of all paths, before they are looked at; None if not to be kept."""
        if self.file is None or len(paths) < _FEWEST or not is_settled(self._status):
            return None
        names = {path[: path.rfind(os.sep)] for path in paths}
        if len(names) * _IN_A_FOLDER > len(paths):
            return None
        stamps = {}
        for name in names:
            try:
                status = os.stat(name or os.sep)
            except OSError:
                stamps[name] = [-1]  # no such folder
                continue
            if not is_settled(status):
                return None
            stamps[name] = stamp(status)
        return stamps

    def keep(self, found: Found, folders: dict[str, list[int]] | None) -> None:
        """Keep what was found, if it is worth it."""
        parts = [_part(found.train), None if found.test is None else _part(found.test)]
        if self.file is None or folders is None or parts[0] is None:
            return
        content = {
            "list": self.path, "stamp": [*stamp(self._status), self._status.st_size],
            "folders": folders, "parts": parts, "lost": found.lost,
            "notes": [found.notes, found.test_notes],
        }  # fmt: skip
        body = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
        note = write_kept(self.file, body)
        self.notes += [] if note is None else [note]


def _stamp(folder: str) -> list[int]:
    try:
        return stamp(os.stat(folder or os.sep))
    except OSError:
        return [-1]


def _part(listing: Listing) -> dict[str, Any] | None:
    """A listing as JSON; None if a path is not as a normalized one."""
    start = ""
    if listing.paths:
        ends = [os.path.dirname(path) for path in (min(listing.paths), max(listing.paths))]
        start = os.path.join(os.path.commonpath(ends), "")
    rests = [path[len(start) :] for path in listing.paths]
    joined = _BETWEEN.join(rests)
    if joined.count(_BETWEEN) != max(0, len(rests) - 1) or joined[:1] == os.sep:
        return None
    return {
        "start": start, "paths": joined, "labels": listing.labels, "classes": listing.classes,
        "why": listing.why, "count": len(rests),
    }  # fmt: skip


def _listing(part: dict[str, Any] | None) -> Listing | None:
    """The inverse.

    Raises:
        ValueError: if it does not fit together.
    """
    if part is None:
        return None
    count, start, labels = int(part["count"]), str(part["start"]), part["labels"]
    text = start + str(part["paths"]).replace(_BETWEEN, _BETWEEN + start)
    paths = text.split(_BETWEEN) if count else []
    classes = None if part["classes"] is None else tuple(map(str, part["classes"]))
    if len(paths) != count or (labels is None) != (classes is None):
        raise ValueError("its parts do not fit")
    if labels is not None and classes is not None:
        low, high = min(labels, default=0), max(labels, default=0)
        if len(labels) != count or low < 0 or (count and high >= len(classes)):
            raise ValueError("its labels do not fit")
    return Listing(paths, labels, classes, part["why"])
