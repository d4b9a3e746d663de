"""Any folder of images as a data set: its splits, and whether its images have classes."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from unmix.data.decoding import Decoding
from unmix.data.deep import Range, may_be_deep
from unmix.data.imageset import RGB, FileImages, Skipped
from unmix.data.listing import Folder, Listing, list_classes, list_tree
from unmix.data.own_output import is_run_folder
from unmix.data.spec import file_images
from unmix.data.splits import Splits, find_splits
from unmix.data.statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    estimate_mean_std,
    estimate_range,
    even_indices,
)
from unmix.errors import UserError
from unmix.names import shown

__all__ = ["hold_out", "load_folder"]

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
) -> FileImages:
    """Read a split of a folder of images.

    1. *Splits.* Folders with the usual names are splits (see `unmix.data.splits.find_splits`).
    2. *Classes.* Images are labeled by folder when there are at least two class folders, images
       lie directly in them and nowhere else, and not every one holds a single image. Otherwise all
       images at any depth are taken, without classes. Folders without images are not classes.
    3. *Hold-out.* A class tree without a test split of its own gives a tenth of every class to the
       test split (see `hold_out`). Images without classes all go to the training split.
    4. *Range.* Of images of more than 8 bits, the least and the greatest value of up to 1,000
       training images become 0 and 255, where `decoding` has no range.
    5. *Colors.* Mean and standard deviation are ImageNet's if all classes are ImageNet's wnids,
       and are otherwise estimated from up to 1,000 training images.

    Hidden files, files with other extensions than those of images, and run folders and figures of
    unmix are passed over. What was understood as what, and what was passed over, is told by the
    training split's `notes`.

    Args:
        folder: The folder.
        split: `train`, `test`, or `pretrain`, which is `train` here.
        skipped: For files that turn out broken.
        decoding: How they are decoded.
        train_folder: The training images' folder within it, whatever its name; "." for the whole.
        test_folder: The folder to evaluate on, likewise.

    Raises:
        UserError: if the folder cannot be read or holds no images, if its splits are unclear, if
            test images have no classes or others than the training images, or if there is no test
            split.
    """
    if is_run_folder(folder):
        raise UserError(f"{folder}: this is a run folder of unmix, not a folder of images.")
    whole = Folder(folder)
    splits = find_splits(whole, train_folder, test_folder)
    train = list_tree(splits.train)
    held = None
    if splits.test is None and train.classes is not None:
        train, held = hold_out(train)
    looked = _looked_at(str(folder), train, decoding)
    mean, std = looked.mean, looked.std
    decoding = looked.decoding
    if split == "test":
        test = held if held is not None else _test(splits, train)
        return file_images(
            test, name=str(folder), split="test", mean=mean, std=std, skipped=skipped,
            decoding=decoding,
        )  # fmt: skip
    notes = (_understood(splits, train, held), *whole.passed.lines(), *looked.notes)
    return file_images(
        train, name=str(folder), split="train", mean=mean, std=std, skipped=skipped, notes=notes,
        decoding=decoding,
    )  # fmt: skip


def hold_out(listing: Listing) -> tuple[Listing, Listing]:
    """Split labeled images: of every class of n images, n / 10 (rounded, at least 1) are held out.

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


@dataclass(frozen=True)
class _LookedAt:
    """What a look at up to 1,000 training images says."""

    mean: RGB
    std: RGB
    decoding: Decoding
    notes: tuple[str, ...] = ()


def _looked_at(name: str, train: Listing, decoding: Decoding) -> _LookedAt:
    sample = tuple(train.paths[i] for i in even_indices(len(train.paths), _SAMPLE))
    stamps = tuple(map(_stamp, sample))
    found, note = decoding.range, None
    if any(map(may_be_deep, sample)):
        measured = _measure(name, sample, stamps, decoding)
        of = f"{len(sample):,} of {len(train.paths):,}" if len(sample) < len(train.paths) else "the"
        if measured is not None:
            found = decoding.range or measured
            low, high = (f"{value:,.6g}" for value in found)
            why = f"the range of {of} training images"
            if decoding.range is not None:
                why = (
                    f"as was given; {of} training images have {measured[0]:,g} to {measured[1]:,g}"
                )
            note = f"more than 8 bits: values from {low} to {high} become black to white ({why})"
            if found[0] == found[1]:
                raise UserError(
                    f"--data: all pixels of {of} training images of {name} have one value, {low}; "
                    "there is nothing to learn from them."
                )
            decoding = replace(decoding, range=found)
    if found is not None and note is None:
        note = "--range, --bit_depth: no image that was looked at has more than 8 bits to scale"
    notes = () if note is None else (note,)
    if train.classes is not None and all(map(_WNID.fullmatch, train.classes)):
        return _LookedAt(IMAGENET_MEAN, IMAGENET_STD, decoding, notes)
    return _LookedAt(*_estimate(name, sample, stamps, decoding), decoding, notes)


def _understood(splits: Splits, train: Listing, held: Listing | None) -> str:
    """What was understood as what, in a line: `split: train 90 images in 3 classes from train/`."""
    place = splits.name(splits.train)
    parts = [
        f"train {len(train.paths):,} images {_classes(train)}{f' from {place}' if place else ''}"
    ]
    if held is not None:
        parts.append(f"test {len(held.paths):,} held out of these (a tenth of every class)")
    elif splits.test is not None and train.classes is not None:
        try:
            count = f"{len(_test(splits, train).paths):,}"
        except UserError:
            count = "?"  # told where the test images are needed
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


def _classes(listing: Listing) -> str:
    if listing.classes is None:
        return "without classes" + (f" ({listing.why})" if listing.why else "")
    count = len(listing.classes)
    named = ", ".join(map(shown, listing.classes)) if count <= _CLASSES_NAMED else ""
    return f"in {count:,} classes" + (f" ({named})" if named else "")


def _test(splits: Splits, train: Listing) -> Listing:
    """List the test images, labeled as the training images are.

    Raises:
        UserError: if there are none, or they have no classes or others than the training images.
    """
    if splits.test is None:
        raise UserError(
            f"{splits.root.path}: its images have no classes and there is no val/ or test/ in it, "
            "so it has no test split; put the images of each class into a folder of their own."
        )
    whole = list_tree(splits.test)
    if train.classes is None:
        return Listing(whole.paths)
    # A test split may be small: one class, or one image a class, is no reason to lose the labels.
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


# Cached, for the test split asks for the same training images; `stamps` tell if they changed.
# Broken files are noted, or end a strict run, when they are read to be used.
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
