"""Images of more than 8 bits: reading their values, and scaling them to 8 bits."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "FULL",
    "Range",
    "deep_values",
    "has_deep_mode",
    "is_deep",
    "is_negative",
    "may_be_deep",
    "to_8_bits",
]

Range = tuple[float, float]
"""The values that become 0 and 255."""

FULL: Range = (0.0, 65535.0)

_EXTENSIONS = frozenset({"png", "apng", "tif", "tiff", "pgm", "pnm", "ppm", "pfm", "jp2", "j2k"})
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_0, _BLACK_IS_0, _RGB = 0, 1, 2


def may_be_deep(path: str) -> bool:
    """Whether the extension is of a format that may have more than 8 bits."""
    return path.rpartition(".")[2].lower() in _EXTENSIONS


def is_deep(image: Image.Image, start: bytes) -> bool:
    """Whether an open image has more than 8 bits per channel.

    Args:
        image: The image, not loaded yet.
        start: First bytes of the file.
    """
    return has_deep_mode(image) or _is_deep_color(image, start)


def has_deep_mode(image: Image.Image) -> bool:
    """Whether a PIL image itself has gray values of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _is_deep_color(image: Image.Image, start: bytes) -> bool:
    # Pillow opens these with 8 bits, the upper ones.
    if image.format == "PNG":
        return len(start) > 25 and start[24] == 16 and start[25] in (2, 4, 6)
    if image.format == "TIFF":
        bits: Any = getattr(image, "tag_v2", {}).get(_BITS, ())
        return len(bits) > 1 and max(bits) > 8
    if image.format == "PPM" and image.mode == "RGB":
        return _greatest(image) > 255
    return False


def _greatest(image: Image.Image) -> int:
    """The greatest value of a PPM or PGM by its header; 255 where Pillow does not say."""
    tiles: Any = getattr(image, "tile", ())
    given = tiles[0][3] if tiles else None
    return given[1] if isinstance(given, tuple) and isinstance(given[1], int) else 255


def is_negative(image: Image.Image) -> bool:
    """Whether 0 is white in a gray TIFF of more than 8 bits; of those of 8, Pillow inverts it."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_0


def deep_values(image: Image.Image, content: bytes) -> np.ndarray:
    """The stored values of an image of more than 8 bits: `(H, W)`, or `(H, W, C)` with C 2 to 4.

    Args:
        image: The image, not loaded yet.
        content: The file's bytes.

    Raises:
        ValueError: if they cannot be read.
    """
    if not has_deep_mode(image):
        if image.format == "PPM":
            return _ppm_color(image, content)
        return _png_color(content) if image.format == "PNG" else _tiff_color(image, content)
    # Pillow rescales a PGM whose maximum is not 65535.
    greatest = _greatest(image) if image.format == "PPM" and image.mode == "I" else 65535
    values = np.asarray(image)
    if greatest != 65535:
        values = np.rint(values * (greatest / 65535)).astype(np.int32)
    return values


def _png_color(content: bytes) -> np.ndarray:
    import torch
    from torchvision.io import ImageReadMode, decode_png

    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_png(encoded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def _ppm_color(image: Image.Image, content: bytes) -> np.ndarray:
    tiles: Any = getattr(image, "tile", ())
    decoder, _, offset, _ = tiles[0]
    count = 3 * image.width * image.height
    if decoder == "ppm_plain":
        values = np.array(content[offset:].split()[:count]).astype(np.uint16)
    else:
        values = np.frombuffer(content, ">u2", count, offset).astype(np.uint16)
    return values.reshape(image.height, image.width, 3)


def _tiff_color(image: Image.Image, content: bytes) -> np.ndarray:
    what = "a color TIFF of more than 8 bits"
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) not in (_BLACK_IS_0, _RGB):
        raise ValueError(f"{what} that is not RGB, but CMYK or the like; save it as RGB")
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
