"""Finding the splits of a folder by the usual names."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unmix.data.listing import Folder
from unmix.errors import UserError
from unmix.names import in_words, shown

__all__ = ["Splits", "find_splits", "split_names"]

_ROLES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_ROLE = re.compile(
    rf"(?:(?P<before>.+)[-_. ])?(?P<role>{'|'.join(_ROLES)})(?:[-_. ]?(?P<year>(?:19|20)\d\d))?"
    r"(?:[-_. ](?P<after>.+))?",
    re.IGNORECASE,
)
_IMAGE_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages"})
_SETTLE = (
    "--train_folder and --test_folder (relative to --data) settle it; --train_folder . takes every "
    "folder for a class"
)
_DEEPEST = 3


@dataclass(frozen=True)
class Splits:
    """The splits of a folder.

    Attributes:
        train: Folder of the training images.
        test: Folder of the images to evaluate on; None if there is none.
        root: The folder given as `--data`.
        aside: Paths within it of other folders with images, which are not used.
        others: Those of them that are named as splits, which `--test_folder` could use.
    """

    train: Folder
    test: Folder | None
    root: Folder
    aside: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def name(self, folder: Folder) -> str:
        """A folder's path within the root, for messages: `valid/`."""
        place = os.path.relpath(folder.path, self.root.path)
        return "" if place == "." else f"{shown(place)}/"


@dataclass(frozen=True)
class _Name:
    role: str
    year: str
    rest: tuple[str, str]


def split_names(
    names: Sequence[str], place: str, train: str | None = None, test: str | None = None
) -> tuple[str, str | None]:
    """Choose the splits of a table by their names, as `find_splits` does those of a folder.

    Evaluation is on `validation` if there is one, else on `test`. A single split is for training.

    Args:
        names: The splits.
        place: The table, for messages.
        train: Name of the training split, if it is given.
        test: Name of the split to evaluate on, if it is given.

    Returns:
        The names of the training split and of the split to evaluate on, None if there is none.

    Raises:
        UserError: if a given one does not exist, or the names are ambiguous.
    """
    has = f"{place} has {', '.join(map(shown, names))}"
    for flag, given in (("train_folder", train), ("test_folder", test)):
        if given is not None and given not in names:
            near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"there is no split {given!r}; {has}.{hint}", parameter=flag)
    if train is not None and train == test:
        raise UserError(f"{test} is the training split too.", parameter="test_folder")
    by_role: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in names:
        match = _ROLE.fullmatch(name)
        plain = match is not None and not match["before"] and not match["after"]
        if match is not None and plain and name not in (train, test):
            by_role[_ROLES[match["role"].lower()]].append(name)
    rest = [name for name in names if name != test]
    if train is None:
        found = by_role["train"] or (rest if len(rest) == 1 else [])
        if len(found) != 1:
            why = "any of them" if found else "none of them is called train, and each"
            raise UserError(
                f"{has}: {why} can be the training images; say which.", parameter="train_folder"
            )
        train = found[0]
    for role in () if test is not None else ("val", "test"):
        found = [name for name in by_role[role] if name != train]
        if len(found) > 1:
            raise UserError(
                f"{has}: {in_words(found)} can be the images to evaluate on; say which.",
                parameter="test_folder",
            )
        if found:
            return train, found[0]
    return train, test


def find_splits(
    root: Folder, train_folder: str | None = None, test_folder: str | None = None
) -> Splits:
    """Find the splits of a data set by the names of its folders.

    `train` or `training`; `val`, `valid` or `validation`; `test` or `testing`; in any case, with or
    without a year (`train2017`), or all with the same prefix or suffix (`seg_train`, `seg_test`).
    They may be in a wrapper folder, or in one called `images`. Evaluation is on `val` if there is
    one, else on `test`. A folder called `train` is a class if it is among others that are not
    splits and none of them has folders.

    Args:
        root: The folder given as `--data`.
        train_folder: Folder of the training images within it; "." for the whole.
        test_folder: Folder of the images to evaluate on.

    Raises:
        UserError: if a given folder does not exist, or the names are ambiguous.
    """
    if train_folder is not None or test_folder is not None:
        return _given(root, train_folder, test_folder)
    inner = root
    passed: list[Folder] = []
    for _ in range(_DEEPEST + 1):
        splits = _among(inner)
        if splits is not None:
            return _within(root, inner, splits, passed)
        images = [name for name in inner.holding if name.lower() in _IMAGE_FOLDERS]
        if inner.images or not inner.holding:
            break
        if len(inner.holding) == 1:
            (inner,) = inner.holding.values()
        elif len(images) == 1 and _among(inner.holding[images[0]]) is not None:
            passed += [each for name, each in inner.holding.items() if name != images[0]]
            inner = inner.holding[images[0]]
        else:
            break
    return Splits(root, None, root)


def _within(root: Folder, inner: Folder, splits: Splits, passed: Sequence[Folder]) -> Splits:
    """Splits of a folder within the root, with paths from the root."""
    place = os.path.relpath(inner.path, root.path)
    aside, others = (
        tuple(os.path.normpath(os.path.join(place, name)) for name in names)
        for names in (splits.aside, splits.others)
    )
    beside = tuple(os.path.relpath(folder.path, root.path) for folder in passed)
    return replace(splits, root=root, aside=(*aside, *beside), others=others)


def _names(folder: Folder) -> dict[str, _Name]:
    """The folders that are named as splits."""
    named: dict[str, _Name] = {}
    for name in folder.holding:
        match = _ROLE.fullmatch(name)
        if match is not None:
            role = _ROLES[match["role"].lower()]
            rest = ((match["before"] or "").lower(), (match["after"] or "").lower())
            named[name] = _Name(role, match["year"] or "", rest)
    plain = {name: each for name, each in named.items() if each.rest == ("", "")}
    if plain:
        return plain
    # A prefix or suffix is part of a split's name only if all have the same: a class may be called
    # bullet_train.
    roles = {each.role for each in named.values()}
    alike = len({each.rest for each in named.values()}) == 1
    whole = len(named) == len(folder.holding)
    return named if alike and whole and "train" in roles and len(roles) > 1 else {}


def _among(folder: Folder) -> Splits | None:
    """The splits directly in a folder, or None if it has none.

    Raises:
        UserError: if they are ambiguous.
    """
    names = _names(folder)
    trains = [name for name, each in names.items() if each.role == "train"]
    tests = [name for name, each in names.items() if each.role != "train"]
    others = [name for name in folder.holding if name not in names]
    if not names or (folder.images and not trains):
        return None
    if not trains:
        if len(folder.holding) == 1:
            return None  # the only folder: a wrapper
        raise _unclear(
            folder, f"{_few(tests)} can be splits or classes, and no folder is called train"
        )
    if others and not _are_splits(folder, names, trains, tests, others):
        return None
    if len(trains) > 1:
        raise _unclear(folder, f"any of {_few(trains)} can be the training images")
    test = _test_of(folder, names, trains[0], tests)
    return _splits(folder, trains[0], test)


def _are_splits(
    folder: Folder,
    names: Mapping[str, _Name],
    trains: Sequence[str],
    tests: Sequence[str],
    others: Sequence[str],
) -> bool:
    """Whether folders named as splits are splits, with other folders beside them.

    Raises:
        UserError: if that is ambiguous.
    """
    if any(names[name].year for name in trains) and tests:
        return True
    if any(folder.holding[name].holding for name in trains):
        return True  # classes within
    if not tests and not any(folder.holding[name].holding for name in others):
        return False  # classes, one of which is called train
    raise _unclear(
        folder, f"{_few([*trains, *tests])} can be splits, or classes as {_few(others)} beside them"
    )


def _test_of(
    folder: Folder, names: Mapping[str, _Name], train: str, tests: Sequence[str]
) -> str | None:
    """The split to evaluate on: val before test, of several that of the training images' year."""
    for role in ("val", "test"):
        candidates = [name for name in tests if names[name].role == role]
        if len(candidates) > 1:
            same = [name for name in candidates if names[name].year == names[train].year]
            if len(same) != 1:
                raise _unclear(
                    folder, f"any of {_few(candidates)} can be the images to evaluate on"
                )
            candidates = same
        if candidates:
            return candidates[0]
    return None


def _splits(folder: Folder, train: str, test: str | None) -> Splits:
    aside = tuple(name for name in folder.holding if name not in (train, test))
    others = tuple(name for name in _names(folder) if name in aside)
    chosen = None if test is None else folder.holding[test]
    return Splits(folder.holding[train], chosen, folder, aside, others)


def _given(root: Folder, train_folder: str | None, test_folder: str | None) -> Splits:
    """The splits given by the user; if only one is given, the other is searched beside it."""
    test = None if test_folder is None else _folder(root, "--test_folder", test_folder)
    if train_folder is None:
        assert test is not None
        return _beside_test(root, *test, test_folder)
    around, train = _folder(root, "--train_folder", train_folder)
    if test is not None:
        train = _without_test(train, test[1], train_folder, test_folder)
        return Splits(train, test[1], root)
    if around is train:
        return Splits(train, None, root)
    names = {name: each for name, each in _names(around).items() if name != train.name}
    tests = [name for name, each in names.items() if each.role != "train"]
    as_train = _Name("train", _year(train.name), ("", ""))
    chosen = _test_of(around, {**names, train.name: as_train}, train.name, tests)
    return Splits(train, None if chosen is None else around.holding[chosen], root)


def _beside_test(root: Folder, around: Folder, test: Folder, given: str | None) -> Splits:
    names = _names(around)
    trains = [name for name, each in names.items() if each.role == "train" and name != test.name]
    if len(trains) == 1:
        train = around.holding[trains[0]]
        return Splits(_without_test(train, test, trains[0], given), test, root)
    if trains or around is not root:
        raise _unclear(around, "it does not say which folder holds the training images")
    return Splits(_without_test(root, test, None, given), test, root)


def _without_test(
    train: Folder, test: Folder, train_folder: str | None, test_folder: str | None
) -> Folder:
    """The training images without those to evaluate on, if these lie in a folder among them.

    Raises:
        UserError: if that leaves none.
    """
    whole, part = (os.path.realpath(folder.path) for folder in (train, test))
    rest = train
    # Where it lies may be a link there, and what the link leads to is to be left out as well.
    for inner, outer in ((test.path, train.path), (part, whole)):
        if _lies_in(inner, outer):
            place = os.path.relpath(inner, outer)
            rest = rest if place == os.curdir else rest.without_inner(place.split(os.sep))
    if _lies_in(whole, part) or not rest.holds_images:
        where = "" if train_folder is None else f" of --train_folder {train_folder}"
        raise UserError(
            f"--test_folder: {test_folder} holds the training images{where} too; give another "
            "folder, or leave it out to hold out a tenth of every class."
        )
    return rest


def _lies_in(inner: str, outer: str) -> bool:
    """Whether a path is another one, or within it."""
    return os.path.relpath(inner, outer).split(os.sep)[0] != os.pardir


def _year(name: str) -> str:
    match = re.search(r"(?:19|20)\d\d", name)
    return match[0] if match else ""


def _folder(root: Folder, flag: str, given: str) -> tuple[Folder, Folder]:
    """The folder of a path within the root, and its parent folder.

    Raises:
        UserError: if it does not exist, or is not within the root.
    """
    path = os.path.normpath(os.path.join(root.path, given))
    if not os.path.isdir(path):
        near = difflib.get_close_matches(given, list(root.folders), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        has = f"; it has {_few(list(root.folders))}" if root.folders else ""
        raise UserError(f"{flag}: there is no folder {given!r} in {root.path}{has}.{hint}")
    inside = os.path.relpath(path, root.path)
    if not _lies_in(path, os.fspath(root.path)):
        raise UserError(f"{flag}: {given!r} lies outside of --data {root.path}.")
    around = folder = root
    for name in () if inside == os.curdir else inside.split(os.sep):
        around = folder
        folder = folder.folders.get(name) or Folder(os.path.join(folder.path, name), root.passed)
    return around, folder


def _unclear(folder: Folder, what: str) -> UserError:
    return UserError(f"--data: {folder.path}: {what}; {_SETTLE}.")


def _few(names: Sequence[str]) -> str:
    """The first names, as folders: `a/, b/ and 3 more`."""
    listed = [f"{shown(name)}/" for name in names[:3]]
    if len(names) > 3:
        return f"{', '.join(listed)} and {len(names) - 3:,} more"
    return in_words(listed)
