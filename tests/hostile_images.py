"""Hostile image files: some 200 of every kind, the same ones at every call."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SEED = 14


def _pixels(height: int = 24, width: int = 24, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(SEED)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image as a file of a kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _png(width: int, height: int, body: bytes = b"", color: int = 2, depth: int = 8) -> bytes:
    """A PNG whose header says any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(body, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _gif(width: int, height: int) -> bytes:
    """A GIF of one pixel's data, whose header says any size."""
    frame = struct.pack("<HHHHB", 0, 0, width, height, 0)
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
        + b"," + frame + b"\x02\x02\x4c\x01\0;"
    )  # fmt: skip


def _tiff(width: int, height: int) -> bytes:
    """A TIFF whose tags say any size, and whose pixels lie beyond its end."""
    tags = (
        (256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 4, height), (279, 4, width * height & 0xFFFFFFFF),
    )  # fmt: skip
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + body + b"\0" * 4


def _bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 12, 0, 0, 54) + header + b"\0" * 12


def _exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def hostile_files() -> dict[bytes, bytes]:
    """The contents of the files by name; without what is no regular file (see `make`)."""
    rgb = Image.fromarray(_pixels())
    gray = Image.fromarray(_pixels()[..., 0])
    good = {
        "jpg": encoded(rgb, "JPEG"), "png": encoded(rgb, "PNG"), "gif": encoded(rgb, "GIF"),
        "webp": encoded(rgb, "WEBP"), "tif": encoded(rgb, "TIFF"), "bmp": encoded(rgb, "BMP"),
        "ppm": encoded(rgb, "PPM"),
    }  # fmt: skip
    found: dict[str, bytes] = {}
    random = np.random.default_rng(SEED)
    for kind, content in good.items():
        for tenth in range(10):
            found[f"cut-{tenth}.{kind}"] = content[: len(content) * tenth // 10]
        for i in range(6):
            damaged = bytearray(content)
            for at in random.integers(len(content), size=1 + 4 * i):
                damaged[at] = random.integers(256)
            found[f"damaged-{i}.{kind}"] = bytes(damaged)
        found[f"magic.{kind}"] = b"\0\0\0\0" + content[4:]
        found[f"trailing.{kind}"] = content + b"\0" * 10_000
        found[f"zeros.{kind}"] = b"\0" * 5_000
        found[f"text.{kind}"] = b"<html>not found</html>"
    for name, content in good.items():  # of another kind than their names say
        found[f"really-{name}.jpeg"] = content
    for side in (20_000, 60_000):
        found[f"bomb-{side}.png"] = _png(side, side, b"\0" * 10_000)
        found[f"bomb-{side}.gif"] = _gif(side, side)
        found[f"bomb-{side}.tif"] = _tiff(side, side)
        found[f"bomb-{side}.bmp"] = _bmp(side, side)
        found[f"row-{side}.png"] = _png(side, 1, b"\0" * (1 + 3 * side))
        found[f"column-{side}.png"] = _png(1, side, b"\0\1\2\3" * side)
    found["bomb-most.png"] = _png(2**31 - 1, 2**31 - 1)
    found["bomb-bits.png"] = _png(30_000, 30_000, b"\0" * 1_000_000, color=0, depth=1)
    found["bomb-text.png"] = good["png"][:33] + _text_bomb() + good["png"][33:]
    found["cmyk.jpg"] = encoded(rgb.convert("CMYK"), "JPEG")
    found["deep.png"] = encoded(Image.fromarray(_pixels()[..., 0].astype(np.uint16) * 257), "PNG")
    found["float.tif"] = encoded(Image.fromarray(_pixels()[..., 0].astype(np.float32)), "TIFF")
    found["nan.tif"] = encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF")
    found["gray.jpg"], found["gray.png"] = encoded(gray, "JPEG"), encoded(gray, "PNG")
    found["one-bit.png"] = encoded(gray.convert("1"), "PNG")
    found["palette.png"] = encoded(rgb.convert("P"), "PNG")
    found["palette-clear.png"] = encoded(rgb.convert("P"), "PNG", transparency=0)
    found["alpha.png"] = encoded(rgb.convert("RGBA"), "PNG")
    found["gray-alpha.png"] = encoded(gray.convert("LA"), "PNG")
    frames = [Image.fromarray(_pixels() ^ i) for i in range(5)]
    for kind, name in (("GIF", "gif"), ("WEBP", "webp"), ("PNG", "png"), ("TIFF", "tif")):
        more = {"save_all": True, "append_images": frames}
        found[f"animated.{name}"] = encoded(rgb, kind, **more)
    for turn in (*range(9), 255):
        found[f"turned-{turn}.jpg"] = encoded(rgb, "JPEG", exif=_exif(turn))
    found["exif-large.jpg"] = encoded(rgb, "JPEG", exif=b"Exif\0\0" + b"M" * 60_000)
    found["icc-large.jpg"] = encoded(rgb, "JPEG", icc_profile=b"\0" * 2_000_000)
    found["icc-large.png"] = encoded(rgb, "PNG", icc_profile=b"\0" * 2_000_000)
    found["one.png"] = encoded(Image.fromarray(_pixels(1, 1)), "PNG")
    found["none.png"] = _png(0, 0)
    found["no-data.png"] = _png(24, 24)
    found["line\nbreak.png"] = found["\x1b[31mred.png"] = good["png"]
    found["\u202egnp.jpg"] = found["$(touch x).jpg"] = found["<script>.jpg"] = good["jpg"]
    named = {os.fsencode(name): content for name, content in found.items()}
    named[b"not-utf8-\xff\xfe.jpg"] = good["jpg"]
    return named


def _text_bomb() -> bytes:
    """A chunk of compressed text that is a thousand times as large when it is unpacked."""
    content = b"Comment\0\0" + zlib.compress(b"\0" * 50_000_000, 9)
    crc = struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return struct.pack(">I", len(content)) + b"zTXt" + content + crc


def make(folder: Path) -> int:
    """Write all hostile files of a folder, and what is no regular file; gives their number.

    Half of them are in a class `a`, half in `b`; some have no place in a class.
    """
    files = hostile_files()
    for i, (name, content) in enumerate(files.items()):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / os.fsdecode(name)).write_bytes(content)
    inside = folder / "a"
    os.mkfifo(inside / "fifo.jpg")
    (inside / "folder.jpg").mkdir()
    (inside / "zero.jpg").symlink_to("/dev/zero")
    (inside / "stdin.jpg").symlink_to("/dev/stdin")
    (inside / "gone.jpg").symlink_to("nowhere.jpg")
    (inside / "itself.jpg").symlink_to("itself.jpg")
    (inside / "loop").symlink_to(folder)
    with (inside / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    return len(files) + 8
