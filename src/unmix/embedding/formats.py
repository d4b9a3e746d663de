"""The files of features: NPY with a CSV, NPZ, Parquet. Each is written chunk by chunk."""

from __future__ import annotations

import csv
import json
import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unmix.embedding.chunks import Chunk, Chunks
from unmix.embedding.names import NamedSet
from unmix.errors import UserError
from unmix.names import in_words

__all__ = ["FORMATS", "Format", "assemble", "format_of"]


class Format(ABC):
    """A kind of file."""

    def check(self) -> None:  # noqa: B027 - most need nothing
        """Check that what writing needs is installed.

        Raises:
            UserError: if not.
        """

    def beside(self, out: Path) -> tuple[Path, ...]:
        """Other files than `out` that are written."""
        return ()

    @abstractmethod
    def write(self, folder: Path, out: Path, chunks: Chunks, about: Mapping[str, Any]) -> None:
        """Write the files into a folder, under their final names.

        Args:
            folder: The folder.
            out: The final place of the main file.
            chunks: The features.
            about: How they were made, as JSON types.

        Raises:
            OSError: if a file cannot be written.
        """


def format_of(out: Path) -> Format:
    """Choose the format by the extension of a file.

    Raises:
        UserError: if it is none of these, or the path is a folder.
    """
    kind = FORMATS.get(out.suffix.lower())
    if out.is_dir() or kind is None:
        what = "is a folder" if out.is_dir() else "has another extension"
        name = out / "features" if out.is_dir() else out.with_suffix("")
        choices = in_words(list(FORMATS), "or")
        raise UserError(
            f"{out} {what}; give a file that ends in {choices}, such as {name}.npz.",
            parameter="out",
        )
    return kind


class Npy(Format):
    """An array (N, D), and a CSV of the same name with a row for each image."""

    def beside(self, out: Path) -> tuple[Path, ...]:
        """The CSV."""
        return (out.with_suffix(".csv"),)

    def write(self, folder: Path, out: Path, chunks: Chunks, about: Mapping[str, Any]) -> None:
        """Write both."""
        with open(folder / out.name, "wb") as file:
            _header(file, (_count(chunks), chunks.dim), chunks.dtype)
            for _, chunk in chunks:
                file.write(np.ascontiguousarray(chunk.features).tobytes())
        table = folder / self.beside(out)[0].name
        with open(table, "w", newline="", encoding="utf-8") as text:
            rows = csv.writer(text)
            rows.writerow(["path", "split", "label", "class"])
            for named, chunk in chunks:
                rows.writerows(_rows(named, chunk))


class Npz(Format):
    """Arrays by name: `features` (N, D), `paths` and `splits`, with classes `labels` and `classes`.

    `about` is a text, JSON with how they were made.
    """

    def write(self, folder: Path, out: Path, chunks: Chunks, about: Mapping[str, Any]) -> None:
        """Write the file."""
        n = _count(chunks)
        widths = [0, 0]
        for named, chunk in chunks:
            names = named.names(chunk.index)
            widths = [max(widths[0], *map(len, names), 1), max(widths[1], len(named.images.split))]
        columns: dict[str, tuple[tuple[int, ...], np.dtype, Column]] = {
            "features": ((n, chunks.dim), chunks.dtype, lambda named, chunk: chunk.features),
            "paths": (
                (n,), np.dtype(f"<U{widths[0]}"), lambda named, chunk: named.names(chunk.index)
            ),
            "splits": (
                (n,), np.dtype(f"<U{widths[1]}"),
                lambda named, chunk: [named.images.split] * len(chunk.index),
            ),
        }  # fmt: skip
        classes = _classes(chunks)
        if classes is not None:
            columns["labels"] = (n,), np.dtype(np.int64), _labels
        with zipfile.ZipFile(folder / out.name, "w") as archive:
            for name, (shape, dtype, column) in columns.items():
                with _member(archive, name, deflated=name != "features") as file:
                    _header(file, shape, dtype)
                    for named, chunk in chunks:
                        values = np.asarray(column(named, chunk), dtype=dtype)
                        file.write(np.ascontiguousarray(values).tobytes())
            small = {"about": np.array(json.dumps(about))}
            if classes is not None:
                small["classes"] = np.array(classes)
            for name, value in small.items():
                with _member(archive, name, deflated=True) as file:
                    np.lib.format.write_array(file, value, allow_pickle=False)


class Parquet(Format):
    """Columns `path`, `split`, with classes `label` and `class`, and `features`, lists of D."""

    def check(self) -> None:
        """Check that pyarrow is installed."""
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(
                "a Parquet file needs the pyarrow package: pip install 'unmix[parquet]'; or give "
                "a file that ends in .npz.",
                parameter="out",
            ) from None

    def write(self, folder: Path, out: Path, chunks: Chunks, about: Mapping[str, Any]) -> None:
        """Write the file, a row group for each chunk."""
        import pyarrow as pa
        from pyarrow import parquet

        of_classes = _classes(chunks) is not None
        number = pa.float16() if chunks.dtype == np.float16 else pa.float32()
        fields = [("path", pa.string()), ("split", pa.string())]
        if of_classes:
            fields += [("label", pa.int64()), ("class", pa.string())]
        fields.append(("features", pa.list_(number, chunks.dim)))
        schema = pa.schema(fields, metadata={"unmix": json.dumps(about)})
        with parquet.ParquetWriter(
            folder / out.name, schema, compression="zstd",
            use_dictionary=["split", "class"] if of_classes else ["split"],
        ) as writer:  # fmt: skip
            for named, chunk in chunks:
                if not len(chunk.index):
                    continue
                flat = pa.array(np.ascontiguousarray(chunk.features).reshape(-1), type=number)
                names, splits, labels, words = zip(*_rows(named, chunk), strict=True)
                columns: list[Any] = [pa.array(names), pa.array(splits)]
                if of_classes:
                    known = named.labels(chunk.index) is not None
                    columns.append(pa.array(labels if known else [None] * len(labels), pa.int64()))
                    columns.append(pa.array(words if known else [None] * len(words), pa.string()))
                columns.append(pa.FixedSizeListArray.from_arrays(flat, chunks.dim))
                writer.write_table(pa.table(columns, schema=schema))


FORMATS: dict[str, Format] = {".parquet": Parquet(), ".npz": Npz(), ".npy": Npy()}
"""The formats by extension."""

Column = Callable[[NamedSet, Chunk], Any]


def _count(chunks: Chunks) -> int:
    return sum(len(chunk.index) for _, chunk in chunks)


def _classes(chunks: Chunks) -> list[str] | None:
    """Names of the classes, which are the same in all splits; None if no split has any."""
    found = [list(each.classes) for each in chunks.sets if each.classes is not None]
    return found[0] if found else None


def _labels(named: NamedSet, chunk: Chunk) -> np.ndarray:
    """Class indices, -1 where they are not known."""
    labels = named.labels(chunk.index)
    return np.full(len(chunk.index), -1) if labels is None else labels


def _rows(named: NamedSet, chunk: Chunk) -> list[tuple[str, str, int | str, str]]:
    """Path, split, class index and class of each image; the last two are empty if not known."""
    names, classes = named.names(chunk.index), named.classes
    labels = named.labels(chunk.index)
    if labels is None or classes is None:
        return [(name, named.images.split, "", "") for name in names]
    return [
        (name, named.images.split, label, classes[label])
        for name, label in zip(names, labels.tolist(), strict=True)
    ]


def _header(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write the header of an NPY file."""
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape
    }  # fmt: skip
    np.lib.format.write_array_header_1_0(file, described)


def _member(archive: zipfile.ZipFile, name: str, *, deflated: bool) -> Any:
    """A member of an NPZ file, of a fixed date: the same features make the same file."""
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    info.external_attr = 0o644 << 16
    return archive.open(info, "w", force_zip64=True)


def assemble(
    chunks: Chunks, out: Path, about: Mapping[str, Any], form: Format | None = None
) -> None:
    """Put the result together in the folder of the chunks.

    Args:
        chunks: The features.
        out: The final place of the main file.
        about: How they were made, as JSON types.
        form: The format; by default that of the file's extension.

    Raises:
        UserError: if it cannot be written; the chunks are kept.
    """
    folder = chunks.folder / "assembling"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        (form or format_of(out)).write(folder, out, chunks, about)
        os.replace(folder, chunks.ready)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(
            f"{out}: cannot be written ({reason}). The features are kept: give the command again "
            "to continue."
        ) from None
