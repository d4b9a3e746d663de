"""Image formats, by extension and by first bytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["EXTENSIONS", "HEIC", "HEIC_REASON", "extensions", "formats_for", "is_heic"]

HEIC = frozenset({"heic", "heif", "hif"})
HEIC_REASON = "HEIC; convert it, or install pillow-heif"

_TGA = frozenset({"tga", "icb", "vda", "vst"})

EXTENSIONS = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "gif", "webp", "bmp", "dib", "tif", "tiff",
    "pbm", "pgm", "ppm", "pnm", "pfm", "jp2", "j2k", "jpf", "jpx", "j2c", "jpc", "avif", "pcx",
    "qoi", "sgi", *_TGA,
})  # fmt: skip
"""Extensions that are read, in lower case. With pillow-heif also those of `HEIC`."""

# Excluded of Pillow's formats: EPS, which runs Ghostscript; documents, films, icons and fonts; and
# formats that need a library of their own.
_FORMATS = (
    "JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "PCX",
    "QOI", "SGI",
)  # fmt: skip


@lru_cache(maxsize=1)
def _with_heif() -> bool:
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


def extensions() -> frozenset[str]:
    """The extensions of the files that are read, in lower case, without a dot."""
    return EXTENSIONS | HEIC if _with_heif() else EXTENSIONS


@lru_cache(maxsize=4)
def _available(names: tuple[str, ...]) -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in names if name in Image.OPEN)


def formats_for(extension: str) -> tuple[str, ...]:
    """Pillow's names of the formats to try for a file with this extension.

    These are all supported formats, but TGA only for its own extensions: it has no magic bytes, and
    its reader accepts nearly anything.
    """
    names: Iterable[str] = _FORMATS
    if _with_heif():
        names = (*names, "HEIF")
    if extension.lower() in _TGA:
        names = (*names, "TGA")
    return _available(tuple(names))


def is_heic(start: bytes) -> bool:
    """Whether the first 32 bytes of a file are those of HEIC."""
    brands = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
    return start[4:8] == b"ftyp" and start[8:12] in brands and b"avif" not in start[8:32]
