"""Any folder of images as a data set: its splits, and whether its images have classes."""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

from unmix.data.imageset import RGB, FileImages
from unmix.data.listing import Listing, folders_in, list_classes, list_tree
from unmix.data.skipped import Skipped
from unmix.data.spec import file_images
from unmix.data.statistics import IMAGENET_MEAN, IMAGENET_STD, estimate_mean_std, spread
from unmix.errors import UserError

__all__ = ["hold_out", "load_folder"]

_TEST_FOLDERS = ("val", "test")
_WNID = re.compile(r"n\d{8}")
_SAMPLE = 1000


def load_folder(folder: Path, split: str, skipped: Skipped) -> FileImages:
    """Read a split of a folder of images.

    1. *Splits.* A folder with a `train/` is a tree of splits: training images from `train/`, test
       images from `val/`, or from `test/` where there is no `val/`. (If `train/` itself holds no
       folders and there are others beside it than `val/` and `test/`, it is taken for a class.)
    2. *Classes.* Images are labelled by folder when there are at least two class folders, images
       lie directly in them and nowhere else, and not every one holds a single image. Otherwise all
       images at any depth are taken, without classes. Folders without images are not classes.
    3. *Hold-out.* A class tree without a test split of its own gives a tenth of every class to the
       test split (see `hold_out`). Images without classes all go to the training split.
    4. *Colours.* Mean and standard deviation are ImageNet's if all classes are ImageNet's wnids,
       and are otherwise estimated from up to 1,000 training images.

    Hidden files, and files with other extensions than those of images, are passed over.

    Args:
        folder: The folder.
        split: `train`, `test`, or `pretrain`, which is `train` here.
        skipped: For files that turn out broken.

    Raises:
        UserError: if the folder cannot be read or holds no images, if test images have no classes
            or others than the training images, or if there is no test split.
    """
    train, test = _splits(folder, want_test=split == "test")
    if train.classes is not None and all(map(_WNID.fullmatch, train.classes)):
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        sample = tuple(train.paths[i] for i in spread(len(train.paths), _SAMPLE))
        mean, std = _estimate(str(folder), sample, tuple(map(_stamp, sample)))
    if split == "test":
        assert test is not None
        return file_images(
            test, name=str(folder), split="test", mean=mean, std=std, skipped=skipped
        )
    return file_images(train, name=str(folder), split="train", mean=mean, std=std, skipped=skipped)


def hold_out(listing: Listing) -> tuple[Listing, Listing]:
    """Split labelled images: of every class of n images, n / 10 (rounded, at least 1) are held out.

    They are those whose `class/file` name has the smallest hash (BLAKE2b), so that the choice is
    the same on every machine and hardly changes when images are added. A class of one image keeps
    it for training.

    Returns:
        The training images and the held-out images, in their former order.
    """
    assert listing.labels is not None
    assert listing.classes is not None
    members: list[list[int]] = [[] for _ in listing.classes]
    for i, label in enumerate(listing.labels):
        members[label].append(i)
    held: set[int] = set()
    for name, indices in zip(listing.classes, members, strict=True):
        if len(indices) > 1:
            by_hash = sorted(indices, key=lambda i: _hash(name, listing.paths[i]))
            held.update(by_hash[: max(1, (len(indices) + 5) // 10)])
    kept = [i for i in range(len(listing.paths)) if i not in held]
    return _pick(listing, kept), _pick(listing, sorted(held))


def _hash(name: str, path: str) -> bytes:
    place = os.fsencode(f"{name}/{os.path.basename(path)}")
    return hashlib.blake2b(place, digest_size=8).digest()


def _pick(listing: Listing, indices: list[int]) -> Listing:
    assert listing.labels is not None
    labels = [listing.labels[i] for i in indices]
    return Listing([listing.paths[i] for i in indices], labels, listing.classes)


def _splits(folder: Path, want_test: bool) -> tuple[Listing, Listing | None]:
    """List the training images and, if wanted, the test images."""
    folders = folders_in(folder)
    own_test = None
    if _has_splits(folder, folders):
        train = list_tree(folder / "train")
        own_test = next((folder / name for name in _TEST_FOLDERS if name in folders), None)
    else:
        train = list_tree(folder)
    if own_test is None and train.classes is not None:
        return hold_out(train)
    if not want_test:
        return train, None
    if own_test is None:
        raise UserError(
            f"{folder}: its images have no classes and there is no val/ or test/ in it, so it has "
            f"no test split; put the images of each class into a folder of their own."
        )
    return train, _own_test(own_test, train)


def _has_splits(folder: Path, folders: list[str]) -> bool:
    if "train" not in folders:
        return False
    others = set(folders) - {"train", *_TEST_FOLDERS}
    return not others or bool(folders_in(folder / "train"))


def _own_test(folder: Path, train: Listing) -> Listing:
    """List the test images in `folder`, labelled as the training images are."""
    test = list_tree(folder)
    if train.classes is None:
        return Listing(test.paths)
    # A test split may be small: one class, or one image a class, is no reason to lose the labels.
    names = [name for name in folders_in(folder) if name in train.classes]
    by_class = list_classes(folder, names)
    if len(by_class.paths) != len(test.paths):
        strange = sorted(set(folders_in(folder)) - set(train.classes))
        what = f"class {strange[0]!r} is not in train/" if strange else "images without a class"
        raise UserError(
            f"{folder}: {what}; its images must lie in folders named as those in train/. To hold "
            f"out a tenth of every class instead, give {folder.parent / 'train'}."
        )
    assert by_class.labels is not None
    places = [train.classes.index(name) for name in sorted(names)]
    return Listing(by_class.paths, [places[label] for label in by_class.labels], train.classes)


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=16)
def _estimate(
    name: str, paths: tuple[str, ...], stamps: tuple[tuple[int, int], ...]
) -> tuple[RGB, RGB]:
    # Cached, for the test split asks for the same training images; `stamps` tell if they changed.
    # Broken files are noted, or end a strict run, when they are read to be used.
    images = file_images(
        Listing(list(paths)),
        name=name,
        split="train",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        skipped=Skipped(),
    )
    return estimate_mean_std(images, limit=_SAMPLE)
