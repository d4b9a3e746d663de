"""Single images given in Python: PIL images, arrays, tensors and paths."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmix.data.bit_depth import Range, has_deep_mode
from unmix.data.decoding import Decoding, has_more_bits, rgb8
from unmix.data.imageset import FileImages, Skipped
from unmix.data.reading import read_uint8, resize_batch, resize_image
from unmix.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from unmix.errors import UserError

__all__ = [
    "as_batch",
    "as_picture",
    "as_uint8",
    "given_uint8",
    "is_path",
    "listed",
    "warn_of_unknown_range",
]

Picture = Image.Image | Tensor


def is_path(item: Any) -> bool:
    """Whether an item is a path."""
    return isinstance(item, (str, os.PathLike))


def listed(images: Any) -> Any:
    """An array of text or of objects, such as paths, as a list; anything else as it is."""
    if not isinstance(images, np.ndarray) or images.dtype.kind not in "USO" or not images.ndim:
        return images
    if images.dtype.kind == "S":
        images = np.char.decode(images, sys.getfilesystemencoding(), "surrogateescape")
    return images.tolist()


def as_uint8(images: Any, what: str, ndim: int) -> Tensor:
    """Convert a tensor or an array to pixels uint8 (3, H, W), or a batch to (N, 3, H, W).

    There may be 1 or 3 channels, first or last; gray is repeated.

    Args:
        images: A tensor or a NumPy array.
        what: Its name in messages.
        ndim: 3 for one image, 4 for a batch.

    Raises:
        UserError: if it is not uint8, or its shape is wrong or ambiguous.
    """
    shape, kind = tuple(images.shape), str(images.dtype)
    if kind not in ("uint8", "torch.uint8"):
        hint = "; of pixels in [0, 1] make (255 * x).round(), as uint8" if "float" in kind else ""
        reason = "the views and the normalization are made of pixels from 0 to 255"
        raise UserError(f"{what}: {kind} {shape} must be uint8, for {reason}{hint}.")
    # PyTorch takes no array whose strides are negative, as those of a turned image are.
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(_forward(images))
    first = pixels.ndim == ndim and shape[-3] in (1, 3)
    last = pixels.ndim == ndim and shape[-1] in (1, 3)
    if first == last:
        layout = "(C, H, W) or (H, W, C)" if ndim == 3 else "(N, C, H, W) or (N, H, W, C)"
        why = "is ambiguous" if first else f"is not {layout} with 1 or 3 channels"
        fix = "; give it channels first and at least 4 pixels wide" if first else ""
        raise UserError(f"{what}: the shape {shape} {why}{fix}.")
    pixels = pixels if first else pixels.movedim(-1, -3)
    return pixels.expand(*pixels.shape[:-3], 3, *pixels.shape[-2:]).contiguous()


def _forward(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array) if min(array.strides, default=0) < 0 else array


def as_picture(item: Any, what: str, limits: Range | None = None) -> Picture:
    """Convert one image to an upright RGB PIL image, or to pixels uint8 (3, H, W).

    Args:
        item: A PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W).
        what: Its name in messages.
        limits: Values of PIL images of more than 8 bits that become 0 and 255.

    Raises:
        UserError: if it is none of these, or not of 8 bits.
    """
    if isinstance(item, Image.Image):
        try:
            return rgb8(item, limits)
        except (ValueError, OSError) as error:
            raise UserError(f"{what}: {error}.") from None
    if isinstance(item, np.ndarray) and item.ndim == 2:
        item = item[:, :, None]
    if isinstance(item, (np.ndarray, Tensor)):
        return as_uint8(item, what, 3)
    raise UserError(
        f"{what}: is a {type(item).__name__}; give a PIL image, a uint8 array (H, W, C), a uint8 "
        "tensor (C, H, W) or a path."
    )


def as_batch(images: Any) -> Sequence[Any] | Tensor:
    """Images as a sequence that can be sliced: uint8 (N, 3, H, W), or a list.

    Args:
        images: As for `given_uint8`; any iterable of images works.

    Raises:
        UserError: if it is neither an image nor an iterable, empty, or an invalid batch.
    """
    images = listed(images)
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        batch: Sequence[Any] | Tensor = as_uint8(images, "images", 4)
    elif is_path(images) or isinstance(images, (Image.Image, np.ndarray, Tensor)):
        batch = [images]
    elif isinstance(images, Iterable) and not isinstance(images, Mapping):
        batch = images if isinstance(images, (list, tuple)) else list(images)
    else:
        raise UserError(
            f"images: a {type(images).__name__}; give PIL images, paths, uint8 arrays or tensors."
        )
    if len(batch) == 0:
        raise UserError("images: there are none.")
    return batch


def given_uint8(images: Any, size: int, start: int = 0, limits: Range | None = None) -> Tensor:
    """Read images of any kind as the evaluation does (see `read_uint8`).

    Args:
        images: One of, or a sequence of: PIL images, paths, uint8 arrays (H, W, C), uint8 tensors
            (C, H, W); or a batch of pixels (N, C, H, W) or (N, H, W, C).
        size: Side of the crops, in pixels.
        start: Index of the first image, for messages.
        limits: Values of images of more than 8 bits that become 0 and 255.

    Returns:
        uint8 (N, 3, size, size), on the device of `images` if that is a tensor.

    Raises:
        UserError: if an image cannot be read or has another type or range; it is named.
    """
    batch = as_batch(images)
    if isinstance(batch, Tensor):
        return resize_batch(batch, size)
    pictures = enumerate(batch, start)
    return torch.cat([_one(item, f"image {i}", size, limits) for i, item in pictures])


def warn_of_unknown_range(images: Sequence[Any] | Tensor, remedy: str) -> None:
    """Warn if an image of more than 8 bits is scaled by a range that nobody gave.

    Args:
        images: As `as_batch` gives them.
        remedy: How to give a range.
    """
    if isinstance(images, Tensor) or not any(map(_has_more_bits, images)):
        return
    # By default Python prints a warning once for each line that it comes from.
    warnings.warn(
        "images of more than 8 bits, and the encoder has no range of their values: 0 to 65,535 "
        f"become black to white; `unmix embed` takes the range of all its images; {remedy}",
        stacklevel=3,
    )


def _has_more_bits(item: Any) -> bool:
    if is_path(item):
        return has_more_bits(Path(item))
    return isinstance(item, Image.Image) and has_deep_mode(item)


def _one(item: Any, what: str, size: int, limits: Range | None) -> Tensor:
    if is_path(item):
        path = Path(item)
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the paths of its images.")
        files = FileImages(
            name=os.fspath(path), split="test", labels=None, classes=None, mean=IMAGENET_MEAN,
            std=IMAGENET_STD, paths=[path], skipped=Skipped(strict=True),
            decoding=Decoding(range=limits),
        )  # fmt: skip
        return read_uint8(files, [0], size)[0]
    picture = as_picture(item, what, limits)
    if isinstance(picture, Tensor):
        return resize_batch(picture[None], size)
    return torch.from_numpy(np.array(resize_image(picture, size))).permute(2, 0, 1)[None]
