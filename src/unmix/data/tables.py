"""Reading lists of image files: text, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import Any

from unmix.data.columns import LABELS, PATHS, SPLITS, Columns
from unmix.data.formats import extensions
from unmix.errors import UserError
from unmix.files import read_regular
from unmix.names import shown

__all__ = ["KINDS", "Table", "is_list", "read_table"]

TEXT = frozenset({".txt", ".lst", ".list"})
CSV = frozenset({".csv", ".tsv"})
PARQUET = frozenset({".parquet", ".pq"})
KINDS = ".txt (a path per line), .csv, .tsv or .parquet"
"""The kinds of lists, for messages."""

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = ",;\t|"
_BLOCK = 256  # rows at a time: with more lists alive, the collector of garbage takes over
_ROLE = re.compile("train(ing)?|val(id(ation)?)?|test(ing)?", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """The rows of a list.

    Attributes:
        paths: Of the images, as they are written.
        labels: Of each row, as text or as a number; None without a column of them. An empty text
            is no label.
        splits: Name of the split of each row; None without a column of them.
        said: Which columns were taken, for the user; empty for a list without columns.
        lost: Which rows were left out, since they have no path; empty if none were.
    """

    paths: list[str]
    labels: list[Any] | None = None
    splits: list[str] | None = None
    said: str = ""
    lost: str = ""

    def with_paths(self) -> Table:
        """The same without the rows that have no path, nor their labels and splits."""
        there = [bool(path) and not path.isspace() for path in self.paths]
        count, total = there.count(False), len(there)
        if not count:
            return self
        first = there.index(False) + 1
        where = f"has no path, row {first:,}" if count == 1 else f"have no path, first {first:,}"
        return Table(
            list(compress(self.paths, there)),
            None if self.labels is None else list(compress(self.labels, there)),
            None if self.splits is None else list(compress(self.splits, there)),
            self.said,
            f"{count:,} of {total:,} rows {where}",
        )


def is_list(path: Path) -> bool:
    """Whether a file has the extension of a list."""
    return path.suffix.lower() in TEXT | CSV | PARQUET


def read_table(path: Path, columns: Columns) -> Table:
    """Read a list of image files.

    - Text: one path per line. Empty lines and those that begin with `#` are ignored.
    - CSV: separated by comma, semicolon, tab or bar. Its first row is a header unless one of its
      cells is the name of an image; then columns are called 1, 2, and so on.
    - Parquet, with a column of paths.

    Line ends of any system and a byte-order mark are accepted, bytes that are not UTF-8 are kept
    as they are in names of files. Rows without a path are left out, and said.

    Raises:
        UserError: if it cannot be read, or no column is known to be the paths.
    """
    kind = path.suffix.lower()
    if kind in PARQUET:
        return _parquet(path, columns).with_paths()
    content = _content(path)
    if kind in CSV:
        return _csv(path, content, columns).with_paths()
    if given := columns.given():
        raise UserError(f"{path} is a text of paths and has no columns.", parameter=given[0])
    lines = content.split(b"\n")
    names = [line[:-1] if line.endswith(b"\r") else line for line in lines]
    kept = [name for name in names if name and name[:1] != b"#" and not name.isspace()]
    if sum(b"\t" in name for name in kept) > len(kept) / 2:
        raise UserError(
            f"{path}: its lines hold a tab, {shown(os.fsdecode(kept[0]))!r}; a list with columns "
            "is called .tsv.",
            parameter="data",
        )
    return Table([os.fsdecode(name) for name in kept])


def _content(path: Path) -> bytes:
    try:
        content = read_regular(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}).", parameter="data") from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is a text in UTF-16; save it as UTF-8.", parameter="data")
    if b"\0" in content:
        raise UserError(f"{path} is not a text; a list is {KINDS}.", parameter="data")
    content = content.removeprefix(_BOM)
    return content if b"\n" in content else content.replace(b"\r", b"\n")


def _csv(path: Path, content: bytes, columns: Columns) -> Table:
    start = content[: content.find(b"\n") + 1 or len(content)]
    tabs = path.suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else max(_DELIMITERS, key=lambda d: start.count(d.encode()))
    text = content.decode("utf-8", "surrogateescape")
    cells = _cells(path, text, delimiter)
    if not cells:
        return Table([])
    if any(_is_image(column[0]) for column in cells):
        return _without_header(path, cells, columns)
    header = [column.pop(0).strip() for column in cells]
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise UserError(
            f"{path} has two columns {shown(twice)!r}; give them different names.",
            parameter="data",
        )
    places = {name: i for i, name in enumerate(header)}
    image, label, split = _chosen(path, header, columns)

    def values(name: str | None) -> list[str] | None:
        if name is None:
            return None
        return cells[places[name]]

    return Table(values(image) or [], values(label), values(split), _said(image, label, split))


def _cells(path: Path, text: str, delimiter: str) -> list[list[str]]:
    """The cells of each column of a CSV, without empty lines.

    Raises:
        UserError: if it is no CSV, or a line has another number of cells than the first.
    """
    cells: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        while block := list(islice(reader, _BLOCK)):
            rows = [row for row in block if row and row != [""]]
            cells = cells or [[] for _ in rows[:1] for _ in rows[0]]
            if rows and {*map(len, rows)} != {len(cells)}:
                raise csv.Error
            for column, more in zip(cells, zip(*rows, strict=True), strict=bool(rows)):
                column += more
    except csv.Error:
        raise _first_wrong(path, text, delimiter) from None
    return cells


def _first_wrong(path: Path, text: str, delimiter: str) -> UserError:
    """What is wrong with the first line of a CSV that cannot be used."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first: int | None = None
    try:
        for row in reader:
            if not row or row == [""]:
                continue
            first = first or len(row)
            if len(row) != first:
                return UserError(
                    f"{path}: line {reader.line_num:,} has {len(row)} cells, the first "
                    f"{first}; a name with {delimiter!r} in it must be in quotes.",
                    parameter="data",
                )
    except csv.Error as error:
        return UserError(
            f"{path}: line {reader.line_num:,} cannot be read as CSV ({error}).", parameter="data"
        )
    raise AssertionError("every line of the CSV can be used")


def _without_header(path: Path, columns_of: list[list[str]], columns: Columns) -> Table:
    names = [str(i + 1) for i in range(len(columns_of))]
    found = {
        kind: columns.find(kind, names, (), f"{path} has no header: it")
        for kind in ("image", "label", "split")
    }
    values = dict(zip(names, columns_of, strict=True))
    cells = {name: column[0] for name, column in values.items()}
    image = found["image"] or next(name for name in names if _is_image(cells[name]))
    rest = [name for name in names if name not in (image, found["label"], found["split"])]
    split = found["split"] or next(
        (name for name in rest if _ROLE.fullmatch(cells[name].strip())), None
    )
    rest = [name for name in rest if name != split]
    label = found["label"] or (rest[0] if len(rest) == 1 else None)
    if found["label"] is None and len(rest) > 1:
        raise UserError(
            f"{path} has no header, and columns {' and '.join(rest)} beside the paths; say which "
            "holds the labels, or give it a header.",
            parameter="label_column",
        )
    return Table(
        values[image],
        None if label is None else values[label],
        None if split is None else values[split],
        _said(image, label, split),
    )


def _parquet(path: Path, columns: Columns) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f'reading {path} needs pyarrow: pip install "unmix[parquet]".', parameter="data"
        ) from None
    try:
        schema = pyarrow.parquet.read_schema(path)
        image, label, split = _chosen(path, list(schema.names), columns)
        kind = schema.field(image).type
        types = pyarrow.types
        if types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind):
            raise UserError(
                f"{path}: its column {image!r} holds images, not paths; give hf:{path}, which "
                "reads it as a Hugging Face data set.",
                parameter="data",
            )
        table = pyarrow.parquet.read_table(
            path, columns=[name for name in (image, label, split) if name is not None]
        )
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as Parquet ({reason}).", parameter="data") from None
    columns_of = {name: table.column(name).to_pylist() for name in table.column_names}
    wrong = next((value for value in columns_of[image] if not isinstance(value, str)), None)
    if wrong is not None:
        raise UserError(
            f"{path}: its column {image!r} holds {wrong!r}, which is no path.",
            parameter="image_column",
        )
    labels = None if label is None else ["" if v is None else v for v in columns_of[label]]
    splits = None if split is None else [str(v or "") for v in columns_of[split]]
    paths = ["" if value is None else value for value in columns_of[image]]
    return Table(paths, labels, splits, _said(image, label, split))


def _chosen(
    path: Path, names: Sequence[str], columns: Columns
) -> tuple[str, str | None, str | None]:
    image = columns.find("image", names, PATHS, str(path))
    if image is None:
        raise UserError(
            f"{path} has the columns {', '.join(map(shown, names))}, of which none is known to "
            "hold the paths of images; say which.",
            parameter="image_column",
        )
    rest = [name for name in names if name != image]
    label = columns.find("label", rest, LABELS, str(path))
    return image, label, columns.find("split", rest, SPLITS, str(path))


def _said(image: str, label: str | None, split: str | None) -> str:
    parts = [f"paths from column {shown(image)}"]
    parts += [] if label is None else [f"labels from {shown(label)}"]
    return ", ".join(parts + ([] if split is None else [f"splits from {shown(split)}"]))


def _is_image(cell: str) -> bool:
    return os.path.splitext(cell.strip())[1][1:].lower() in extensions()
