"""Every kind of image file becomes 8-bit RGB, or one clear error."""

from __future__ import annotations

import ast
import csv
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageOps

import unmix
from unmix.data import BrokenImage, Decoding, FileImages, Skipped, decode
from unmix.data.formats import EXTENSIONS
from unmix.data.opened import OpenedImage
from unmix.errors import UserError
from unmix.figures.saving import render
from unmix.names import restored


@pytest.fixture
def pixels() -> np.ndarray:
    """RGB noise, 12 x 20."""
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def decoded(path: Path) -> np.ndarray:
    image = decode(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def image_set(*paths: Path, strict: bool = False) -> FileImages:
    return FileImages(
        name="files",
        split="train",
        labels=None,
        classes=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        paths=paths,
        skipped=Skipped(strict),
    )


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "ppm"])
def test_lossless_rgb_files_come_back_unchanged(tmp_path, pixels, extension):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels).save(path)
    assert np.array_equal(decoded(path), pixels)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_gray_images_get_three_equal_channels(tmp_path, pixels, extension):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels[..., 0]).save(path)
    found = decoded(path)
    assert np.array_equal(found[..., 0], np.asarray(Image.open(path)))
    assert np.array_equal(found, found[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize("extension", ["jpg", "tif"])
def test_cmyk_is_converted_not_reinterpreted(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(path)
    found = decoded(path).reshape(-1, 3).mean(0)
    assert np.allclose(found, (0, 255, 255), atol=3)  # pure cyan


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_gray_is_scaled_to_8_bits_not_clipped(tmp_path, extension):
    values = np.linspace(0, 65535, 240).round().astype(np.uint16).reshape(12, 20)
    path = tmp_path / f"a.{extension}"
    Image.fromarray(values).save(path)
    assert np.array_equal(decoded(path)[..., 1], np.round(values / 257).astype(np.uint8))


def test_big_endian_16_bit_tiff_is_read_with_its_own_byte_order(tmp_path):
    values = np.arange(0, 65280, 256, dtype=">u2").reshape(15, 17)
    Image.frombytes("I;16B", (17, 15), values.tobytes()).save(tmp_path / "a.tif")
    expected = np.round(values.astype(float) / 257).astype(np.uint8)
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], expected)


def test_pixels_without_an_agreed_range_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tif")
    Image.new("I", (4, 4), 70000).save(tmp_path / "int32.tif")
    with pytest.raises(BrokenImage, match="floating-point"):
        decode(tmp_path / "float.tif")
    with pytest.raises(BrokenImage, match="more than 16 bits"):
        decode(tmp_path / "int32.tif")


def test_bilevel_images_are_black_and_white(tmp_path):
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "a.png")
    assert np.array_equal(decoded(tmp_path / "a.png")[..., 2], np.eye(8, dtype=np.uint8) * 255)


def test_a_palette_is_looked_up(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize(
    ("mode", "half"),
    [("RGBA", (0, 0, 0, 128)), ("LA", (0, 128))],
)
def test_transparent_pixels_are_composited_on_white(tmp_path, mode, half):
    image = Image.new(mode, (3, 1), (0,) * len(half))
    image.putpixel((1, 0), half)
    image.putpixel((2, 0), (*half[:-1], 255))
    image.save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png")[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_transparent_palette_entry_is_white(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=transparency)
    assert decoded(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_a_transparent_color_of_an_rgb_png_is_white(tmp_path):
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert decoded(tmp_path / "a.png").tolist() == [[[255, 255, 255], [9, 9, 9]]]


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert decoded(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_exif_orientation_is_applied_once_as_pillow_applies_it(
    tmp_path, pixels, extension, orientation
):
    path = tmp_path / f"a.{extension}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape == ((20, 12, 3) if orientation > 4 else (12, 20, 3))
    assert np.array_equal(decoded(path), expected)


def test_an_orientation_that_does_not_exist_is_passed_over(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 77
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decoded(tmp_path / "a.png"), pixels)


def test_damaged_exif_does_not_lose_the_image_or_print_a_warning(tmp_path, pixels, capfd):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff\x01")
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        assert np.array_equal(decoded(path), pixels)
    assert not leaked
    assert capfd.readouterr() == ("", "")


def test_a_large_image_is_read_without_a_warning_and_a_gigantic_one_is_refused(
    tmp_path, monkeypatch
):
    Image.new("RGB", (10, 15)).save(tmp_path / "large.png")
    Image.new("RGB", (10, 25)).save(tmp_path / "gigantic.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    limit = Decoding(max_pixels=200)
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        assert decode(tmp_path / "large.png", decoding=limit).size == (10, 15)
        message = r"10 x 25 pixels are 250, more than --max_pixels 200; give a larger --max_pixels"
        with pytest.raises(BrokenImage, match=message):
            decode(tmp_path / "gigantic.png", decoding=limit)
        assert decode(tmp_path / "gigantic.png").size == (10, 25)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert not leaked


@pytest.mark.parametrize(
    ("at_least", "size"),
    [(None, (320, 240)), (200, (320, 240)), (120, (160, 120)), (100, (160, 120)), (30, (40, 30))],
)
def test_at_least_takes_the_smallest_dct_scale_with_both_sides_large_enough(
    tmp_path, at_least, size
):
    Image.new("RGB", (320, 240), "teal").save(tmp_path / "a.jpg")
    files = image_set(tmp_path / "a.jpg")
    assert files.decode(0, at_least=at_least).size == size


def test_at_least_leaves_other_formats_at_their_size(tmp_path):
    Image.new("RGB", (320, 240)).save(tmp_path / "a.png")
    assert image_set(tmp_path / "a.png").decode(0, at_least=30).size == (320, 240)


def broken_files(folder: Path) -> dict[str, str]:
    """Make broken files; gives their names and a part of the reason that must be told."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png", "cut.gif", "cut.tif", "cut.webp", "cut.bmp"):
        noise.save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    noise.save(folder / "damaged.png")
    data = bytearray((folder / "damaged.png").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    (folder / "damaged.png").write_bytes(data)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "folder.png").mkdir()
    reasons = {path.name: "." for path in folder.iterdir()}
    reasons |= {
        "cut.jpg": "truncated",
        "empty.jpg": "the file is empty",
        "text.png": "not an image",
        "folder.png": "directory",
        "missing.jpg": "No such file",
    }
    return reasons


def test_every_broken_file_raises_one_line_with_its_name_and_prints_nothing(tmp_path, capfd):
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(BrokenImage, match=reason) as caught:
            decode(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: ")
        assert len(message) > len(f"{tmp_path / name}: ")
        assert "\n" not in message
        assert isinstance(caught.value, UserError)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_may_not_be_read_is_a_broken_image(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BrokenImage, match=r"a\.jpg: Permission denied"):
        decode(tmp_path / "a.jpg")


def test_a_broken_image_travels_between_processes():
    error = pickle.loads(pickle.dumps(BrokenImage(Path("a.jpg"), "the file is empty")))
    assert isinstance(error, BrokenImage)
    assert (error.path, error.reason) == (Path("a.jpg"), "the file is empty")
    assert str(error) == "a.jpg: the file is empty"


def test_skipped_counts_each_file_once_and_tells_it_in_one_line():
    skipped = Skipped()
    assert skipped.line() is None
    skipped.add(BrokenImage(Path("b.jpg"), "truncated"))
    assert skipped.line() == "Skipped 1 image file that cannot be read: b.jpg: truncated"
    skipped.add(BrokenImage(Path("b.jpg"), "truncated"))
    skipped.add(BrokenImage(Path("a.jpg"), "the file is empty"))
    assert len(skipped) == 2
    assert skipped.paths == (Path("b.jpg"), Path("a.jpg"))
    # First by path: sets that read the same files in another order say the same line, once.
    told = "Skipped 2 image files that cannot be read, first a.jpg: the file is empty"
    assert skipped.line() == told


def test_strict_raises_at_the_first_broken_file():
    error = BrokenImage(Path("b.jpg"), "truncated")
    with pytest.raises(BrokenImage) as caught:
        Skipped(strict=True).add(error)
    assert caught.value is error


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.eps", "a.tga"])
def test_a_picture_cannot_start_ghostscript(tmp_path, monkeypatch, name):
    from PIL import EpsImagePlugin

    def started(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    path = tmp_path / name
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(BrokenImage, match="PostScript, which is not supported"):
        decode(path)
    with pytest.raises(BrokenImage, match="PostScript, which is not supported"):
        OpenedImage.of(path.read_bytes(), path)


def test_every_image_is_opened_with_the_formats_that_are_meant():
    sources = Path(unmix.__file__).parent.rglob("*.py")
    calls = [
        node
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open")
    ]
    assert calls
    assert all("formats" in {word.arg for word in call.keywords} for call in calls)


@pytest.mark.parametrize(
    "name",
    ["a.jfif", "a.webp", "a.avif", "a.jp2", "a.pgm", "a.tga", "a.gif", "a.bmp", "a.dib", "a.pcx",
     "a.qoi", "a.sgi", "a.mpo", "a.apng"],
)  # fmt: skip
def test_what_pillow_reads_is_read(tmp_path, pixels, name):
    kind = {"jfif": "JPEG", "apng": "PNG", "pgm": "PPM", "dib": "DIB", "jp2": "JPEG2000"}
    image = Image.fromarray(pixels)
    image = image.convert("L") if name.endswith("pgm") else image
    image.save(tmp_path / name, kind.get(name.partition(".")[2]))
    assert decode(tmp_path / name).size == (20, 12)
    assert name.partition(".")[2] in EXTENSIONS


def test_a_damaged_file_is_not_taken_for_a_targa(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tga")
    (tmp_path / "a.tga").rename(tmp_path / "a.jpg")
    with pytest.raises(BrokenImage, match="not an image"):
        decode(tmp_path / "a.jpg")


def test_heic_under_any_name_says_what_to_do(tmp_path):
    (tmp_path / "IMG.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(BrokenImage, match="HEIC; convert it, or install pillow-heif"):
        decode(tmp_path / "IMG.jpg")


def test_the_limit_of_pixels_holds_for_every_way_of_decoding(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    limit = Decoding(max_pixels=1199)
    for call in (
        lambda: decode(tmp_path / "a.jpg", 8, decoding=limit),
        lambda: OpenedImage.of((tmp_path / "a.jpg").read_bytes(), tmp_path / "a.jpg", limit),
    ):
        with pytest.raises(BrokenImage, match="more than --max_pixels 1199"):
            call()


def test_a_figure_of_unmix_is_no_picture(tmp_path):
    path = tmp_path / "mixture.png"
    path.write_bytes(render(Figure(), "png"))
    with pytest.raises(BrokenImage, match="a figure drawn by unmix"):
        decode(path)


def test_every_broken_file_is_listed_once_with_its_reason(tmp_path):
    file = tmp_path / "skipped.csv"
    first, second = Skipped(), Skipped()
    odd = Path(os.fsdecode(b"caf\xe9,\n.jpg"))
    first.add(BrokenImage(odd, "truncated"))
    for each in (first, second):
        each.record(file)
    second.add(BrokenImage(Path("b.jpg"), "the file is empty"))
    second.add(BrokenImage(odd, "truncated"))
    again = Skipped()
    again.record(file)
    again.add(BrokenImage(Path("b.jpg"), "the file is empty"))
    with open(file, newline="", encoding="utf-8") as rows:
        found = list(csv.reader(rows))
    assert [[restored(row[0]), row[1]] for row in found] == [
        ["path", "reason"],
        [str(odd), "truncated"],
        ["b.jpg", "the file is empty"],
    ]
    assert again.line().endswith(f"; listed in {file}")
