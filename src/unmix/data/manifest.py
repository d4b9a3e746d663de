"""Names of the files of a large folder, kept in the cache, so that it is listed once.

A folder is read again if its device, inode or time of modification is another, which changes when
a name is added, removed or renamed in it. A file that is written again in its place is not seen
here: names are all that is kept, and the fingerprint of a run asks for sizes anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unmix.data.formats import extensions
from unmix.data.kept import file_name, is_settled, read_kept, stamp, write_kept
from unmix.names import shown

__all__ = ["Content", "Manifest"]

_VERSION = 1
_FEWEST = 10_000  # names; a smaller folder is listed as fast as a manifest is read


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
            self.file = cache / "listings" / f"{file_name(words)}.json"
            self._read(self.file)

    def _read(self, file: Path) -> None:
        try:
            body, note = read_kept(file)
            if body is None:
                self.notes += [] if note is None else [note]
                return
            content = json.loads(body)
            if content["root"] != self.root:
                raise ValueError("it is of another folder")
            self._known = {
                path: (list(map(int, then)), Content(_names(images), _names(folders),
                                                      dict(others), _names(figures)))
                for path, (then, images, folders, others, figures) in content["folders"].items()
            }  # fmt: skip
        except (ValueError, KeyError, TypeError, RecursionError):
            self._changed = True
            self.notes.append(
                f"note: {shown(file)} is damaged; the folder is listed again, and it is rewritten"
            )

    def find(self, path: str, status: os.stat_result) -> Content | None:
        """The content of a folder, if it is known and the folder has not changed since."""
        found = self._known.get(path)
        if found is None or found[0] != stamp(status):
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
        if is_settled(status):
            self._seen[path] = stamp(status), content
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
            path: [then, content.images, content.folders, content.others, content.figures]
            for path, (then, content) in kept.items()
        }
        body = json.dumps({"root": self.root, "folders": folders}).encode()
        note = write_kept(self.file, body)
        self.notes += [] if note is None else [note]


def _names(names: Iterable[str]) -> list[str]:
    """Names of entries of a folder, which lead nowhere else.

    Raises:
        ValueError: if one does.
    """
    checked = list(names)
    if any("/" in name or name in ("", ".", "..") for name in checked):
        raise ValueError("a name is no entry of a folder")
    return checked
