"""Mean, standard deviation and range of an image set's pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from unmix.data.bit_depth import Range
from unmix.data.decoding import BrokenImage
from unmix.data.imageset import RGB, ImageSet, StreamedImages, TensorImages
from unmix.errors import UserError
from unmix.names import shown

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "check_normalization",
    "estimate_mean_std",
    "estimate_range",
    "even_indices",
    "range_note",
    "with_range",
]

# As used by torchvision's pretrained models and the published ImageNet protocols.
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
"""Mean of ImageNet's training images, RGB in [0, 1], as torchvision has it."""
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet's training images, RGB in [0, 1], likewise."""

# Published values are rounded to three or four decimals.
_SAME = 1e-3
_STRONG_SHIFT = 0.25
_STRONG_SCALE = 1.25
# Small enough to read fast, large enough that the decoder does not smooth the pixels more than the
# resize before training.
_SIDE = 256


def even_indices(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` indices, evenly spaced, the same at every call."""
    return [i * count // limit for i in range(limit)] if count > limit else list(range(count))


def estimate_mean_std(image_set: ImageSet, limit: int = 1000) -> tuple[RGB, RGB]:
    """Estimate the mean and standard deviation of a set's pixels from evenly spaced images.

    All images have the same weight, whatever their size. Broken files are added to the set's
    `skipped`.

    Args:
        image_set: The images.
        limit: Maximum number of images to read.

    Returns:
        Mean and standard deviation, RGB in [0, 1], rounded to four decimals.

    Raises:
        UserError: if there are no images, or none of those tried can be read.
        BrokenImage: if a file cannot be read and the set is strict.
    """
    chosen = even_indices(len(image_set), limit)
    first: BrokenImage | None = None
    shares = np.zeros((3, 256))
    if isinstance(image_set, TensorImages):
        for channel in range(3):
            pixels = image_set.images[chosen, channel].flatten()
            shares[channel] = pixels.bincount(minlength=256).cpu().numpy()
    else:
        assert isinstance(image_set, StreamedImages)
        for i in chosen:
            try:
                image = image_set.decode(i, at_least=_SIDE)
            except BrokenImage as error:
                image_set.skipped.add(error)
                first = first or error
                continue
            shares += np.array(image.histogram()).reshape(3, 256) / (image.width * image.height)
    if not shares.any():
        why = "" if first is None else f" First {first}"
        raise UserError(
            f"{image_set.name}: no image could be read, so its colors are unknown.{why}"
        )
    shares /= shares.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
    return _rounded(mean), _rounded(std)


def estimate_range(image_set: StreamedImages, limit: int = 1000) -> tuple[Range | None, int]:
    """Find the minimum and maximum value of a set's images of more than 8 bits.

    Args:
        image_set: The images.
        limit: Maximum number of images to read, evenly spaced.

    Returns:
        The values, None if no image has more than 8 bits; and the number of images read.
    """
    limits: Range | None = None
    chosen = even_indices(len(image_set), limit)
    for i in chosen:
        try:
            extremes = image_set.value_range(i)
        except BrokenImage:
            continue  # reported when it is read for training
        if extremes is not None:
            both = extremes if limits is None else (*extremes, *limits)
            limits = min(both), max(both)
    return limits, len(chosen)


def range_note(name: str, measured: Range, given: Range | None, sampled: int, total: int) -> str:
    """The line that says which values become black and white.

    Args:
        name: Name of the data.
        measured: Range of the images that were looked at.
        given: The range that is used instead, if one is set.
        sampled: Number of images that were looked at.
        total: Number of all training images.

    Raises:
        UserError: if all pixels have one value.
    """
    of = f"{sampled:,} of {total:,}" if sampled < total else "the"
    low, high = (f"{value:,.6g}" for value in given or measured)
    if given is None and measured[0] == measured[1]:
        raise UserError(
            f"--data: all pixels of {of} training images of {name} have one value, {low}; "
            "there is nothing to learn from them."
        )
    why = f"the range of {of} training images"
    if given is not None:
        why = f"as set; {of} training images have {measured[0]:,g} to {measured[1]:,g}"
    return f"more than 8 bits: values from {low} to {high} become black to white ({why})"


Streamed = TypeVar("Streamed", bound=StreamedImages)


def with_range(images: Streamed) -> Streamed:
    """Images with their own range and a note of it, if they have more than 8 bits and none is set.

    Raises:
        UserError: if all pixels have one value.
    """
    if images.decoding.range is not None:
        return images
    limits, sampled = estimate_range(images)
    if limits is None:
        return images
    notes = (*images.notes, range_note(images.name, limits, None, sampled, len(images)))
    return replace(images, decoding=replace(images.decoding, range=limits), notes=notes)


def check_normalization(image_set: ImageSet, mean: RGB, std: RGB) -> str | None:
    """Compare a given mean and standard deviation with the set's own.

    Returns:
        A warning in one line, which says "strongly" from a difference of a quarter of a standard
        deviation, or of a quarter in the standard deviation itself. None if they agree to 0.001.
    """
    own_mean, own_std = np.array(image_set.mean), np.array(image_set.std)
    new_mean, new_std = np.array(mean, dtype=float), np.array(std, dtype=float)
    if np.allclose(new_mean, own_mean, rtol=0, atol=_SAME) and np.allclose(
        new_std, own_std, rtol=0, atol=_SAME
    ):
        return None
    smallest = 1 / 255  # a constant color has no standard deviation to divide by
    shift = float((np.abs(new_mean - own_mean) / np.maximum(own_std, smallest)).max())
    ratio = np.maximum(new_std, smallest) / np.maximum(own_std, smallest)
    scale = float(np.maximum(ratio, 1 / ratio).max())
    strongly = " strongly" if shift > _STRONG_SHIFT or scale > _STRONG_SCALE else ""
    return (
        f"warning: mean {_text(mean)} and std {_text(std)} differ{strongly} from those of "
        f"{shown(image_set.name)}, mean {_text(image_set.mean)} and std {_text(image_set.std)}: "
        f"its colors arrive shifted by {shift:.2f} and scaled by {scale:.2f}."
    )


def _rounded(values: np.ndarray) -> RGB:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue


def _text(values: RGB) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
