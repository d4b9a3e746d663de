"""Hugging Face data sets: by name, or on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmix.data.bit_depth import may_be_deep
from unmix.data.columns import IMAGES, LABELS, Columns
from unmix.data.decoding import BrokenImage, Decoding, read_image
from unmix.data.folder import hold_out, in_classes
from unmix.data.imageset import RGB, ImageSet, Skipped, StreamedImages
from unmix.data.listing import Listing
from unmix.data.python_labels import Labels
from unmix.data.splits import split_names
from unmix.data.statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    estimate_mean_std,
    estimate_range,
    even_indices,
)
from unmix.errors import UserError
from unmix.files import as_path
from unmix.names import HUGGING_FACE, shown

__all__ = ["Address", "HuggingFaceImages", "images_of", "is_encoded", "load_hf"]

_SAMPLE = 16


@dataclass(frozen=True)
class Address:
    """What `hf:...` names: `hf:NAME`, `hf:NAME:CONFIG`, `hf:NAME@REVISION`, or `hf:PATH`.

    Attributes:
        name: Name on the Hub, or a path.
        config: Name of the configuration, if it is given.
        revision: Branch, tag or commit on the Hub, if it is given.
        local: Whether it is a path.
    """

    name: str
    config: str | None
    revision: str | None
    local: bool

    @classmethod
    def of(cls, data: str) -> Address:
        """Parse `hf:...`. What exists as a path is one, and what looks like one."""
        text = data.removeprefix(HUGGING_FACE)
        if _is_path(text):
            return cls(text, None, None, True)
        before, mark, config = text.rpartition(":")
        if mark and _is_path(before):
            return cls(before, config, None, True)
        text, _, revision = text.partition("@")
        text, _, config = text.partition(":")
        if not text:
            raise UserError(f"{data!r} names no data set; give hf:NAME or hf:PATH.",
                            parameter="data")  # fmt: skip
        return cls(text, config or None, revision or None, False)

    def with_path(self, path: str) -> str:
        """The same, at another path."""
        return f"{HUGGING_FACE}{path}" + (f":{self.config}" if self.config else "")


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or (text != "" and as_path(text).exists())


@dataclass(frozen=True, eq=False, kw_only=True)
class HuggingFaceImages(StreamedImages):
    """The encoded images of a Hugging Face data set, read from its memory map.

    Args:
        dataset: A `datasets.Dataset` with the column of images, which is not decoded.
        numbers: Rows of the images, int64 (N,).
        column: The column.
    """

    dataset: Any
    numbers: Tensor
    column: str

    def __len__(self) -> int:
        return len(self.numbers)

    def _picked(self, index: Tensor) -> dict[str, Any]:
        return {"numbers": self.numbers[index]}

    def _cell(self, i: int) -> tuple[bytes | None, str | None]:
        cell = self.dataset[int(self.numbers[i])][self.column]
        if isinstance(cell, dict):
            return cell.get("bytes"), cell.get("path")
        return cell, None

    def place(self, i: int) -> Path:
        """Name of the data set, number of the row, and the file's own name if it has one."""
        own = Path(os.path.basename(self._cell(i)[1] or "")).name
        row = Path(f"{self.name}[{int(self.numbers[i])}]")
        return row / own if own else row

    def read(self, i: int) -> bytes:
        """The encoded image of row `i`.

        Raises:
            BrokenImage: if there is none, or it cannot be read.
        """
        try:
            content, path = self._cell(i)
        except Exception as error:  # of Arrow, of a file that is damaged
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BrokenImage(Path(f"{self.name}[{int(self.numbers[i])}]"), reason) from error
        if content is not None:
            return content
        if not path:
            raise BrokenImage(self.place(i), "the row has no image")
        return read_image(Path(path), self.decoding)

    def may_be_deep(self, i: int) -> bool:
        """Whether image `i` may have more than 8 bits, by the name of its file if it has one."""
        name = self.place(i).name
        return "." not in name or may_be_deep(name)

    def digest(self) -> bytes:
        """Digest of the sizes of all images, and of the bytes of some."""
        import hashlib

        digest = hashlib.blake2b(self._sizes().tobytes(), digest_size=16)
        for i in even_indices(len(self), _SAMPLE):
            try:
                digest.update(self.read(i))
            except BrokenImage:
                digest.update(b"broken")
        return digest.digest()

    def _sizes(self) -> np.ndarray:
        """Bytes of each image, int64; -1 where it is in a file of its own."""
        import pyarrow.compute as pc

        cells = self.dataset.data.column(self.column)
        if "struct" in str(cells.type):
            cells = pc.struct_field(cells, "bytes")
        sizes = pc.fill_null(pc.binary_length(cells), -1).to_numpy().astype(np.int64)
        rows = self.numbers.numpy()
        # Rows that were selected or shuffled are found by a column of their own.
        chosen = getattr(self.dataset, "_indices", None)
        return sizes[rows if chosen is None else chosen.column(0).to_numpy()[rows]]


def is_encoded(data: Any) -> bool:
    """Whether an object is a Hugging Face data set whose images can be read encoded."""
    if not type(data).__module__.startswith("datasets."):
        return False
    formatted = getattr(data, "format", {})
    plain = isinstance(formatted, dict) and formatted.get("type") is None
    return plain and any(type(kind).__name__ == "Image" for kind in data.features.values())


def images_of(
    data: Any, columns: Columns, name: str, split: str, skipped: Skipped, decoding: Decoding
) -> HuggingFaceImages:
    """The images of a `datasets.Dataset`, with their labels if it has any.

    Mean and standard deviation are ImageNet's until they are estimated.

    Args:
        data: The data set.
        columns: Columns that are given; by default the first of type Image, and the first of type
            ClassLabel or with a usual name.
        name: Name of the data set.
        split: `train` or `test`.
        skipped: Collects broken images.
        decoding: How they are decoded.

    Raises:
        UserError: if there is no column of images.
    """
    import datasets

    names, kinds = list(data.column_names), data.features
    typed = [each for each in names if isinstance(kinds[each], datasets.Image)]
    image = columns.find("image", names, (), name) or next(iter(typed), None)
    image = image or columns.find("image", names, IMAGES, name)
    if image is None:
        raise UserError(
            f"{name} has the columns {', '.join(map(shown, names))}, of which none holds images; "
            "say which.",
            parameter="image_column",
        )
    kind = str(getattr(kinds[image], "dtype", kinds[image]))
    if image not in typed and kind not in ("binary", "large_binary"):
        raise UserError(
            f"{name}: its column {image!r} is of type {kind}, which is no image.",
            parameter="image_column",
        )
    rest = [each for each in names if each != image]
    classes = [each for each in rest if isinstance(kinds[each], datasets.ClassLabel)]
    label = columns.find("label", rest, (), name) or next(iter(classes), None)
    label = label or columns.find("label", rest, LABELS, name)
    found = None if label is None else _labels(data, label)
    index = None if found is None else found.indices()
    only = data.select_columns([image])
    if image in typed:
        only = only.cast_column(image, datasets.Image(decode=False))
    said = f"images from column {shown(image)}"
    if index is not None and found is not None:
        said += f", labels from {shown(label)}"
    elif label is not None:
        said += f", no labels: {shown(label)} has none for some images, or no whole numbers"
    return HuggingFaceImages(
        name=name, split=split, dataset=only, numbers=torch.arange(len(data)), column=image,
        labels=None if index is None else torch.tensor(index, dtype=torch.int64),
        classes=None if index is None or found is None else found.classes,
        mean=IMAGENET_MEAN, std=IMAGENET_STD, skipped=skipped, decoding=decoding, notes=(said,),
    )  # fmt: skip


def _labels(data: Any, label: str) -> Labels | None:
    table = data.select_columns([label]).with_format("arrow")[:]
    values = table.column(label).to_pylist()
    if any(value is None or not isinstance(value, (int, str)) for value in values):
        return None
    names = getattr(data.features[label], "names", None)
    return Labels(values, tuple(map(str, names)) if names else None)


def load_hf(
    data: str,
    split: str,
    skipped: Skipped,
    decoding: Decoding,
    columns: Columns,
    *,
    train_split: str | None = None,
    test_split: str | None = None,
) -> ImageSet:
    """Read a split of a Hugging Face data set.

    Splits are chosen by their names (see `unmix.data.splits.split_names`); without one to evaluate
    on, a tenth of every class is held out. Images go through the same decoder as files.

    Args:
        data: `hf:NAME`, `hf:NAME:CONFIG`, `hf:NAME@REVISION` or `hf:PATH`; a path was made by
            `save_to_disk`, is laid out as on the Hub, or is a Parquet file.
        split: `train`, `test`, or `pretrain`, which is `train` here.
        skipped: Collects broken images.
        decoding: How images are decoded.
        columns: The columns that are given.
        train_split: Name of the training split.
        test_split: Name of the split to evaluate on.

    Raises:
        UserError: if `datasets` is missing, the data set cannot be read, or has no such split.
    """
    if columns.split is not None and columns.needed:
        raise UserError("does not apply to a Hugging Face data set, which has splits.",
                        parameter="split_column")  # fmt: skip
    parts = _splits(Address.of(data), data)
    train_name, test_name = split_names(list(parts), data, train_split, test_split)
    train = images_of(parts[train_name], columns, data, "train", skipped, decoding)
    held: Tensor | None = None
    kept = train
    if test_name is None and train.labels is not None and train.classes is not None:
        rows = [str(i) for i in range(len(train))]
        kept_rows, held_rows = hold_out(Listing(rows, train.labels.tolist(), train.classes))
        held = torch.tensor([int(i) for i in held_rows.paths], dtype=torch.int64)
        kept = train.picked(torch.tensor([int(i) for i in kept_rows.paths], dtype=torch.int64))
    limits, mean, std = _looked(data, train_name, len(kept), _Held(kept))
    how = replace(decoding, range=decoding.range or limits)
    common: dict[str, Any] = {"mean": mean, "std": std, "decoding": how}
    if split != "test":
        said = _understood(kept, held, train_name, test_name, parts)
        return replace(kept, notes=(f"{said} ({train.notes[0]})",), **common)
    if held is not None:
        return replace(train.picked(held), split="test", notes=(), **common)
    if test_name is None:
        raise UserError(f"{data}: its images have no labels and it has no other split than "
                        f"{train_name}, so it has no test split.", parameter="data")  # fmt: skip
    test = images_of(parts[test_name], columns, data, "test", skipped, decoding)
    if train.classes is not None and test.classes != train.classes:
        raise UserError(f"{data}: the labels of {test_name} are not those of {train_name}.",
                        parameter="test_folder")  # fmt: skip
    return replace(test, name=data, notes=(), **common)


class _Held:
    """Images as an argument of a function whose results are kept: all of them are equal."""

    def __init__(self, images: HuggingFaceImages) -> None:
        self.images = images

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        data = self.images.dataset
        return getattr(data, "_fingerprint", id(data)), self.images.decoding, self.images.column


@lru_cache(maxsize=8)
def _looked(
    data: str, split: str, count: int, held: _Held
) -> tuple[tuple[float, float] | None, RGB, RGB]:
    """Range, mean and standard deviation of the training images."""
    images = replace(held.images, skipped=Skipped())
    limits = images.decoding.range or estimate_range(images)[0]
    images = replace(images, decoding=replace(images.decoding, range=limits))
    return limits, *estimate_mean_std(images)


def _understood(
    train: HuggingFaceImages, held: Tensor | None, name: str, test: str | None, parts: Any
) -> str:
    in_words = in_classes(Listing([], None if train.labels is None else [], train.classes))
    line = f"split: train {len(train):,} images {in_words} from {shown(name)}"
    if held is not None:
        line += f", test {len(held):,} held out of these (a tenth of every class)"
    elif test is not None and train.labels is not None:
        line += f", evaluation on {len(parts[test]):,} from {shown(test)}"
    used = {name, test if train.labels is not None else None}
    unused = [shown(each) for each in parts if each not in used]
    return f"{line}; not used: {', '.join(unused)}" if unused else line


def _splits(address: Address, data: str) -> dict[str, Any]:
    """The splits of a data set by name.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{data} needs the datasets package: pip install 'unmix[hf]'", parameter="data"
        ) from None
    datasets.disable_progress_bars()
    path = as_path(address.name)
    if address.local and not path.exists():
        raise UserError(f"there is no {address.name}.", parameter="data")
    try:
        if not address.local:
            found = datasets.load_dataset(address.name, address.config, revision=address.revision)
        elif path.is_file():
            found = datasets.load_dataset("parquet", data_files=str(path))
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path), address.config)
    except Exception as error:  # of the Hub, of Arrow, of the network
        raise _refused(address, data, error) from error
    if isinstance(found, datasets.Dataset):
        name = str(found.split or "train")
        return {name if name.isidentifier() else "train": found}
    return dict(found)


def _refused(address: Address, data: str, error: Exception) -> UserError:
    kind, text = type(error).__name__, (str(error).splitlines() or [""])[0].rstrip(".")
    if "config" in text.lower() and "missing" in text.lower():
        known = str(error).partition("[")[2].partition("]")[0].replace("'", "")
        return UserError(
            f"{data} has several configurations; give one as hf:{address.name}:CONFIG, of {known}.",
            parameter="data",
        )
    if address.local:
        return UserError(f"{data} cannot be read ({kind}: {text}).", parameter="data")
    revision = f" --revision {address.revision}" if address.revision else ""
    return UserError(
        f"{data} cannot be read from the Hub or its cache ({kind}: {text}). Without a network, run "
        f"`hf download {address.name} --repo-type dataset{revision} --local-dir FOLDER` where "
        "there is one, copy FOLDER here, and give hf:FOLDER.",
        parameter="data",
    )
