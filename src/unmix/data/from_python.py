"""Python objects as image sets: data sets, pixels, lists of paths."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from unmix.data.bit_depth import Range, has_deep_mode
from unmix.data.columns import Columns
from unmix.data.decoding import BrokenImage, Decoding, extremes
from unmix.data.hf import HuggingFaceImages, images_of, is_encoded
from unmix.data.imageset import FileImages, ImageSet, Skipped, StreamedImages, TensorImages
from unmix.data.paths import Paths
from unmix.data.python_images import as_picture, as_uint8, is_path, listed
from unmix.data.python_labels import Labels, checked, columns_of, labels_of, unused
from unmix.data.statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    estimate_mean_std,
    estimate_range,
    even_indices,
    with_range,
)
from unmix.errors import UserError
from unmix.names import PYTHON

__all__ = ["DatasetImages", "check_sendable", "evaluation_images", "from_python"]

_SAMPLE = 16
_PROBED = 64
_PLAIN: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetImages(StreamedImages):
    """The images of a map-style data set given in Python.

    Args:
        dataset: Its items are an image, a tuple that starts with one, or a dict.
        numbers: Indices of the items, int64 (N,).
        column: Key of the image if items are dicts; else None.
    """

    dataset: Any
    numbers: Tensor
    column: str | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def _picked(self, index: Tensor) -> dict[str, Any]:
        return {"numbers": self.numbers[index]}

    def place(self, i: int) -> Path:
        """Name of item `i` in messages."""
        return Path(f"{self.name}[{int(self.numbers[i])}]")

    def read(self, i: int) -> bytes:
        """Item `i` encoded as a portable pixmap (PPM), which is not compressed.

        Raises:
            BrokenImage: if the data set raises an exception, or returns no image.
        """
        try:
            picture = self.picture(i)
        except Exception as error:
            raise self._broken(i, error) from error
        if isinstance(picture, Image.Image):
            pixels: Any = np.asarray(picture)
        else:
            pixels = picture.permute(1, 2, 0).contiguous().cpu().numpy()
        height, width = pixels.shape[:2]
        return f"P6 {width} {height} 255\n".encode() + pixels.tobytes()

    def picture(self, i: int) -> Image.Image | Tensor:
        """Item `i` of the data set.

        Raises:
            UserError: if it is not an image.
        """
        return as_picture(self._item(i), "its picture", self.decoding.range)

    def _item(self, i: int) -> Any:
        item = self.dataset[int(self.numbers[i])]
        if self.column is not None:
            return item[self.column]
        return item[0] if isinstance(item, (tuple, list)) else item

    def _broken(self, i: int, error: Exception) -> BrokenImage:
        # A data set may raise any exception.
        text = str(error).splitlines()
        return BrokenImage(self.place(i), text[0] if text else type(error).__name__)

    def value_range(self, i: int) -> Range | None:
        """Minimum and maximum value of item `i` if it is a PIL image of more than 8 bits.

        Raises:
            BrokenImage: if the data set raises an exception.
        """
        try:
            item = self._item(i)
            is_image = isinstance(item, Image.Image)
            return extremes(np.asarray(item)) if is_image and has_deep_mode(item) else None
        except Exception as error:
            raise self._broken(i, error) from error

    def digest(self) -> bytes:
        """Digest of the pixels of some images; empty if they differ from call to call."""
        digests = []
        for _ in range(2):
            digest = hashlib.blake2b(digest_size=16)
            for i in even_indices(len(self), _SAMPLE):
                try:
                    digest.update(self.read(i))
                except BrokenImage:
                    digest.update(b"broken")
            digests.append(digest.digest())
        return digests[0] if digests[0] == digests[1] else b""


def from_python(
    data: Any,
    split: str,
    what: str = "data",
    *,
    strict: bool = False,
    decoding: Decoding | None = None,
) -> ImageSet:
    """Make an image set of a Python object.

    Args:
        data: One of
            - a map-style data set or a sequence, whose items are an image, a tuple (image,
              label, ...) or a dict with an image: PIL images, uint8 arrays (H, W, C), or uint8
              tensors (C, H, W),
            - a Hugging Face `datasets.Dataset` with a column of images,
            - pixels, uint8 (N, C, H, W) or (N, H, W, C), or a pair (pixels, labels),
            - a list or array of paths, or of pairs (path, label).
        split: "train" or "test".
        what: Name of the argument, for messages.
        strict: Whether the first image that cannot be read ends the run.
        decoding: How images are decoded; without a range that of the training images is measured.

    Returns:
        The image set; its name is `python:` and the kind of data.

    Raises:
        UserError: if it is none of these, or its images are not of 8 bits.
    """
    _check_kind(data, what)
    if isinstance(data, TensorDataset):
        data = data.tensors if len(data.tensors) > 1 else data.tensors[0]
    data = listed(data)
    pixels, labels = data, None
    if _is_pair(data):
        pixels, labels = data
    if isinstance(pixels, (Tensor, np.ndarray)):
        return _of_pixels(pixels, labels, split, what)
    if len(data) == 0:
        raise UserError(f"{what}: holds no images.")
    try:
        first = data[0]
    except (KeyError, IndexError) as error:  # as of a table, whose keys are its columns' names
        raise UserError(
            f"{what}: a {type(data).__name__} without an item 0; its items must be numbered from "
            "0, as those of a list of paths or of pairs (path, label) are."
        ) from error
    how: dict[str, Any] = {"skipped": Skipped(strict), "decoding": decoding or Decoding()}
    if isinstance(data, (list, tuple)) and is_path(_image_of(first)):
        return _of_paths(data, split, what, how)
    return _of_dataset(data, first, split, what, how)


def evaluation_images(
    data: Any, train: ImageSet, *, strict: bool = False, decoding: Decoding | None = None
) -> ImageSet:
    """Make an image set to evaluate on, with the classes of the training images.

    Args:
        data: As for `from_python`.
        train: The training images; their range of values is used here too.
        strict: As for `from_python`.
        decoding: Likewise.

    Raises:
        UserError: if it has no labels, or a class that is not in the training images.
    """
    if isinstance(train, StreamedImages):
        decoding = train.decoding
    test = from_python(data, "test", "test_data", strict=strict, decoding=decoding)
    if train.labels is None or train.classes is None:
        raise UserError("test_data: data has no labels, so nothing can be evaluated; leave it out.")
    if test.labels is None or test.classes is None:
        raise UserError("test_data: has no labels; give images with their labels.")
    number = {name: i for i, name in enumerate(train.classes)}
    if not any(name.isdigit() for name in train.classes):
        # Numbers without names, for a data set with names of classes.
        number.update({str(i): i for i in range(len(train.classes))})
    other = next((name for name in test.classes if name not in number), None)
    if other is not None:
        raise UserError(f"test_data: has a class {other!r}, which data does not have.")
    places = torch.tensor([number[name] for name in test.classes])
    return replace(test, labels=places[test.labels], classes=train.classes)


def check_sendable(images: ImageSet, workers: int | None) -> None:
    """Check that a data set can be pickled for data workers, if they are not forked.

    Raises:
        UserError: if not, with what to do.
    """
    method = torch.multiprocessing.get_start_method()
    if not isinstance(images, DatasetImages) or workers == 0 or method == "fork":
        return
    try:
        pickle.dumps(images.dataset)
    except Exception as error:  # pickle raises exceptions of many kinds
        text = str(error).splitlines()
        raise UserError(
            f"workers: the data set cannot be sent to worker processes "
            f"({text[0] if text else type(error).__name__}); define its class and functions at the "
            "top of a module, or use workers=0."
        ) from None


def _check_kind(data: Any, what: str) -> None:
    """Refuse objects that cannot be indexed by integers.

    Raises:
        UserError: with what to give instead.
    """
    kind = type(data).__name__
    if isinstance(data, DataLoader):
        raise UserError(f"{what}: a DataLoader; give its data set, {what}=loader.dataset.")
    if isinstance(data, Mapping):
        known = [str(key) for key in data]
        more = f", {known[1]!r} as test_data" if len(known) > 1 else ""
        raise UserError(
            f"{what}: a {kind} of {', '.join(known) or 'nothing'}; give one of its parts"
            + (f", as {what}=x[{known[0]!r}]{more}." if known else ".")
        )
    if isinstance(data, (Tensor, np.ndarray)):
        return
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise UserError(
            f"{what}: a {kind} cannot be indexed by integers; give a data set with __len__ and "
            "__getitem__, pixels uint8 (N, C, H, W), a list of paths, or a folder."
        )


def _is_pair(data: Any) -> bool:
    """Whether an object is a pair (pixels, labels)."""
    return (
        isinstance(data, tuple)
        and len(data) == 2
        and isinstance(data[0], (Tensor, np.ndarray))
        and data[0].ndim == 4
    )


def _image_of(item: Any) -> Any:
    return item[0] if isinstance(item, (tuple, list)) and item else item


def _of_pixels(pixels: Any, labels: Any, split: str, what: str) -> ImageSet:
    images = as_uint8(pixels, what, 4).cpu()
    named = None if labels is None else checked(labels, None, len(images))
    if labels is not None and named is None:
        values = labels if isinstance(labels, (Tensor, np.ndarray)) else np.array(labels, object)
        raise UserError(
            f"{what}: its labels are {values.dtype} {tuple(values.shape)}; they must be whole "
            f"numbers or names, ({len(images)},)."
        )
    kind = "tensor" if isinstance(pixels, Tensor) else "array"
    whole = TensorImages(
        name=f"{PYTHON}{kind}", split=split, labels=None, classes=None, images=images, **_PLAIN
    )
    return _completed(whole, named, what)


def _of_paths(data: Sequence[Any], split: str, what: str, how: dict[str, Any]) -> ImageSet:
    paths = [os.fspath(_image_of(item)) for item in data]
    missing = next((path for path in paths if not os.path.isfile(path)), None)
    if missing is not None:
        raise UserError(f"{what}: there is no file {missing}.")
    given = [item[1] for item in data if isinstance(item, (tuple, list)) and len(item) > 1]
    labels = checked(given, None, len(data))
    notes = (unused(what),) if given and labels is None else ()
    files = FileImages(
        name=f"{PYTHON}paths", split=split, labels=None, classes=None,
        paths=Paths([os.path.abspath(path) for path in paths]), notes=notes, **how, **_PLAIN,
    )  # fmt: skip
    return _completed(files, labels, what)


def _of_dataset(data: Any, first: Any, split: str, what: str, how: dict[str, Any]) -> ImageSet:
    if is_encoded(data):
        # Read encoded, so that broken images, bit depth and EXIF are as in files.
        name = f"{PYTHON}{_kind_of(data)}"
        encoded = images_of(data, Columns(), name, split, **how)
        return _completed(encoded, None, what)
    column, label = columns_of(data, first, what)
    labels, note = labels_of(data, first, label, what)
    images = DatasetImages(
        name=f"{PYTHON}{_kind_of(data)}", split=split, labels=None, classes=None, dataset=data,
        numbers=torch.arange(len(data)), column=column, notes=() if note is None else (note,),
        **how, **_PLAIN,
    )  # fmt: skip
    # Reading a thousand items twice may take long: a few tell whether any has a range.
    if split != "test" and estimate_range(images, _PROBED)[0] is not None:
        images = with_range(images)
    try:
        images.picture(0)
    except UserError as error:
        raise UserError(
            f"{what}[0]: {error} The views are made by unmix: leave ToTensor, Normalize and crops "
            "out of the data set's transform."
        ) from None
    return _completed(images, labels, what)


def _kind_of(data: Any) -> str:
    """Name of a data set: of its class, or of Hugging Face's builder."""
    info = getattr(data, "info", None)
    name = getattr(info, "dataset_name", None)
    return str(name) if isinstance(name, str) and name else type(data).__name__


def _completed(images: ImageSet, labels: Labels | None, what: str) -> ImageSet:
    """Add labels, and the mean and standard deviation of the images' own pixels."""
    if labels is not None and (indices := labels.indices()) is not None:
        index = torch.tensor(indices, dtype=torch.int64)
        images = replace(images, labels=index, classes=labels.classes)
    elif labels is not None:
        images = replace(images, notes=(*images.notes, unused(what, "some are negative")))
    if images.split == "test":
        return images
    if isinstance(images, (FileImages, HuggingFaceImages)):
        images = with_range(images)
    mean, std = estimate_mean_std(images)
    if max(std) > 0:
        floor = 1 / 255  # a constant channel has no standard deviation to divide by
        red, green, blue = (max(value, floor) for value in std)
        std = red, green, blue
    return replace(images, mean=mean, std=std)
