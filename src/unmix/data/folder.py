"""A folder of images as a data set: its splits and classes."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from unmix.data.bit_depth import Range, may_be_deep
from unmix.data.dataset import file_images
from unmix.data.decoding import Decoding
from unmix.data.imageset import RGB, FileImages, Skipped
from unmix.data.listing import Folder, Listing, list_classes, list_tree
from unmix.data.manifest import Manifest
from unmix.data.outputs import is_run_folder
from unmix.data.splits import Splits, find_splits
from unmix.data.statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    estimate_mean_std,
    estimate_range,
    even_indices,
    range_note,
)
from unmix.errors import UserError
from unmix.names import shown

__all__ = ["NOTHING_TO_SCALE", "hold_out", "in_classes", "load_folder", "looked_at"]

NOTHING_TO_SCALE = "--range, --bit_depth: none of the sampled images has more than 8 bits to scale"
"""The note where a range was given in vain."""

_WNID = re.compile(r"n\d{8}")
_SAMPLE = 1000
_CLASSES_NAMED = 5


def load_folder(
    folder: Path,
    split: str,
    skipped: Skipped,
    decoding: Decoding,
    *,
    train_folder: str | None = None,
    test_folder: str | None = None,
    cache: Path | None = None,
) -> FileImages:
    """Read a split of a folder of images.

    1. *Splits.* Folders with the usual names are splits (see `unmix.data.splits.find_splits`).
    2. *Classes.* Images are labeled by folder if there are at least two class folders, all images
       are directly in them, and not every one has a single image. Otherwise all images at any depth
       are used, without classes. Folders without images are not classes.
    3. *Hold-out.* If a class tree has no test split, a tenth of every class is held out for it (see
       `hold_out`). Images without classes all belong to the training split.
    4. *Range.* For images of more than 8 bits, the minimum and maximum of up to 1,000 training
       images become 0 and 255, unless `decoding` has a range.
    5. *Colors.* Mean and standard deviation are ImageNet's if all classes are ImageNet's wnids,
       and are otherwise estimated from up to 1,000 training images.

    Hidden files, files without an extension of images, and run folders and figures of unmix are
    ignored. The training split's `notes` say how the folder was interpreted and what was ignored.

    Args:
        folder: The folder.
        split: `train`, `test`, or `pretrain`, which is `train` here.
        skipped: Collects broken files.
        decoding: How files are decoded.
        train_folder: Folder of the training images within it; "." for the whole.
        test_folder: The folder to evaluate on, likewise.
        cache: Where names of large folders are kept; None to list every folder.

    Raises:
        UserError: if the folder cannot be read or has no images, if its splits are ambiguous, if
            test images have no classes or other ones than the training images, or if there is no
            test split.
    """
    if is_run_folder(folder):
        raise UserError(f"{folder}: this is a run folder of unmix, not a folder of images.")
    whole = Folder(folder, manifest=Manifest(folder, cache))
    splits = find_splits(whole, train_folder, test_folder)
    train = list_tree(splits.train)
    held = None
    if splits.test is None and train.classes is not None:
        train, held = hold_out(train)
    looked = looked_at(str(folder), train, decoding)
    mean, std = looked.mean, looked.std
    decoding = looked.decoding
    if split == "test":
        test = held if held is not None else _test(splits, train)
        return file_images(
            test, name=str(folder), split="test", mean=mean, std=std, skipped=skipped,
            decoding=decoding,
        )  # fmt: skip
    notes = (_understood(splits, train, held), *whole.passed.lines(), *looked.notes)
    if whole.manifest is not None:
        whole.manifest.save()
        notes += tuple(whole.manifest.notes)
    return file_images(
        train, name=str(folder), split="train", mean=mean, std=std, skipped=skipped, notes=notes,
        decoding=decoding,
    )  # fmt: skip


def hold_out(listing: Listing) -> tuple[Listing, Listing]:
    """Split labeled images: n / 10 of every class of n images (rounded, at least 1) are held out.

    They are those with the smallest hash (BLAKE2b) of `class/file`, so that the choice is the same
    on every machine and hardly changes when images are added. A class of one image is not split.
    An image that is listed several times, as a list may have it, is held out as often or not.

    Returns:
        The training images and the held-out images, in the original order.
    """
    assert listing.labels is not None
    assert listing.classes is not None
    members: list[list[int]] = [[] for _ in listing.classes]
    for i, label in enumerate(listing.labels):
        members[label].append(i)
    paths, held = listing.paths, set[str]()
    for name, indices in zip(listing.classes, members, strict=True):
        if any(paths[i] != paths[indices[0]] for i in indices):
            hashes = _hashes(name, [paths[i] for i in indices])
            by_hash = sorted(range(len(indices)), key=hashes.__getitem__)
            held |= {paths[indices[k]] for k in by_hash[: max(1, (len(indices) + 5) // 10)]}
    kept = [i for i, path in enumerate(paths) if path not in held]
    return _pick(listing, kept), _pick(listing, [i for i, p in enumerate(paths) if p in held])


def _hashes(name: str, paths: list[str]) -> list[bytes]:
    start, blake2b = os.fsencode(f"{name}/"), hashlib.blake2b
    files = os.fsencode("/".join([os.path.basename(path) for path in paths])).split(b"/")
    return [blake2b(start + file, digest_size=8).digest() for file in files]


def _pick(listing: Listing, indices: list[int]) -> Listing:
    assert listing.labels is not None
    labels = [listing.labels[i] for i in indices]
    return Listing([listing.paths[i] for i in indices], labels, listing.classes)


@dataclass(frozen=True)
class _LookedAt:
    """Statistics of up to 1,000 training images."""

    mean: RGB
    std: RGB
    decoding: Decoding
    notes: tuple[str, ...] = ()


def looked_at(name: str, train: Listing, decoding: Decoding) -> _LookedAt:
    """Statistics of up to 1,000 of the training images.

    Args:
        name: Name of the data, for messages.
        train: The training images.
        decoding: How they are decoded; with a range if one is given.

    Raises:
        UserError: if none can be read, or all pixels of more than 8 bits have one value.
    """
    sample = tuple(train.paths[i] for i in even_indices(len(train.paths), _SAMPLE))
    stamps = tuple(map(_stamp, sample))
    limits, note = decoding.range, None
    if any(map(may_be_deep, sample)):
        measured = _measure(name, sample, stamps, decoding)
        if measured is not None:
            note = range_note(name, measured, decoding.range, len(sample), len(train.paths))
            limits = decoding.range or measured
            decoding = replace(decoding, range=limits)
    if limits is not None and note is None:
        note = NOTHING_TO_SCALE
    notes = () if note is None else (note,)
    if train.classes is not None and all(map(_WNID.fullmatch, train.classes)):
        return _LookedAt(IMAGENET_MEAN, IMAGENET_STD, decoding, notes)
    return _LookedAt(*_estimate(name, sample, stamps, decoding), decoding, notes)


def _understood(splits: Splits, train: Listing, held: Listing | None) -> str:
    """How the folder was interpreted: `split: train 90 images in 3 classes from train/`."""
    place = splits.name(splits.train)
    parts = [
        f"train {len(train.paths):,} images {in_classes(train)}{f' from {place}' if place else ''}"
    ]
    if held is not None:
        parts.append(f"test {len(held.paths):,} held out of these (a tenth of every class)")
    elif splits.test is not None and train.classes is not None:
        try:
            count = f"{len(_test(splits, train).paths):,}"
        except UserError:
            count = "?"  # reported when the test images are needed
        parts.append(f"evaluation on {count} from {splits.name(splits.test)}")
    line = f"split: {', '.join(parts)}"
    unused = [f"{shown(name)}/" for name in splits.aside[:_CLASSES_NAMED]]
    if splits.test is not None and train.classes is None:
        unused.insert(0, splits.name(splits.test))
    if unused:
        takes = splits.others and train.classes is not None
        flag = f" (--test_folder {shown(splits.others[0])} evaluates on it)" if takes else ""
        line += f"; not used: {', '.join(unused)}{flag}"
    return line


def in_classes(listing: Listing) -> str:
    """The classes of a listing in words: `in 2 classes (cat, dog)`."""
    if listing.classes is None:
        return "without classes" + (f" ({listing.why})" if listing.why else "")
    count = len(listing.classes)
    named = ", ".join(map(shown, listing.classes)) if count <= _CLASSES_NAMED else ""
    return f"in {count:,} classes" + (f" ({named})" if named else "")


def _test(splits: Splits, train: Listing) -> Listing:
    """List the test images, with the labels of the training images.

    Raises:
        UserError: if there are none, or they have no classes or other ones than the
            training images.
    """
    if splits.test is None:
        raise UserError(
            f"{splits.root.path}: its images have no classes and there is no val/ or test/ in it, "
            "so it has no test split; put the images of each class into a folder of their own."
        )
    whole = list_tree(splits.test)
    if train.classes is None:
        return Listing(whole.paths)
    # A test split may be small: it is labeled even with one class, or one image per class.
    folder = splits.test
    while not set(folder.holding) & set(train.classes) and folder.unwrapped() is not folder:
        (folder,) = folder.holding.values()
    names = [name for name in folder.holding if name in train.classes]
    by_class = list_classes(folder, names)
    place = splits.name(splits.train)
    if len(by_class.paths) != len(whole.paths):
        strange = sorted(set(folder.holding) - set(train.classes))
        what = (
            f"class {shown(strange[0])!r} is not in {place}"
            if strange
            else ("images without a class")
        )
        raise UserError(
            f"{splits.test.path}: {what}; its images must lie in folders named as those in "
            f"{place or 'the training split'}. To hold out a tenth of every class instead, give "
            f"{splits.train.path}."
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


# Cached, since the test split needs the same statistics; `stamps` detect changes. Broken files are
# reported when they are read for training.
@lru_cache(maxsize=16)
def _estimate(
    name: str, paths: tuple[str, ...], stamps: tuple[tuple[int, int], ...], decoding: Decoding
) -> tuple[RGB, RGB]:
    return estimate_mean_std(_sample(name, paths, decoding), limit=_SAMPLE)


@lru_cache(maxsize=16)
def _measure(
    name: str, paths: tuple[str, ...], stamps: tuple[tuple[int, int], ...], decoding: Decoding
) -> Range | None:
    return estimate_range(_sample(name, paths, decoding), limit=_SAMPLE)[0]


def _sample(name: str, paths: tuple[str, ...], decoding: Decoding) -> FileImages:
    return file_images(
        Listing(list(paths)), name=name, split="train", mean=IMAGENET_MEAN, std=IMAGENET_STD,
        skipped=Skipped(), decoding=decoding,
    )  # fmt: skip
