"""Names of the files of a large folder, kept in the cache, so that it is listed once.

A folder is read again if its device, inode or time of modification is another, which changes when
a name is added, removed or renamed in it. A file that is written again in its place is not seen
here: names are all that is kept, and the fingerprint of a run asks for sizes anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unmix.data.formats import extensions
from unmix.errors import UserError
from unmix.files import atomic_write, read_regular
from unmix.names import shown

__all__ = ["Content", "Manifest"]

_VERSION = 1
_FEWEST = 10_000  # names; a smaller folder is listed as fast as a manifest is read
_SETTLED = 2_000_000_000  # ns: file systems' times may be two seconds coarse
_MOST_KEPT = 64


@dataclass(frozen=True)
class Content:
    """What a folder holds.

    Attributes:
        images: Names of the image files, sorted.
        folders: Names of the folders, sorted.
        others: Number of other files by extension.
        figures: Names of figures of unmix.
    """

    images: list[str]
    folders: list[str]
    others: dict[str, int]
    figures: list[str]


class Manifest:
    """The contents of the folders within one folder.

    Args:
        root: The folder.
        cache: Folder of manifests; None to list every folder.
    """

    def __init__(self, root: str | os.PathLike[str], cache: Path | None) -> None:
        self.root = os.path.abspath(root)
        self.notes: list[str] = []
        self._known: dict[str, tuple[list[int], Content]] = {}
        self._seen: dict[str, tuple[list[int], Content]] = {}
        self._changed = False
        self._used = 0
        self.file: Path | None = None
        if cache is not None:
            words = [_VERSION, self.root, sorted(extensions())]
            name = hashlib.blake2b(repr(words).encode("utf-8", "surrogateescape"), digest_size=16)
            self.file = cache / "listings" / f"{name.hexdigest()}.json"
            self._read(self.file)

    def _read(self, file: Path) -> None:
        try:
            status = file.stat()
            owner = getattr(os, "geteuid", lambda: status.st_uid)()
            if status.st_uid not in (owner, 0):
                self.notes.append(f"note: {shown(file)} is another user's and is not read")
                return
            digest, _, body = read_regular(file).partition(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            self.notes.append(f"note: {shown(file)} cannot be read ({error.strerror})")
            return
        try:
            if digest != _digest(body):
                raise ValueError("its checksum is wrong")
            content = json.loads(body)
            if content["root"] != self.root:
                raise ValueError("it is of another folder")
            self._known = {
                path: (list(map(int, stamp)), Content(_names(images), _names(folders),
                                                      dict(others), _names(figures)))
                for path, (stamp, images, folders, others, figures) in content["folders"].items()
            }  # fmt: skip
        except (ValueError, KeyError, TypeError, RecursionError):
            self._changed = True
            self.notes.append(
                f"note: {shown(file)} is damaged; the folder is listed again, and it is rewritten"
            )

    def find(self, path: str, status: os.stat_result) -> Content | None:
        """The content of a folder, if it is known and the folder has not changed since."""
        found = self._known.get(path)
        if found is None or found[0] != _stamp(status):
            return None
        self._seen[path] = found
        self._used += len(found[1].images)
        return found[1]

    def add(self, path: str, status: os.stat_result, content: Content) -> None:
        """Keep the content of a folder that was listed.

        Args:
            path: The folder.
            status: Its status before it was listed.
            content: What it holds.
        """
        # A name that is added within the same tick of the clock would not change the time.
        if time.time_ns() - status.st_mtime_ns > _SETTLED:
            self._seen[path] = _stamp(status), content
            self._changed = True

    def save(self) -> None:
        """Write what is known, beside and renamed, if it is new and worth it."""
        names = sum(len(content.images) for _, content in self._seen.values())
        if self.file is None or names < _FEWEST:
            return
        if not self._changed:
            self.notes.append(
                f"note: {self._used:,} names are from {shown(self.file)}; --no-manifest lists "
                "every folder again"
            )
            return
        kept = {**{path: each for path, each in self._known.items() if path not in self._seen
                   and os.path.isdir(path)}, **self._seen}  # fmt: skip
        folders = {
            path: [stamp, content.images, content.folders, content.others, content.figures]
            for path, (stamp, content) in kept.items()
        }
        body = json.dumps({"root": self.root, "folders": folders}).encode()
        try:
            atomic_write(self.file, _digest(body) + b"\n" + body)
            self._prune(self.file.parent)
        except (UserError, OSError) as error:
            self.notes.append(f"note: the names of the files are not kept: {error}")

    @staticmethod
    def _prune(folder: Path) -> None:
        files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[_MOST_KEPT:]:
            file.unlink(missing_ok=True)


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_mtime_ns]


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()


def _names(names: Iterable[str]) -> list[str]:
    """Names of entries of a folder, which lead nowhere else.

    Raises:
        ValueError: if one does.
    """
    checked = list(names)
    if any("/" in name or name in ("", ".", "..") for name in checked):
        raise ValueError("a name is no entry of a folder")
    return checked
