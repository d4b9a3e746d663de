"""Images of more than 8 bits are scaled by one stated rule, everywhere alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

import unmix
from runs import TINY_RUN
from unmix.cli import main
from unmix.commands.pack import pack
from unmix.config import RunSettings
from unmix.data import BrokenImage, Decoding, StreamedImages, decode, load, read_uint8
from unmix.data.decoding import MAX_PIXELS, rgb8
from unmix.data.folder import NOTHING_TO_SCALE
from unmix.data.from_python import from_python
from unmix.data.opened import OpenedImage
from unmix.errors import UserError
from unmix.evaluation.encoder import load_encoder
from unmix.training.run.given import Given
from unmix.training.run.parts import Parts, build_parts
from unmix.training.run.vain import notes_on_vain


def gray(path: Path, values: np.ndarray, dtype: str = "<u2") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values.astype(dtype)
    if path.suffix == ".pgm":
        header = f"P5 {values.shape[1]} {values.shape[0]} 4095\n".encode()
        path.write_bytes(header + values.astype(">u2").tobytes())
    elif path.suffix == ".tif":
        tifffile.imwrite(path, values, byteorder=dtype[0].replace("=", "<"))
    else:
        Image.fromarray(values).save(path)
    return path


RAMP = np.arange(4096, dtype=np.int64).reshape(64, 64)
EXPECTED = np.rint(RAMP * 255 / 4095).astype(np.uint8)
TWELVE = Decoding(range=(0.0, 4095.0))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", "<u2"), ("a.tif", "<u2"), ("a.tif", ">u2"), ("a.tif", "<i4"), ("a.tif", ">i4"),
     ("a.tif", "<f4"), ("a.tif", ">f4"), ("a.pgm", "<u2")],
)  # fmt: skip
def test_twelve_bits_in_a_wider_file_keep_all_their_levels(tmp_path, name, dtype):
    path = gray(tmp_path / name, RAMP, dtype)
    found = np.asarray(decode(path, decoding=TWELVE))
    assert np.array_equal(found[..., 0], EXPECTED)
    assert np.array_equal(found[..., 0], found[..., 2])
    opened = OpenedImage.of(path.read_bytes(), path, TWELVE)
    assert np.array_equal(opened.pixels[1].numpy(), EXPECTED)


def test_values_beyond_the_range_are_clipped_and_what_is_no_number_is_black(tmp_path):
    values = np.array([[-5.0, 0.0, 1.0, 2.0, np.nan, np.inf]], dtype=np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    found = np.asarray(decode(tmp_path / "a.tif", decoding=Decoding(range=(0.0, 2.0))))
    assert found[0, :, 0].tolist() == [0, 0, 128, 255, 0, 255]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_color_of_16_bits_keeps_its_levels_too(tmp_path, kind, channels):
    colors = np.stack([RAMP, RAMP[::-1], RAMP // 2], axis=2).astype(np.uint16)
    expected = np.rint(colors * (255 / 4095)).astype(np.uint8)
    if channels == 4:
        colors = np.concatenate([colors, np.full((64, 64, 1), 65535, np.uint16)], axis=2)
    path = tmp_path / f"a.{kind}"
    if kind == "tif":
        extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        tifffile.imwrite(path, colors, photometric="rgb", **extra)
    else:
        path.write_bytes(png16(colors))
    assert np.array_equal(np.asarray(decode(path, decoding=TWELVE)), expected)


def test_a_transparent_value_of_16_bits_is_white(tmp_path):
    path = gray(tmp_path / "a.png", RAMP)
    with Image.open(path) as image:
        image.save(tmp_path / "clear.png", transparency=1000)
        image.info["transparency"] = 1000
        given = rgb8(image, TWELVE.range)
    expected = np.where(RAMP == 1000, 255, EXPECTED)
    for found in (decode(tmp_path / "clear.png", decoding=TWELVE), given):
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found)[..., 0], expected)
    colors = np.stack([RAMP, RAMP, RAMP % 100], axis=2).astype(np.uint16)
    content = png16(colors, clear=(1000, 1000, 0))
    found = np.asarray(decode(tmp_path / "b.png", content=content, decoding=TWELVE))
    assert np.array_equal(found[..., 1], expected)


def png16(colors: np.ndarray, clear: tuple[int, int, int] | None = None) -> bytes:
    """A PNG of 16 bits, which Pillow does not write in color."""
    import struct
    import zlib

    height, width, channels = colors.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    head = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
    seen = [] if clear is None else [chunk(b"tRNS", struct.pack(">HHH", *clear))]
    parts = [chunk(b"IHDR", head), *seen, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("bands", "dtype"), [(4, "u1"), (13, "u2"), (13, "u1"), (5, "f4")])
def test_a_tiff_of_other_bands_is_refused_with_the_reason(tmp_path, bands, dtype):
    path = tmp_path / "sentinel.tif"
    values = np.zeros((8, 8, bands), dtype=dtype)
    near_infrared = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    words = near_infrared if bands == 4 else {"photometric": "minisblack"}
    tifffile.imwrite(path, values, planarconfig="contig", **words)
    with pytest.raises(BrokenImage, match=rf"sentinel\.tif: a TIFF with {bands} bands; .*save"):
        decode(path)


def ramps(root: Path, top: int, count: int = 6, kind: str = "png") -> Path:
    """Two classes of noise with values from 0 to `top`."""
    generator = np.random.default_rng(0)
    for name in "ab":
        for i in range(count):
            values = generator.integers(0, top + 1, (16, 16))
            values[0, 0], values[0, 1] = 0, top
            gray(root / name / f"{i}.{kind}", values)
    return root


def test_a_folder_is_scaled_by_its_own_range_which_is_said(tmp_path):
    ramps(tmp_path, 997)
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert train.decoding.range == test.decoding.range == (0.0, 997.0)
    assert train.notes[-1] == (
        "more than 8 bits: values from 0 to 997 become black to white (the range of the training "
        "images)"
    )
    pixels, _ = read_uint8(train, [0], 16)
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)
    assert len(pixels.unique()) > 100
    assert 0.4 < train.mean[0] < 0.6


def test_a_range_that_is_given_is_taken_and_one_that_does_nothing_is_told(tmp_path):
    ramps(tmp_path / "deep", 997)
    found = load(tmp_path / "deep", "train", decoding=TWELVE)
    assert found.decoding.range == (0.0, 4095.0)
    assert "as set; the training images have 0 to 997" in found.notes[-1]
    for name in "ab":
        for i in range(3):
            path = tmp_path / "eight" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(path)
    shallow = load(tmp_path / "eight", "train", decoding=TWELVE)
    assert "none of the sampled images has more than 8 bits" in shallow.notes[-1]


def test_images_of_one_value_are_named_as_such(tmp_path, refuse):
    for i in range(4):
        gray(tmp_path / "deep" / f"{i}.png", np.full((8, 8), 7))
        gray(tmp_path / "eight" / f"{i}.png", np.full((8, 8), 7), "u1")
    with pytest.raises(UserError, match=r"all pixels of the training images .* have one value, 7"):
        load(tmp_path / "deep", "train")
    told = refuse("pretrain", "--method", "simclr", "--data", tmp_path / "eight", "--run", "r")
    assert "have one value (7); there is nothing to learn" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--range", "5", "5"), "--range: 5 5 must be increasing"),
        (("--bit_depth", "0"), "--bit_depth: 0 is out of range"),
        (
            ("--bit_depth", "12", "--range", "0", "9"),
            "--bit_depth: cannot be combined with --range; give one.",
        ),
        (("--max_pixels", "0"), "--max_pixels: 0 is out of range"),
    ],
)
def test_ranges_that_cannot_be_are_refused(refuse, words, message):
    assert refuse("pretrain", "--data", "digits", *words).startswith(message)


def test_a_run_its_evaluations_and_its_encoder_scale_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ramps(tmp_path / "data", 997)
    words = ["--method", "simclr", "--data", "data", "--epochs", "1", "--size", "8", "--backbone",
             "resnet10", "--width", "0.0625", "--batch_size", "4", "--workers", "0", "--device",
             "cpu", "--logger", "none", "--precision", "32", "--run", "r"]  # fmt: skip
    assert main(["pretrain", *words]) == 0
    assert "values from 0 to 997 become black to white" in capsys.readouterr().out
    assert yaml.safe_load(Path("r/config.yaml").read_text())["range"] == [0.0, 997.0]
    assert main(["pretrain", *words]) == 0  # the same command is the same run
    encoder = load_encoder("r")
    assert encoder.range == (0.0, 997.0)
    new = gray(tmp_path / "new.tif", np.linspace(0, 700, 256).reshape(16, 16))
    eight = tmp_path / "eight.png"
    Image.fromarray(np.rint(np.asarray(tifffile.imread(new)) * (255 / 997)).astype(np.uint8)).save(
        eight
    )
    assert torch.equal(encoder.encode([new]), encoder.encode([eight]))
    assert torch.equal(encoder.encode([Image.open(new)]), encoder.encode([eight]))
    assert main(["knn", "r"]) == 0
    # The range is the encoder's: nobody gave it in vain for images of 8 bits.
    capsys.readouterr()
    (tmp_path / "eights").mkdir()
    eight.rename(tmp_path / "eights" / "eight.png")
    assert main(["embed", "r", "--data", "eights", "--out", "f.npz"]) == 0
    assert "--range" not in capsys.readouterr().out
    # Other images of the same set do not move the range of a run that is there.
    assert main(["pretrain", *words, "--bit_depth", "12"]) == 2


@pytest.mark.parametrize("short_side", [None, 8])
def test_a_pack_keeps_the_range_of_what_was_packed(tmp_path, short_side):
    ramps(tmp_path / "data", 997)
    train = load(tmp_path / "data", "train")
    pack(str(tmp_path / "data"), out=str(tmp_path / "out"), short_side=short_side, workers=0)
    packed = load(tmp_path / "out", "train")
    assert packed.decoding.range == (0.0, 997.0)
    ours, _ = read_uint8(train, range(4), 8)
    theirs, _ = read_uint8(packed, range(4), 8)
    if short_side is None:
        assert torch.equal(ours, theirs)
    else:
        assert abs(float(ours.float().mean()) - float(theirs.float().mean())) < 8


def twelve_bits_in_python(form: str, folder: Path, split: str, gain: int) -> Any:
    """Four images of 16 bits with values to 255 * gain, as a user of Python has them."""
    ramp = np.arange(256, dtype=np.int64).reshape(16, 16) * gain
    files = [gray(folder / split / f"{i}.png", ramp + i) for i in range(4)]
    if form == "hugging face":
        datasets = pytest.importorskip("datasets")
        rows = {"image": [str(file) for file in files], "label": [0, 1, 0, 1]}
        return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    if form == "pictures":
        return [(Image.open(file), i % 2) for i, file in enumerate(files)]
    return [(file, i % 2) for i, file in enumerate(files)]


@pytest.mark.parametrize("form", ["paths", "hugging face", "pictures"])
@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ({"range": (0, 4095)}, (0, 4095)),
        ({"bit_depth": 12}, (0, 4095)),
        ({"max_pixels": 256}, (0, 2043)),
    ],
)
def test_images_of_python_are_scaled_alike_for_training_and_evaluation(
    form, words, limits, tmp_path, monkeypatch
):
    """The settings reach both, and without a range that of the training images does."""
    data, test_data = (
        twelve_bits_in_python(form, tmp_path, split, gain)
        for split, gain in (("train", 8), ("test", 4))
    )

    built: list[Parts] = []

    def build(*args: Any, **options: Any) -> None:
        built.append(build_parts(*args, **options))
        raise RuntimeError("that is enough")

    monkeypatch.setattr("unmix.training.run.pretrain.build_parts", build)
    words = {"method": "simclr", "dim": 8, "hidden": 8, "batch_size": 2, "resident": "no", **words}
    with pytest.raises(RuntimeError, match="enough"):
        unmix.pretrain(data=data, test_data=test_data, run=tmp_path / "a", **TINY_RUN, **words)
    (parts,) = built
    for images in (parts.train, parts.test):
        assert images.decoding.range == limits
        assert images.decoding.max_pixels == words.get("max_pixels", MAX_PIXELS)
    assert parts.settings.run.limits == limits
    low, high = limits
    for images, gain in ((parts.train, 8), (parts.test, 4)):
        expected = np.rint((np.arange(256) * gain + 1 - low) * 255 / (high - low))
        assert np.asarray(images.decode(1))[..., 0].ravel().tolist() == expected.tolist()


def test_broken_test_images_of_python_end_a_strict_run(tmp_path):
    gray(tmp_path / "a.png", RAMP)
    (tmp_path / "b.png").write_bytes(b"no image")
    train = [(gray(tmp_path / f"{i}.png", RAMP), i) for i in range(2)]
    test = [(tmp_path / "a.png", 0), (tmp_path / "b.png", 1)]
    run = RunSettings(method="simclr", strict=True)
    found = Given.of(train, test, run).test
    assert isinstance(found, StreamedImages)
    with pytest.raises(BrokenImage, match=r"b\.png"):
        read_uint8(found, range(2), 16)


@pytest.mark.parametrize("kind", ["digits", "folder", "deep"])
def test_settings_that_do_nothing_for_the_data_are_told(kind, tmp_path):
    """They were ignored, while their neighbors are refused."""
    for i in range(6):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        gray(path, RAMP % 4096 if kind == "deep" else RAMP % 256, "<u2" if kind == "deep" else "u1")
    data = "digits" if kind == "digits" else str(tmp_path)
    words = {"data": data, "bit_depth": 12, "interleave": 4, "shuffle_buffer": 100,
             "download": True}  # fmt: skip
    images = load(data, "train", decoding=Decoding(range=(0.0, 4095.0)))
    notes = [*images.notes, *notes_on_vain(RunSettings(method="simclr", **words), images)]
    assert (
        "note: --interleave, --shuffle_buffer: for images in shards, which these are not" in notes
    )
    assert any(note.startswith("note: --download: ") for note in notes)
    assert notes.count(NOTHING_TO_SCALE) == (kind != "deep")
    assert notes_on_vain(RunSettings(method="simclr", data=data), images) == ()


@pytest.mark.parametrize(
    "kind", ["folder", "paths", "pictures", "data set", "hugging face", "floats"]
)
def test_one_range_and_one_line_of_it_however_the_images_are_given(kind, tmp_path):
    """Pictures of a data set were scaled by 0 to 65,535, and no line said a range of the others."""
    place = tmp_path / "deep"
    files = [gray(place / f"{i}.png", RAMP[: 16 + i] * (1 + i % 2) // 2) for i in range(4)]
    if kind == "folder":
        images = load(place, "train")
    elif kind == "hugging face":
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset.from_dict({"image": [str(file) for file in files]})
        images = from_python(table.cast_column("image", datasets.Image()), "train")
    else:
        opened: list[Any] = [Image.open(file) for file in files]
        if kind == "floats":
            opened = [Image.fromarray(np.asarray(each).astype(np.float32)) for each in opened]
        pairs = [(each, 0) for each in opened]
        images = from_python({"paths": files, "data set": pairs}.get(kind, opened), "train")
    assert images.decoding.range == (0.0, 1215.0)
    assert images.notes[-1] == (
        "more than 8 bits: values from 0 to 1,215 become black to white (the range of the training "
        "images)"
    )
    for i in range(4):
        expected = decode(files[i], decoding=Decoding(range=(0.0, 1215.0)))
        assert np.array_equal(np.asarray(images.decode(i)), np.asarray(expected))
    run = RunSettings(method="simclr", range=(0.0, 2000.0))
    assert notes_on_vain(run, images) == ()


def test_deep_pictures_of_one_value_are_named_as_such():
    pictures = [Image.fromarray(np.full((8, 8), 7, np.uint16)) for _ in range(4)]
    with pytest.raises(UserError, match=r"all pixels of the training images .* have one value, 7"):
        from_python(pictures, "train")


@pytest.mark.parametrize("kind", ["P6", "P3", "min is white", "floats, min is white"])
def test_deep_pixels_have_the_grays_of_the_same_png(kind, tmp_path):
    """A PPM was cut to its upper 8 bits, and a TIFF whose 0 is white was a negative."""
    values = RAMP.astype(np.uint16)
    colors = np.stack([values, values.T, values[::-1]], axis=2)
    if kind in ("P6", "P3"):
        content = colors.astype(">u2").tobytes()
        if kind == "P3":
            content = " ".join(map(str, colors.ravel().tolist())).encode()
        path = tmp_path / "a.ppm"
        path.write_bytes(f"{kind} 64 64 65535\n".encode() + content)
        expected = np.rint(colors * (255 / 4095))
    else:
        path = tmp_path / "a.tif"
        dtype = np.float32 if kind.startswith("floats") else np.uint16
        tifffile.imwrite(path, (4095 - values).astype(dtype), photometric="miniswhite")
        expected = np.rint(np.stack([values] * 3, axis=2) * (255 / 4095))
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(rgb8(image, (0.0, 4095.0))), expected)
    assert np.abs(np.asarray(decode(path, decoding=TWELVE)) - expected).max() <= 1
    found = load(tmp_path, "train")
    assert found.decoding.range == (0.0, 4095.0)
    assert np.abs(np.asarray(found.decode(0)) - expected).max() <= 1


@pytest.mark.parametrize("photometric", ["separated", "cielab"])
def test_deep_colors_that_are_not_rgb_are_refused(photometric, tmp_path):
    """Cyan, magenta and yellow were taken for red, green and blue, and black for the opacity."""
    bands = 4 if photometric == "separated" else 3
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, bands)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric)
    with pytest.raises(BrokenImage):
        decode(tmp_path / "a.tif")
    if photometric == "separated":
        with pytest.raises(BrokenImage, match=r"a\.tif: a color TIFF .* CMYK .*save it as RGB"):
            decode(tmp_path / "a.tif")
