"""Listing the image files of a folder, without opening them."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from unmix.data.formats import EXTENSIONS, extensions
from unmix.data.manifest import Content, Manifest
from unmix.data.outputs import CONFIG, is_own_figure, is_run_folder
from unmix.data.passed import Passed
from unmix.errors import UserError
from unmix.files import kind_of
from unmix.names import shown

__all__ = [
    "EXTENSIONS",
    "Folder",
    "Listing",
    "folders_in",
    "images_in",
    "list_classes",
    "list_tree",
]


# Up to this number of PNGs in a folder, each is opened to see whether it is a figure of unmix. A
# folder of millions of PNGs is a data set, and the decoder checks their first bytes as well.
_MOST_OPENED = 1000
_DEEPEST_WRAPPER = 3


@dataclass(frozen=True)
class Listing:
    """Image files, and their classes if they have any.

    Args:
        paths: The files, sorted within each class.
        labels: A class index for each; None when there are no classes.
        classes: The classes' names, sorted; None when there are no classes.
        why: Why there are no classes although there are folders, in a few words.
    """

    paths: list[str]
    labels: list[int] | None = None
    classes: tuple[str, ...] | None = None
    why: str | None = None


class Folder:
    """A folder, whose content is read once, when it is first used.

    Hidden files and folders are ignored, links are followed, except to a folder above, and a walk
    visits each folder once. Run folders and figures of unmix are ignored, and names that are not
    regular files, such as FIFOs.

    Args:
        path: The folder.
        passed: Collects what is ignored.
        above: Device and inode of the folders above, against loops.
        manifest: Names that are known of an earlier listing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        passed: Passed | None = None,
        above: frozenset[tuple[int, int]] = frozenset(),
        manifest: Manifest | None = None,
    ) -> None:
        self.path, self.above, self.manifest = os.fspath(path), above, manifest
        self.passed = Passed() if passed is None else passed

    @property
    def name(self) -> str:
        """Its own name."""
        return os.path.basename(os.path.normpath(self.path))

    @cached_property
    def _status(self) -> os.stat_result:
        try:
            return os.stat(self.path)
        except OSError as error:
            raise self._unreadable(error) from error

    @property
    def _identity(self) -> tuple[int, int]:
        """Device and inode."""
        return self._status.st_dev, self._status.st_ino

    def _unreadable(self, error: OSError) -> UserError:
        reason = error.strerror or type(error).__name__
        return UserError(f"{self.path}: this folder cannot be read ({reason}).")

    @cached_property
    def _found(self) -> tuple[list[str], dict[str, Folder]]:
        if self._identity in self.above:
            return [], {}
        known = None if self.manifest is None else self.manifest.find(self.path, self._status)
        if known is not None:
            self.passed.others += Counter(known.others)
            self.passed.figures += [os.path.join(self.path, name) for name in known.figures]
            return known.images, self._children(known.folders)
        images: list[str] = []
        folders: list[str] = []
        others: Counter[str] = Counter()
        # What a link leads to, and whether a folder is a run's, may change within the same time.
        wanted, config, fixed = extensions(), False, True
        inside = self.above | {self._identity}
        count = 0
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    count += 1
                    extension = os.path.splitext(name)[1][1:].lower()
                    kind = _kind(entry)
                    fixed = fixed and (kind is None or not entry.is_symlink())
                    if kind == _FOLDER and entry.is_symlink() and _identity(entry) in inside:
                        self.passed.loops.append(entry.path)
                    elif kind == _FOLDER:
                        folders.append(name)
                    elif extension in wanted and kind is not None:
                        self.passed.special.append((entry.path, kind))
                    elif extension in wanted:
                        images.append(name)
                    elif entry.is_symlink() and not os.path.exists(entry.path):
                        self.passed.nowhere.append(entry.path)
                    else:
                        others[extension] += 1
                        config = config or name == CONFIG
        except OSError as error:
            raise self._unreadable(error) from error
        if config and is_run_folder(self.path):
            self.passed.runs.append(self.path)
            return [], {}
        self.passed.others += others
        special = len(images) + len(folders) + others.total() != count
        kept = self._without_figures(sorted(images))
        if self.manifest is not None and fixed and not config and not special:
            figures = sorted({*images} - {*kept})
            content = Content(kept, sorted(folders), dict(others), figures)
            self.manifest.add(self.path, self._status, content)
        return kept, self._children(sorted(folders))

    def _children(self, names: list[str]) -> dict[str, Folder]:
        inside = self.above | {self._identity}
        return {
            name: Folder(os.path.join(self.path, name), self.passed, inside, self.manifest)
            for name in names
        }

    def _without_figures(self, images: list[str]) -> list[str]:
        pngs = [name for name in images if name.lower().endswith(".png")]
        if not 0 < len(pngs) <= _MOST_OPENED:
            return images
        paths = {name: os.path.join(self.path, name) for name in pngs}
        ours = {name for name, path in paths.items() if is_own_figure(path)}
        self.passed.figures += [paths[name] for name in sorted(ours)]
        return [name for name in images if name not in ours]

    @property
    def images(self) -> list[str]:
        """Names of the image files directly in it, sorted."""
        return self._found[0]

    @property
    def folders(self) -> dict[str, Folder]:
        """The folders in it by name, sorted."""
        return self._found[1]

    @cached_property
    def holding(self) -> dict[str, Folder]:
        """Names of the folders with images at any depth."""
        return {name: folder for name, folder in self.folders.items() if folder.holds_images}

    @cached_property
    def holds_images(self) -> bool:
        """Whether there are images in it at any depth."""
        known = self.passed.holding
        if self._identity in self.above:
            return False
        if self._identity not in known:
            known[self._identity] = False  # until it is known: a link to here holds nothing more
            known[self._identity] = bool(self.images) or any(
                folder.holds_images for folder in self.folders.values()
            )
        return known[self._identity]

    def walk(self, visited: set[tuple[int, int]] | None = None) -> Iterator[str]:
        """The paths of the images in it at any depth, each folder once, in its own place if it can.

        Args:
            visited: Folders whose images are not wanted; those of this walk are added.
        """
        visited = set() if visited is None else visited
        linked: list[Folder] = []
        yield from self._walk_own(visited, linked)
        while linked:
            folder = linked.pop(0)
            if folder._identity in visited:
                if folder._identity not in folder.above:
                    self.passed.again[folder.path] = None
            else:
                yield from folder._walk_own(visited, linked)

    def _walk_own(self, visited: set[tuple[int, int]], linked: list[Folder]) -> Iterator[str]:
        """Images of this folder and of those in it that are not links, which are collected."""
        visited.add(self._identity)
        for name in self.images:
            yield os.path.join(self.path, name)
        for folder in self.folders.values():
            if os.path.islink(folder.path):
                linked.append(folder)
            elif folder._identity not in visited:
                yield from folder._walk_own(visited, linked)

    def without(self, names: Iterable[str]) -> Folder:
        """The same folder without some of its folders."""
        rest = Folder(self.path, self.passed, self.above, self.manifest)
        left_out = set(names)
        children = {name: folder for name, folder in self.folders.items() if name not in left_out}
        rest.__dict__["_found"] = self.images, children
        holds = bool(self.images) or any(folder.holds_images for folder in children.values())
        rest.__dict__["holds_images"] = holds
        return rest

    def without_inner(self, place: Sequence[str]) -> Folder:
        """The same folder without one at any depth in it.

        Args:
            place: The names from here to that folder.
        """
        name, *deeper = place
        rest = self.without([name])
        if deeper and name in self.folders:
            inner = self.folders[name].without_inner(deeper)
            children = {key: inner if key == name else each for key, each in self.folders.items()}
            rest.__dict__["_found"] = self.images, children
            rest.__dict__["holds_images"] = rest.holds_images or inner.holds_images
        return rest

    def distinct(self) -> Folder:
        """The same folder without links to folders that are in it, which are two names of one."""
        seen: set[tuple[int, int]] = set()
        again = []
        for folder in sorted(self.holding.values(), key=lambda each: os.path.islink(each.path)):
            if folder._identity in seen:
                again.append(folder)
            seen.add(folder._identity)
        self.passed.again.update(dict.fromkeys(folder.path for folder in again))
        return self.without(folder.name for folder in again) if again else self

    def unwrapped(self) -> Folder:
        """The folder within it that has all images, if it only wraps that.

        At most three levels, none of which has images beside the next folder.
        """
        inner = self
        for _ in range(_DEEPEST_WRAPPER):
            if inner.images or len(inner.holding) != 1:
                break
            (inner,) = inner.holding.values()
        return inner


_FOLDER = kind_of(stat.S_IFDIR)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """What an entry is that is not a regular file; None for one, and for a link to nothing.

    A link that cannot be followed is told when it is read, as a broken image.
    """
    try:
        if entry.is_file():
            return None
        return _FOLDER if entry.is_dir() else kind_of(entry.stat().st_mode)
    except OSError:
        return None


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    status = entry.stat()
    return status.st_dev, status.st_ino


def folders_in(folder: Path | str) -> list[str]:
    """List the names of the folders in a folder, sorted, without hidden ones."""
    return list(Folder(folder).folders)


def images_in(folder: Path | str) -> list[str]:
    """List the names of the image files directly in a folder, sorted, without hidden ones."""
    return Folder(folder).images


def list_classes(folder: Path | str | Folder, classes: Iterable[str]) -> Listing:
    """List the images of the class folders `classes` in `folder`, labeled in sorted order."""
    whole = folder if isinstance(folder, Folder) else Folder(folder)
    names = tuple(sorted(classes))
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        place = whole.folders.get(name) or Folder(os.path.join(whole.path, name))
        paths += [os.path.join(place.path, image) for image in place.images]
        labels += [label] * (len(paths) - len(labels))
    return Listing(paths, labels, names)


def list_tree(folder: Path | str | Folder) -> Listing:
    """List the images of a folder, with classes if it is a class tree.

    In a class tree all images are directly in class folders, of which there are at least two, and
    some class has at least two images; otherwise the images have no classes. Folders without images
    are not classes, nor are links to other classes. Wrapper folders around all of it are skipped.

    Raises:
        UserError: if the folder cannot be read or has no image at any depth.
    """
    whole = folder if isinstance(folder, Folder) else Folder(folder)
    if is_run_folder(whole.path):
        raise UserError(f"{whole.path}: this is a run folder of unmix, not a folder of images.")
    if not whole.holds_images:
        known = ", ".join(sorted(extensions()))
        rest = "".join(f"; {line}" for line in whole.passed.lines())
        raise UserError(f"{whole.path}: this folder holds no images ({known}){rest}.")
    inner = whole.unwrapped()
    while (once := inner.distinct()) is not inner:
        inner = once.unwrapped()
    why = _why_no_classes(inner)
    if why == "":
        return list_classes(inner, inner.holding)
    return Listing(sorted(whole.walk()), why=why)


def _why_no_classes(folder: Folder) -> str | None:
    """Empty for a class tree; None if there are no folders that could be classes."""
    classes = folder.holding
    if len(classes) < 2:
        return None
    if folder.images:
        more = f" and {len(folder.images) - 1:,} more" if len(folder.images) > 1 else ""
        verb = "lie" if more else "lies"
        return (
            f"{shown(folder.images[0])}{more} {verb} beside the folders; if every image were in "
            "one of them, they would be the classes"
        )
    # A link from one class to another is not a deeper folder.
    places = {each._identity for each in classes.values()}
    for each in classes.values():
        linked = [inner for inner in each.folders.values() if inner._identity in places]
        each.passed.again.update(dict.fromkeys(inner.path for inner in linked))
    deeper = next(
        (path for each in classes.values() for inner in each.folders.values()
         if inner._identity not in places for path in inner.walk(set(places))), None
    )  # fmt: skip
    if deeper is not None:
        place = shown(os.path.relpath(deeper, folder.path))
        return (
            f"{place} is not directly in a class folder; if every image were, the folders would "
            "be the classes"
        )
    if all(len(each.images) == 1 for each in classes.values()):
        return "every folder has a single image, so folders are not classes"
    return ""
