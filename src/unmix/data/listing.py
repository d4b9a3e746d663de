"""Which image files a folder holds: names only, no file is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unmix.errors import UserError

__all__ = ["EXTENSIONS", "Listing", "folders_in", "images_in", "list_classes", "list_tree"]

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"})


@dataclass(frozen=True)
class Listing:
    """Image files, and their classes if they have any.

    Args:
        paths: The files, sorted within each class.
        labels: A class index for each; None when there are no classes.
        classes: The classes' names, sorted; None when there are no classes.
    """

    paths: list[str]
    labels: list[int] | None = None
    classes: tuple[str, ...] | None = None


def folders_in(folder: Path | str) -> list[str]:
    """List the names of the folders in a folder, sorted, without hidden ones."""
    return _scan(folder)[1]


def images_in(folder: Path | str) -> list[str]:
    """List the names of the image files directly in a folder, sorted, without hidden ones."""
    return _scan(folder)[0]


def list_classes(folder: Path | str, classes: Iterable[str]) -> Listing:
    """List the images of the class folders `classes` in `folder`, labelled in sorted order."""
    names = tuple(sorted(classes))
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        place = os.path.join(folder, name)
        images = [os.path.join(place, image) for image in images_in(place)]
        paths += images
        labels += [label] * len(images)
    return Listing(paths, labels, names)


def list_tree(folder: Path | str) -> Listing:
    """List the images of a folder, with classes if it is a class tree.

    A class tree has no image beside its class folders, at least two class folders with images, no
    image deeper than directly in a class folder, and a class with at least two images: otherwise
    the images have no classes. Folders without images are not classes.

    Raises:
        UserError: if the folder cannot be read or holds no image at any depth.
    """
    images, folders = _scan(folder)
    flat = not images and not any(
        _walk(os.path.join(folder, name, deeper), set())
        for name in folders
        for deeper in folders_in(os.path.join(folder, name))
    )
    if flat:
        listing = list_classes(folder, folders)
        assert listing.labels is not None
        present = set(listing.labels)
        if 1 < len(present) < len(listing.paths):
            return list_classes(folder, [folders[label] for label in present])
    paths = sorted(_walk(folder, set()))
    if not paths:
        known = ", ".join(sorted(EXTENSIONS))
        raise UserError(f"{folder}: this folder holds no images ({known}).")
    return Listing(paths)


def _walk(folder: Path | str, seen: set[tuple[int, int]]) -> list[str]:
    """List the images of a folder at any depth; `seen` are the folders above, against loops."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return []
    inside = seen | {(status.st_dev, status.st_ino)}
    images, folders = _scan(folder)
    paths = [os.path.join(folder, name) for name in images]
    for name in folders:
        paths += _walk(os.path.join(folder, name), inside)
    return paths


def _scan(folder: Path | str) -> tuple[list[str], list[str]]:
    images, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(name)
                elif os.path.splitext(name)[1][1:].lower() in EXTENSIONS:
                    images.append(name)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{folder}: this folder cannot be read ({reason}).") from error
    return sorted(images), sorted(folders)
