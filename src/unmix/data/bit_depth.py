"""Images of more than 8 bits: reading their values, and scaling them to 8 bits."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["FULL", "Range", "deep_values", "is_deep", "may_be_deep", "to_8_bits"]

Range = tuple[float, float]
"""The values that become 0 and 255."""

FULL: Range = (0.0, 65535.0)

_EXTENSIONS = frozenset({"png", "apng", "tif", "tiff", "pgm", "pnm", "ppm", "pfm", "jp2", "j2k"})
_BITS, _SAMPLES = 258, 277  # tags of TIFF


def may_be_deep(path: str) -> bool:
    """Whether the extension is of a format that may have more than 8 bits."""
    return path.rpartition(".")[2].lower() in _EXTENSIONS


def is_deep(image: Image.Image, start: bytes) -> bool:
    """Whether an open image has more than 8 bits per channel.

    Args:
        image: The image, not loaded yet.
        start: First bytes of the file.
    """
    return image.mode == "F" or image.mode.startswith("I") or _is_deep_color(image, start)


def _is_deep_color(image: Image.Image, start: bytes) -> bool:
    # Pillow opens these with 8 bits, the upper ones.
    if image.format == "PNG":
        return len(start) > 25 and start[24] == 16 and start[25] in (2, 4, 6)
    if image.format == "TIFF":
        bits: Any = getattr(image, "tag_v2", {}).get(_BITS, ())
        return len(bits) > 1 and max(bits) > 8
    return False


def deep_values(image: Image.Image, content: bytes) -> np.ndarray:
    """The stored values of an image of more than 8 bits: `(H, W)`, or `(H, W, C)` with C 2 to 4.

    Args:
        image: The image, not loaded yet.
        content: The file's bytes.

    Raises:
        ValueError: if they cannot be read.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return _png_color(content) if image.format == "PNG" else _tiff_color(content)
    # Pillow rescales a PGM whose maximum is not 65535.
    tiles: Any = getattr(image, "tile", ())
    greatest = tiles[0][3][1] if image.format == "PPM" and image.mode == "I" else None
    values = np.asarray(image)
    if isinstance(greatest, int) and greatest != 65535:
        values = np.rint(values * (greatest / 65535)).astype(np.int32)
    return values


def _png_color(content: bytes) -> np.ndarray:
    import torch
    from torchvision.io import ImageReadMode, decode_png

    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_png(encoded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def _tiff_color(content: bytes) -> np.ndarray:
    what = "a color TIFF of more than 8 bits"
    try:
        import tifffile
    except ImportError:
        raise ValueError(f"{what}; install tifffile, or save it with 8 bits or as PNG") from None
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            values = page.asarray()
            planar = page.axes[:1] == "S"
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{what} that cannot be read ({reason}); save it as PNG") from error
    return np.moveaxis(values, 0, -1) if planar else values


def to_8_bits(values: np.ndarray, limits: Range | None) -> np.ndarray:
    """Scale values from a range to 0 to 255, rounded and clipped.

    Args:
        values: Values of any type.
        limits: Values that become 0 and 255; None for 0 and 65,535, of 16-bit integers.

    Raises:
        ValueError: if there is no range and the values are not 16-bit integers.
    """
    if limits is None:
        if values.dtype.kind == "f":
            raise ValueError(
                "its pixels are floating-point numbers; give --range LOW HIGH, or save it with 8 "
                "or 16 bits"
            )
        if values.dtype != np.uint16 and (values.min() < 0 or values.max() > 65535):
            raise ValueError(
                "its pixels are integers of more than 16 bits; give --range LOW HIGH, or save it "
                "with 8 or 16 bits"
            )
        limits = FULL
    if values.dtype == np.uint16:
        return _table(limits)[values]
    return _scaled(values, limits)


@lru_cache(maxsize=8)
def _table(limits: Range) -> np.ndarray:
    return _scaled(np.arange(65536), limits)


def _scaled(values: np.ndarray, limits: Range) -> np.ndarray:
    low, high = limits
    numbers = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((numbers.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)
