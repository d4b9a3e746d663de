"""Reading for evaluation agrees with torchvision; colors are estimated and compared."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from unmix.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FileImages,
    ImageSet,
    Skipped,
    TensorImages,
    check_normalization,
    estimate_mean_std,
    load,
    read_uint8,
)
from unmix.data.reading import resize_batch, resize_image
from unmix.errors import UserError

HALF = (0.5, 0.5, 0.5)


def tensors(images: torch.Tensor) -> TensorImages:
    return TensorImages(
        name="noise", split="test", labels=None, classes=None, mean=HALF, std=HALF, images=images
    )


def files(*paths: Path, strict: bool = False) -> FileImages:
    return FileImages(
        name="files",
        split="test",
        labels=None,
        classes=None,
        mean=HALF,
        std=HALF,
        paths=paths,
        skipped=Skipped(strict),
    )


def noise(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, height, width)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def published(size: int) -> v2.Compose:
    """The test protocol in torchvision's words."""
    return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])


@given(st.integers(3, 90), st.integers(3, 90), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_files_are_resized_and_cropped_exactly_as_torchvision_does(
    tmp_path_factory, height, width, size
):
    path = tmp_path_factory.mktemp("resize") / "a.png"
    image = Image.fromarray(noise(1, height, width)[0].permute(1, 2, 0).numpy())
    image.save(path)
    found, kept = read_uint8(files(path), [0], size)
    resize = published(size) if min(height, width) != size else v2.CenterCrop(size)
    expected = np.asarray(resize(image))
    difference = np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - expected)
    # Of a long image the crop alone is resized, whose filter begins at another rounded place.
    long = max(height, width) > 8 * min(height, width)
    assert difference.max() <= (1 if long else 0)
    assert kept.tolist() == [0]


@given(st.integers(3, 90), st.integers(3, 90), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_tensors_are_resized_and_cropped_as_torchvision_does(height, width, size):
    images = noise(2, height, width)
    found, _ = read_uint8(tensors(images), [0, 1], size)
    resize = published(size) if min(height, width) != size else v2.CenterCrop(size)
    difference = found.int() - resize(images).int()
    assert found.shape == (2, 3, size, size)
    assert difference.abs().max() <= 1  # torchvision's uint8 kernel rounds twice


def test_images_that_have_the_size_already_come_back_untouched(tmp_path):
    images = noise(3, 32, 32)
    found, _ = read_uint8(tensors(images), [2, 0], 32)
    assert torch.equal(found, images[[2, 0]])
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    found, _ = read_uint8(files(tmp_path / "a.png"), [0], 32)
    assert torch.equal(found[0], images[0])


def test_a_large_jpeg_read_at_a_smaller_scale_hardly_differs_from_the_published_protocol(tmp_path):
    grid = np.mgrid[0:600, 0:800] / 100
    waves = np.stack([np.sin(grid[0] * k) * np.cos(grid[1] * k) for k in (1, 3, 7)], axis=-1)
    image = Image.fromarray(((waves + 1) * 127.5).astype(np.uint8))
    image.save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as full:
        expected = np.asarray(published(32)(full), dtype=int)
    found, _ = read_uint8(files(tmp_path / "a.jpg"), [0], 32)
    difference = np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.mean() < 1


@pytest.mark.parametrize(("width", "height"), [(3000, 100), (20000, 7), (100, 3000)])
def test_of_a_long_strip_only_the_crop_is_resized(width, height):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, size = Image.fromarray(noise), 32
    side = round(size * 256 / 224)
    short = min(width, height)
    whole = image.resize((side * width // short, side * height // short), Image.Resampling.BILINEAR)
    left, top = (round((side_ - size) / 2) for side_ in whole.size)
    expected = np.asarray(whole.crop((left, top, left + size, top + size))).astype(int)
    found = np.asarray(resize_image(image, size)).astype(int)
    assert abs(found - expected).max() <= 1
    strips = resize_batch(torch.from_numpy(noise).permute(2, 0, 1)[None], size)
    assert abs(strips[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_a_line_of_pixels_needs_little_memory(tmp_path):
    Image.new("RGB", (60_000, 1), "red").save(tmp_path / "line.png")
    code = (
        "import sys, torch; from pathlib import Path; from unmix.data.decoding import decode; "
        "from unmix.data.reading import resize_image; "
        # Not getrusage, which has the memory of the process that started this one.
        "from unmix.hardware.devices import peak_memory; cpu = torch.device('cpu'); "
        "before = peak_memory(cpu); "
        "resize_image(decode(Path(sys.argv[1])), 224); "
        "print((peak_memory(cpu) - before) // 1024)"
    )
    kilobytes = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "line.png"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(kilobytes) < 50_000  # the whole would be 60,000 x 256 x 256 pixels


def test_indices_may_be_a_tensor_a_range_or_empty():
    images = noise(4, 8, 8)
    for indices in (torch.tensor([1, 3]), range(1, 4, 2), [1, 3]):
        found, kept = read_uint8(tensors(images), indices, 8)
        assert torch.equal(found, images[[1, 3]])
        assert kept.tolist() == [1, 3]
    for image_set in (tensors(images), files()):
        found, kept = read_uint8(image_set, [], 6)
        assert (found.shape, found.dtype) == ((0, 3, 6, 6), torch.uint8)
        assert (kept.shape, kept.dtype) == ((0,), torch.int64)


def test_broken_files_are_left_out_and_noted_once(tmp_path):
    for i in (0, 2):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"")
    image_set = files(*(tmp_path / f"{i}.png" for i in range(3)))
    for _ in range(2):
        found, kept = read_uint8(image_set, [2, 1, 0], 8)
        assert kept.tolist() == [2, 0]
        assert found[:, 0, 0, 0].tolist() == [2, 0]
    assert image_set.skipped.paths == (tmp_path / "1.png",)
    with pytest.raises(UserError, match=r"1\.png: the file is empty"):
        read_uint8(replace(image_set, skipped=Skipped(strict=True)), [2, 1, 0], 8)


def test_the_estimate_is_exact_when_every_image_is_read():
    images = noise(7, 5, 6)
    pixels = images.permute(1, 0, 2, 3).flatten(1).numpy() / 255
    mean, std = estimate_mean_std(tensors(images))
    assert mean == pytest.approx(pixels.mean(1), abs=6e-5)
    assert std == pytest.approx(pixels.std(1), abs=6e-5)


def test_the_estimate_gives_every_file_the_same_share_whatever_its_size(tmp_path):
    Image.new("RGB", (2, 2), (255, 0, 51)).save(tmp_path / "small.png")
    Image.new("RGB", (90, 60), (0, 0, 51)).save(tmp_path / "large.png")
    mean, std = estimate_mean_std(files(tmp_path / "small.png", tmp_path / "large.png"))
    assert mean == (0.5, 0.0, 0.2)
    assert std == (0.5, 0.0, 0.0)


def test_the_estimate_reads_no_more_than_the_limit_and_the_same_ones_each_time():
    images = torch.zeros(100, 3, 2, 2, dtype=torch.uint8)
    images[::10] = 255
    assert estimate_mean_std(tensors(images), limit=10)[0] == (1.0, 1.0, 1.0)
    assert estimate_mean_std(tensors(images), limit=20)[0] == HALF


def test_the_estimate_of_nothing_is_refused():
    with pytest.raises(UserError, match="no image could be read"):
        estimate_mean_std(files())


def test_own_normalization_gives_no_warning_and_others_a_loud_line():
    digits = load("digits", "train")
    assert check_normalization(digits, digits.mean, digits.std) is None
    slightly = check_normalization(digits, (0.31, 0.31, 0.31), digits.std)
    strongly = check_normalization(digits, IMAGENET_MEAN, IMAGENET_STD)
    for line in (slightly, strongly):
        assert line.startswith("warning: mean (0.")
        assert "digits" in line
        assert "\n" not in line
    assert "strongly" in strongly
    assert "strongly" not in slightly
    assert "(0.485, 0.456, 0.406)" in strongly


@pytest.mark.parametrize(
    ("mean", "std", "strongly"),
    [
        ((0.5, 0.5, 0.62), HALF, False),  # shifted by 0.24 of a standard deviation
        ((0.5, 0.5, 0.63), HALF, True),  # by 0.26
        (HALF, (0.5, 0.61, 0.5), False),
        (HALF, (0.5, 0.63, 0.5), True),
        (HALF, (0.5, 0.39, 0.5), True),
    ],
)
def test_colors_differ_strongly_from_a_quarter_on(mean, std, strongly):
    line = check_normalization(tensors(noise(1, 2, 2)), mean, std)
    assert ("strongly" in line) == strongly


def test_a_set_of_one_color_can_be_compared():
    flat = replace(tensors(noise(1, 2, 2)), std=(0.0, 0.0, 0.0))
    assert check_normalization(flat, flat.mean, flat.std) is None
    assert "strongly" in check_normalization(flat, HALF, HALF)


def test_an_image_set_cannot_have_labels_without_classes_or_beyond_them():
    images = noise(2, 4, 4)
    labels = torch.tensor([0, 1])
    for wrong in (
        {"labels": labels, "classes": None},
        {"labels": None, "classes": ("a",)},
        {"labels": labels, "classes": ("a",)},
        {"labels": labels[:1], "classes": ("a", "b")},
    ):
        with pytest.raises(AssertionError):
            replace(tensors(images), **wrong)
    assert isinstance(replace(tensors(images), labels=labels, classes=("a", "b")), ImageSet)


@pytest.mark.shared
def test_imagenette_is_read_as_torchvision_reads_it(shared):
    test = load(shared / "data" / "imagenette", "test")
    assert isinstance(test, FileImages)
    indices = list(range(0, 500, 50))
    found, kept = read_uint8(test, indices, 96)
    assert kept.tolist() == indices
    for crop, i in zip(found, indices, strict=True):
        with Image.open(test.paths[i]) as image:
            expected = np.asarray(published(96)(image.convert("RGB")))
        assert np.array_equal(crop.permute(1, 2, 0).numpy(), expected)


@pytest.mark.shared
def test_imagenettes_estimate_is_near_that_of_its_full_pixels(shared):
    train = load(shared / "data" / "imagenette", "train")
    assert isinstance(train, FileImages)
    chosen = range(0, 2000, 20)
    pixels = np.concatenate([np.asarray(train.decode(i)).reshape(-1, 3) / 255 for i in chosen])
    mean, std = estimate_mean_std(train, limit=100)
    assert mean == pytest.approx(pixels.mean(0), abs=6e-5)
    assert std == pytest.approx(pixels.std(0), abs=6e-5)
