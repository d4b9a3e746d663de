"""A list of image files as a data set: its splits, its classes, and what is wrong with it."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unmix.data.columns import Columns
from unmix.data.dataset import file_images
from unmix.data.decoding import Decoding
from unmix.data.folder import hold_out, in_classes, looked_at
from unmix.data.formats import extensions
from unmix.data.imageset import FileImages, Skipped
from unmix.data.list_cache import Found, ListCache
from unmix.data.listing import Listing
from unmix.data.presence import file_modes
from unmix.data.splits import split_names
from unmix.data.tables import Table, read_table
from unmix.errors import UserError
from unmix.files import as_path, kind_of
from unmix.names import shown

__all__ = ["load_list"]

_NAMED = 3
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_UNTIDY = re.compile(r"//|/\./|/\.\./|^\./|/\.?$")
_UNTIDY_PARTS = ("//", "/./", "/../", "/\n", "/.\n")  # one is in the lines if a path matches
_NUMBER = re.compile(r"-?\d+(\.0+)?")


def load_list(
    path: Path,
    split: str,
    skipped: Skipped,
    decoding: Decoding,
    columns: Columns,
    *,
    train_split: str | None = None,
    test_split: str | None = None,
    cache: Path | None = None,
) -> FileImages:
    """Read a split of a list of image files (see `unmix.data.tables.read_table`).

    1. *Paths* are absolute, or relative to the list's own folder. Those that are not there, or are
       no regular files, are left out and counted, as are rows without a path; with `strict`, the
       first is an error. A path that is listed twice is used twice.
    2. *Labels* are sorted as numbers if all of them are whole numbers, else as text. If one is
       missing or negative, the images have no classes.
    3. *Splits* are those of a column, by the usual names (see `unmix.data.splits.split_names`).
       Without one, a tenth of every class is held out, as of a folder.

    Args:
        path: The list.
        split: `train`, `test`, or `pretrain`, which is `train` here.
        skipped: Whether to be strict; collects broken files.
        decoding: How files are decoded.
        columns: The columns that are given.
        train_split: Name of the training split.
        test_split: Name of the split to evaluate on.
        cache: Where what was found in long lists is kept; None to read the list anew.

    Raises:
        UserError: if the list cannot be read, no image is there, columns or splits are not known,
            or there is no test split.
    """
    path = as_path(path).absolute()
    words = [train_split, test_split, columns, sorted(extensions())]
    kept = ListCache(path, words, cache)
    found = kept.find()
    if found is None or (skipped.strict and found.lost) or (split == "test" and found.test is None):
        found = _read(path, split, skipped, columns, train_split, test_split, kept)
    looked = looked_at(str(path), found.train, decoding)
    images = found.train if split != "test" else found.test
    assert images is not None
    notes = found.test_notes if split == "test" else (*found.notes, *looked.notes, *kept.notes)
    return file_images(
        images, name=str(path), split="test" if split == "test" else "train", mean=looked.mean,
        std=looked.std, skipped=skipped, notes=notes, decoding=looked.decoding,
    )  # fmt: skip


def _read(
    path: Path,
    split: str,
    skipped: Skipped,
    columns: Columns,
    train_split: str | None,
    test_split: str | None,
    kept: ListCache,
) -> Found:
    """Read the list, and keep what it held if all of it can be used."""
    table = read_table(path, columns)
    if table.lost and skipped.strict:
        raise UserError(f"{path}: {table.lost}.", parameter="data")
    rows = _Rows(path, table)
    train_name, test_name = rows.splits(train_split, test_split)
    folders = kept.folders(rows.paths)
    train = rows.listing(train_name)
    present, notes = _present(train, path, skipped.strict)
    lost = bool(table.lost) or len(present.paths) < len(train.paths)
    if table.lost:
        notes = [f"warning: left out: {table.lost}", *notes]
    held = None
    if test_name is None and present.classes is not None:
        present, held = hold_out(present)
    said = [rows.understood(present, held, train_name, test_name), *rows.leaks(train, test_name)]
    missing: list[str] = []
    if held is None and (split == "test" or (folders is not None and test_name is not None)):
        try:
            test = rows.test(test_name, train)
            held, missing = _present(test, path, skipped.strict)
            lost = lost or len(held.paths) < len(test.paths)
        except UserError:
            if split == "test":
                raise  # otherwise reported when the test images are needed
    found = Found(present, held, (*said, *notes), tuple(missing), lost)
    kept.keep(found, folders)
    return found


class _Rows:
    """The rows of a list, with absolute paths."""

    def __init__(self, path: Path, table: Table) -> None:
        self.path, self.table = path, table
        self.paths = _absolute(table.paths, path)
        if not self.paths:
            raise UserError(f"{path} lists no images.", parameter="data")
        self._splits = None
        if table.splits is not None:
            self._splits = np.array([name.strip() for name in table.splits], dtype=object)

    def splits(self, train: str | None, test: str | None) -> tuple[str | None, str | None]:
        """Names of the training split and of that to evaluate on; None without a column of them."""
        if self._splits is None:
            given = "train_folder" if train is not None else "test_folder"
            if train is not None or test is not None:
                raise UserError(
                    f"{self.path} has no column of splits in which to find one.", parameter=given
                )
            return None, None
        names = list(dict.fromkeys(self._splits.tolist()))
        return split_names(names, str(self.path), train, test)

    def _within(self, split: str | None) -> list[int]:
        if split is None or self._splits is None:
            return list(range(len(self.paths)))
        return np.flatnonzero(self._splits == split).tolist()

    def listing(self, split: str | None) -> Listing:
        """The images of the training split, with its classes."""
        rows = self._within(split)
        paths = [self.paths[i] for i in rows]
        if self.table.labels is None:
            return Listing(paths)
        values = [self.table.labels[i] for i in rows]
        values = list(map(_hashable, values))
        unlabeled = sum(count for value, count in Counter(values).items() if _is_none(value))
        if unlabeled:
            has = "1 image has" if unlabeled == 1 else f"{unlabeled:,} images have"
            return Listing(paths, why=f"{has} no label")
        found = _classes_of(values)
        if found is None:
            return Listing(paths, why="its labels are neither names nor whole numbers")
        if len(found[1]) < 2:
            return Listing(paths, why="all have one label")
        return Listing(paths, *found)

    def test(self, split: str | None, train: Listing) -> Listing:
        """The images to evaluate on, with the classes of the training images.

        Raises:
            UserError: if there are none, or one has another class.
        """
        if split is None:
            raise UserError(
                f"{self.path}: it has no labels and no column of splits, so it has no test split; "
                "give each image its label in a CSV.",
                parameter="data",
            )
        rows = self._within(split)
        paths = [self.paths[i] for i in rows]
        if train.classes is None or self.table.labels is None:
            return Listing(paths)
        number = {name: i for i, name in enumerate(train.classes)}
        names = _as_names([_hashable(self.table.labels[i]) for i in rows])
        other = next((name for name in names if name not in number), None)
        if other is not None:
            raise UserError(
                f"{self.path}: an image of {split} has the label {shown(other)!r}, which no "
                "training image has.",
                parameter="data",
            )
        return Listing(paths, [number[name] for name in names], train.classes)

    def leaks(self, train: Listing, test: str | None) -> list[str]:
        """A warning if an image to evaluate on is a training image too."""
        if test is None or train.classes is None:
            return []
        seen = set(train.paths)
        both = [self.paths[i] for i in self._within(test) if self.paths[i] in seen]
        if not both:
            return []
        verb = "is a training image" if len(both) == 1 else "are training images"
        return [
            f"warning: {len(both):,} of the images to evaluate on {verb} too, first "
            f"{shown(both[0])}"
        ]

    def understood(
        self, train: Listing, held: Listing | None, name: str | None, test: str | None
    ) -> str:
        """How the list was interpreted, as of a folder."""
        where = "" if name is None else f" from {shown(name)}"
        parts = [f"train {len(train.paths):,} images {in_classes(train)}{where}"]
        if held is not None:
            parts.append(f"test {len(held.paths):,} held out of these (a tenth of every class)")
        elif test is not None and train.classes is not None:
            parts.append(f"evaluation on {len(self._within(test)):,} from {shown(test)}")
        line = f"split: {', '.join(parts)}"
        unused = []
        if self._splits is not None:
            used = {name, test if train.classes is not None else None}
            unused = [each for each in dict.fromkeys(self._splits.tolist()) if each not in used]
        if unused:
            line += f"; not used: {', '.join(shown(each) or '(empty)' for each in unused)}"
        return f"{line} ({self.table.said})" if self.table.said else line


def _absolute(paths: Sequence[str], path: Path) -> list[str]:
    """The paths of a list, absolute and without repeated separators."""
    base = os.path.join(str(path.parent), "")
    if any("://" in name for name in paths):
        url = next((name for name in paths if _URL.match(name)), None)
        if url is not None:
            raise UserError(
                f"{path}: lists {shown(url)}; only files are read from a list.", parameter="data"
            )
    sep = os.sep
    whole = [
        name if name[0] == sep else base + name if name[0] != "~" else _of_home(name, base)
        for name in paths
    ]
    lines = "\n".join(whole) + "\n"
    if not any(part in lines for part in _UNTIDY_PARTS):
        return whole
    return [os.path.normpath(name) if _UNTIDY.search(name) else name for name in whole]


def _of_home(name: str, base: str) -> str:
    found = os.path.expanduser(name)
    return found if os.path.isabs(found) else base + found


def _present(listing: Listing, path: Path, strict: bool) -> tuple[Listing, list[str]]:
    """The images of a list that are regular files, and notes on the others and on repetitions.

    Raises:
        UserError: if there are none, or strict and not all are there.
    """
    modes = file_modes(listing.paths)
    notes = _repetitions(listing)
    kinds = {mode: _wrong(mode) for mode in np.unique(modes).tolist()}
    if not any(kinds.values()):
        return listing, notes
    wrong: dict[str, list[str]] = {}
    for name, mode in zip(listing.paths, modes.tolist(), strict=True):
        if (kind := kinds[mode]) is not None:
            wrong.setdefault(kind, []).append(name)
    lost = sum(map(len, wrong.values()))
    texts = [_lost(kind, names, len(listing.paths), path) for kind, names in wrong.items()]
    if lost == len(listing.paths) or strict:
        hint = _hint(listing.paths[0], path) if lost == len(listing.paths) else ""
        raise UserError(f"{path}: {'; '.join(texts)}.{hint}", parameter="data")
    kept = [i for i, mode in enumerate(modes.tolist()) if kinds[mode] is None]
    labels = None if listing.labels is None else [listing.labels[i] for i in kept]
    rest = Listing([listing.paths[i] for i in kept], labels, listing.classes, listing.why)
    return rest, [*(f"warning: left out: {text}" for text in texts), *notes]


def _wrong(mode: int) -> str | None:
    """What is wrong with a path of this mode; None if it is a regular file."""
    if mode < 0:
        return "missing"
    kind = kind_of(mode)
    return "folders" if stat.S_ISDIR(mode) else kind


def _lost(kind: str, names: list[str], total: int, path: Path) -> str:
    """A number of paths that are not used, the first of them named."""
    base = os.path.join(str(path.parent), "")
    first = [shown(name.removeprefix(base)) for name in names[:_NAMED]]
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    many = len(names) > 1
    what = {
        "missing": "do not exist" if many else "does not exist",
        "folders": "are folders; list their files" if many else "is a folder; list its files",
    }.get(kind, f"are not regular files ({kind})" if many else f"is {kind}, not a regular file")
    subject = f"{len(names):,} of {total:,} paths"
    return f"{subject} {what}: {', '.join(first)}{more}"


def _hint(path: str, list_path: Path) -> str:
    """What may be meant where no path of a list exists."""
    name = path.removeprefix(os.path.join(str(list_path.parent), ""))
    here = Path(name)
    if not here.is_absolute() and here.is_file():
        return (
            f" Paths are relative to the list's folder, {shown(list_path.parent)}, not to the "
            "working directory."
        )
    if "\\" in path and os.path.isfile(path.replace("\\", "/")):
        return " Write / between folders, not \\."
    for mark in (" ", "\t", ",", ";"):
        before = path.rpartition(mark)[0]
        if before and os.path.isfile(before):
            return f" With more than a path in a line, as {shown(name)!r}, save it as a CSV."
    return f" Paths are relative to the list's folder, {shown(list_path.parent)}."


def _repetitions(listing: Listing) -> list[str]:
    """A note on paths that are listed more than once, and a warning if their labels differ."""
    if len(set(listing.paths)) == len(listing.paths):
        return []
    counts = Counter(listing.paths)
    again = [name for name, count in counts.items() if count > 1]
    verb = "is" if len(again) == 1 else "are"
    paths = "1 path" if len(again) == 1 else f"{len(again):,} paths"
    notes = [
        f"note: {paths} {verb} listed more than once, first {shown(again[0])}, and used as often"
    ]
    if listing.labels is not None:
        pairs = Counter(name for name, _ in set(zip(listing.paths, listing.labels, strict=True)))
        other = [name for name, count in pairs.items() if count > 1]
        if other:
            paths = "1 path" if len(other) == 1 else f"{len(other):,} paths"
            notes.append(f"warning: {paths} listed with several labels, first {shown(other[0])}")
    return notes


def _is_none(value: Any) -> bool:
    """Whether a value is no label: empty, or a negative number."""
    if isinstance(value, (int, float)):
        return not value >= 0
    text = str(value).strip()
    return not text or bool(re.fullmatch(r"-\d+(\.0+)?|nan|none|null", text, re.IGNORECASE))


def _hashable(value: Any) -> Any:
    """A label of a table; a list or a mapping as its text."""
    return str(value) if isinstance(value, (list, dict, set)) else value


def _as_names(values: Sequence[Any]) -> list[str]:
    """Labels as names of classes: whole numbers without leading zeros or a fraction."""
    names = {value: _as_name(value) for value in set(values)}
    return [names[value] for value in values]


def _as_name(value: Any) -> str:
    if isinstance(value, (bool, int)):
        return str(int(value))
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value).strip()
    return text.partition(".")[0] if re.fullmatch(r"\d+\.0+", text) else text


def _classes_of(values: Sequence[Any]) -> tuple[list[int], tuple[str, ...]] | None:
    """Class indices and the classes' names, in order; None if a label is a fraction."""
    if any(isinstance(value, float) and not value.is_integer() for value in set(values)):
        return None
    names = _as_names(values)
    distinct = set(names)
    numbers = all(_NUMBER.fullmatch(name) for name in distinct)
    classes = tuple(sorted(distinct, key=lambda name: (int(name), name) if numbers else name))  # type: ignore[arg-type,return-value]
    number = {name: i for i, name in enumerate(classes)}
    return [number[name] for name in names], classes
