"""From an image file to 8-bit RGB, whatever the file holds."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from unmix.errors import UserError

__all__ = ["BrokenImage", "decode", "orientation", "rgb8"]

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
        # An exception pickles its message alone, and data workers send theirs through a pipe.
        return type(self), (self.path, self.reason)


def decode(
    path: Path, at_least: int | tuple[int, int] | None = None, content: bytes | None = None
) -> Image.Image:
    """Read an image file as 8-bit RGB, the right way up.

    EXIF orientation is applied; transparent pixels are composited on white; 16-bit grey values are
    scaled from [0, 65535] to [0, 255]; of an animation the first frame is read. Pillow's warnings
    are silenced by changing the process's warning filters for a moment, so read in parallel from
    processes, not from threads.

    Args:
        path: The file.
        at_least: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size: the smallest whose
            sides are both at least this many pixels (or width and height as stored, before the
            orientation is applied, at least these).
        content: What the file holds, where that is read already; `path` is then a name only.

    Raises:
        BrokenImage: if the file is empty, truncated, damaged, not an image, or cannot be opened, or
            if its pixels have no agreed range (floating point, or integers beyond 16 bits).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                if at_least is not None:
                    both = (at_least, at_least) if isinstance(at_least, int) else at_least
                    image.draft(None, both)
                image.load()
                return _rgb(_upright(image))
    # On damaged bytes Pillow's readers raise nearly anything: SyntaxError, struct.error, KeyError.
    except Exception as error:
        raise BrokenImage(path, _reason(path, error, content)) from error


def rgb8(image: Image.Image) -> Image.Image:
    """Make an image that is open already 8-bit RGB and upright, as `decode` does.

    Raises:
        ValueError: if its pixels have no agreed range.
        OSError: if they cannot be read.
    """
    return _rgb(_upright(image))


def orientation(image: Image.Image) -> int:
    """Tell the EXIF orientation of an image, 1 to 8; 1 (upright) if it has none that is known.

    Some formats tell it, and TIFF settles it, while the pixels are loaded.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1  # damaged metadata does not make the pixels worse
    return found if found in _TURNS else 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255, so that nearly every 16-bit image turns white.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are integers beyond 16 bits; save it with 8 or 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _reason(path: Path, error: Exception, content: bytes | None) -> str:
    try:
        if (os.path.getsize(path) if content is None else len(content)) == 0:
            return "the file is empty"
    except OSError:
        pass  # the error itself says that the file cannot be reached
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged in its first bytes"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
