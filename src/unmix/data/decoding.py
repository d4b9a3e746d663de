"""Decoding of image files of any kind to 8-bit RGB."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from unmix.data.bit_depth import (
    FULL,
    Range,
    deep_values,
    has_deep_mode,
    is_deep,
    is_negative,
    may_be_deep,
    to_8_bits,
)
from unmix.data.formats import HEIC_REASON, formats_for, is_heic
from unmix.data.outputs import drawn_by_us
from unmix.errors import UserError
from unmix.files import read_regular

__all__ = [
    "MAX_PIXELS",
    "BrokenImage",
    "Decoding",
    "decode",
    "extremes",
    "gray_range",
    "has_more_bits",
    "opened",
    "orientation",
    "read_image",
    "rgb8",
]

MAX_PIXELS = 178_956_970
"""Twice the number at which Pillow warns, where it refuses by itself: 512 MiB as RGB."""

_STARTS = 200
_BYTES_PER_PIXEL, _METADATA = 8, 1 << 26  # of the largest file that is read: 16-bit RGBA

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(UserError):  # noqa: N818 - it says what the image is
    """An image file that cannot be read.

    Args:
        path: The file.
        reason: Why, in a few words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenImage], tuple[Path, str]]:
        # Exceptions pickle their message alone, and data workers send them through a pipe.
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Decoding:
    """How files are decoded.

    Attributes:
        max_pixels: Maximum number of pixels of an image; larger ones are refused.
        range: Values of images of more than 8 bits that become 0 and 255; None for the whole range
            of 16 bits.
    """

    max_pixels: int = MAX_PIXELS
    range: Range | None = None

    @property
    def max_bytes(self) -> int:
        """Size of the largest file that can be an image of `max_pixels`."""
        return self.max_pixels * _BYTES_PER_PIXEL + _METADATA


def read_image(path: Path, decoding: Decoding = Decoding()) -> bytes:
    """Read an encoded image.

    Args:
        path: The file.
        decoding: Bounds the size of the file, by `max_pixels`.

    Raises:
        BrokenImage: if it cannot be read, is not a regular file, or has more bytes than an image
            that is allowed.
    """
    try:
        return read_regular(path, decoding.max_bytes)
    except OSError as error:
        raise BrokenImage(path, error.strerror or type(error).__name__) from error


def decode(
    path: Path,
    at_least: int | tuple[int, int] | None = None,
    content: bytes | None = None,
    decoding: Decoding = Decoding(),
) -> Image.Image:
    """Decode an image file to upright 8-bit RGB.

    EXIF orientation is applied; transparent pixels are composited on white; values of more than 8
    bits are scaled (see `Decoding`); of an animation the first frame is used. Not thread-safe,
    since the process's warning filters are changed meanwhile; use processes.

    Args:
        path: The file.
        at_least: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size: the smallest whose
            sides are both at least this many pixels (or width and height as stored, before the
            orientation is applied, at least these).
        content: The file's bytes, if they are read already; `path` is then a name only.
        decoding: How to decode.

    Raises:
        BrokenImage: if the file is empty, truncated, damaged, not an image, or cannot be opened, if
            it has too many pixels or channels that are not colors, if the range of its pixels is
            unknown (floating point, or integers of more than 16 bits, without `decoding.range`),
            or if it is a figure drawn by unmix.
    """
    content = read_image(path, decoding) if content is None else content
    try:
        with opened(path, content, decoding) as image:
            if at_least is not None:
                both = (at_least, at_least) if isinstance(at_least, int) else at_least
                image.draft(None, both)
            start = content[:_STARTS]
            if drawn_by_us(start):
                raise ValueError("a figure drawn by unmix, not an image")
            if is_deep(image, start):
                return _of_deep(image, content, decoding.range)
            image.load()
            return _rgb(_upright(image))
    # On damaged files Pillow raises exceptions of many kinds: SyntaxError, struct.error, KeyError.
    except Exception as error:
        raise BrokenImage(path, _reason(error, content)) from error


def rgb8(image: Image.Image, limits: Range | None = None) -> Image.Image:
    """Convert an open image to upright 8-bit RGB, as `decode` does.

    Args:
        image: An image of any mode.
        limits: See `Decoding.range`.

    Raises:
        ValueError: if the range of its pixels is unknown.
        OSError: if they cannot be read.
    """
    if has_deep_mode(image):
        turn = _TURNS.get(orientation(image))
        values = np.asarray(image)
        scaled = _with_alpha(_gray(image, values, limits), values, image)
        small = Image.fromarray(scaled)
        return _rgb(small if turn is None else small.transpose(turn))
    return _rgb(_upright(image))


@contextmanager
def opened(path: Path, content: bytes, decoding: Decoding = Decoding()) -> Iterator[Image.Image]:
    """Open an image of a supported format, and check its size before it is decoded.

    Raises:
        ValueError: if it has too many pixels, or channels that are not colors.
        Exception: any exception of Pillow.
    """
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow's own limit is global to the process.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            formats = formats_for(path.suffix[1:])
            with Image.open(io.BytesIO(content), formats=formats) as image:
                _check(image, decoding)
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def gray_range(path: Path, content: bytes, decoding: Decoding) -> Range | None:
    """Minimum and maximum value of an image of more than 8 bits; None for other images.

    Raises:
        BrokenImage: if it cannot be read.
    """
    try:
        with opened(path, content, decoding) as image:
            if not is_deep(image, content[:_STARTS]):
                return None
            return extremes(_colors(deep_values(image, content)))
    except Exception as error:
        raise BrokenImage(path, _reason(error, content)) from error


def extremes(values: np.ndarray) -> Range | None:
    """Minimum and maximum of values, without those that are no numbers; None if there are none."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


def has_more_bits(path: Path) -> bool:
    """Whether a file is an image of more than 8 bits, by its first bytes; False if unreadable."""
    if not may_be_deep(path.name):
        return False
    try:
        content = read_image(path)
        with opened(path, content) as image:
            return is_deep(image, content[:_STARTS])
    except Exception:
        return False  # told where it is decoded


def _check(image: Image.Image, decoding: Decoding) -> None:
    count = image.width * image.height
    if count > decoding.max_pixels:
        raise ValueError(
            f"{image.width:,} x {image.height:,} pixels are {count:,}, more than --max_pixels "
            f"{decoding.max_pixels}; give a larger --max_pixels if the file can be trusted"
        )
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        bands = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        # Pillow would drop a fourth band that is not an alpha channel.
        if bands > len(image.getbands()):
            raise ValueError(_BANDS.format(bands=bands))


_BANDS = (
    "a TIFF with {bands} bands; gray, RGB and an alpha channel are read: save three of its bands "
    "as RGB, or one as gray"
)


def _colors(values: np.ndarray) -> np.ndarray:
    """Values without the alpha channel, if any."""
    return values[..., :-1] if values.ndim == 3 and values.shape[2] in (2, 4) else values


def _gray(image: Image.Image, values: np.ndarray, limits: Range | None) -> np.ndarray:
    scaled = to_8_bits(values, limits)
    return 255 - scaled if is_negative(image) else scaled


def _of_deep(image: Image.Image, content: bytes, limits: Range | None) -> Image.Image:
    turned = orientation(image)
    values = deep_values(image, content)
    scaled = (
        _gray(image, values, limits) if values.ndim == 2 else to_8_bits(_colors(values), limits)
    )
    if values.ndim == 3 and values.shape[2] in (2, 4):
        alpha = to_8_bits(values[..., -1:], FULL)
        scaled = np.concatenate([scaled, alpha], axis=2)
    elif values.ndim == 3 and values.shape[2] != 3:
        raise ValueError(_BANDS.format(bands=values.shape[2]))
    else:
        scaled = _with_alpha(scaled, values, image)
    # Pillow applies a TIFF's orientation while it loads the pixels.
    turned = orientation(image) if has_deep_mode(image) else turned
    small = Image.fromarray(scaled)
    turn = _TURNS.get(turned)
    return _rgb(small if turn is None else small.transpose(turn))


def _with_alpha(scaled: np.ndarray, values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Add an alpha channel if a gray value, or an RGB color, of the file is transparent."""
    clear = image.info.get("transparency")
    if values.ndim == 2 and isinstance(clear, int):
        opaque = values != clear
    elif values.ndim == 3 and isinstance(clear, tuple):
        opaque = (values != np.array(clear)).any(axis=2)
    else:
        return scaled
    return np.dstack([scaled, opaque * np.uint8(255)])


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 (upright) if it has no valid one.

    Some formats know it only after the pixels are loaded, and TIFF has applied it then.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1  # damaged metadata does not affect the pixels
    return orientation if orientation in _TURNS else 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception, content: bytes) -> str:
    if not content:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(content)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _unidentified(content: bytes) -> str:
    start = content[:_STARTS]
    if is_heic(start):
        return HEIC_REASON
    if start.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "PostScript, which is not supported; convert it to PNG or JPEG"
    if start[:4] in (b"II*\0", b"MM\0*"):
        bands = _tiff_bands(content)
        if bands > 1:
            return _BANDS.format(bands=bands)
    return "not an image, or damaged in its first bytes"


def _tiff_bands(content: bytes) -> int:
    """Number of bands of a TIFF that Pillow cannot open; 0 if unknown."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        file = io.BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        return int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 0))
    except Exception:
        return 0
