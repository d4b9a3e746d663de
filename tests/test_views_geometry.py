"""Crops and resampling, compared with torchvision and Pillow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode, functional

from unmix.errors import UserError
from unmix.views.blur import blur_weights
from unmix.views.geometry import (
    center_boxes,
    crop_pil,
    draw_boxes,
    resample,
    resampling_weights,
)

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def random_images(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def largest_gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest distance of two empirical distribution functions (Kolmogorov-Smirnov)."""
    points = torch.cat([a, b]).sort().values
    cdfs = [
        torch.searchsorted(x.sort().values, points, right=True).double() / len(x) for x in (a, b)
    ]
    return float((cdfs[0] - cdfs[1]).abs().max())


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (20, 64, (0.5, 1.0), (3 / 4, 4 / 3)),
        (90, 10, (0.2, 1.0), (3 / 4, 4 / 3)),
        (48, 48, (0.2, 0.6), (0.5, 1.0)),
    ],
)
def test_boxes_have_torchvisions_distribution(height, width, scale, ratio):
    """3,000 boxes each: area, aspect and place stay within the 0.1% point of the KS test."""
    n = 3000
    ours = draw_boxes(
        n, height, width, torch.Generator().manual_seed(1), scale=scale, ratio=ratio
    ).double()
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(n)]
        ).double()
    bound = 1.95 * math.sqrt(2 / n)
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 0] + box[:, 2],
        lambda box: box[:, 1] * box[:, 2],
    ):
        assert largest_gap(measure(ours), measure(theirs)) < bound


def test_fallback_box_matches_torchvision():
    """An image too long for any attempt gives torchvision's centered crop, exactly."""
    for height, width in ((1, 50), (50, 1), (7, 100), (100, 7), (1, 1)):
        ours = draw_boxes(4, height, width, torch.Generator().manual_seed(0), scale=(0.99, 1.0))
        theirs = RandomResizedCrop.get_params(
            torch.empty(3, height, width), [0.99, 1.0], [3 / 4, 4 / 3]
        )
        assert ours.tolist() == [list(theirs)] * 4


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    low=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**31),
)
def test_boxes_lie_within_the_image(height, width, low, seed):
    boxes = draw_boxes(16, height, width, torch.Generator().manual_seed(seed), scale=(low, 1.0))
    top, left, box_height, box_width = boxes.unbind(dim=1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


def test_each_image_may_have_its_own_size(generator):
    """With sizes as tensors, a box depends only on its own image's size and numbers."""
    heights, widths = torch.tensor([20, 300]), torch.tensor([400, 30])
    together = draw_boxes(2, heights, widths, torch.Generator().manual_seed(3))
    for i in range(2):
        alone = draw_boxes(2, int(heights[i]), int(widths[i]), torch.Generator().manual_seed(3))
        assert torch.equal(together[i], alone[i])


def test_center_boxes_are_the_largest_squares():
    heights, widths = torch.tensor([10, 5, 7]), torch.tensor([5, 10, 7])
    expected = [[2, 0, 5, 5], [0, 2, 5, 5], [0, 0, 7, 7]]
    assert center_boxes(3, heights, widths).tolist() == expected


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(48, 40, 32), (20, 60, 24), (300, 200, 16)])
def test_crops_match_torchvision(height, width, size, interpolation, generator):
    """Crop, antialiased resize and flip equal torchvision's `resized_crop` to 1e-3 of 255."""
    images = random_images(8, height, width)
    boxes = draw_boxes(8, height, width, generator, scale=(0.05, 1.0))
    flip = torch.arange(8) % 2 == 0
    top, left, box_height, box_width = boxes.unbind(dim=1)
    rows = resampling_weights(top, box_height, height, size, interpolation=interpolation)
    columns = resampling_weights(
        left, box_width, width, size, flip=flip, interpolation=interpolation
    )
    ours = resample(images, rows, columns)
    for i, box in enumerate(boxes.tolist()):
        expected = functional.resized_crop(
            images[i].float(), *box, [size, size], interpolation=MODES[interpolation]
        )
        expected = functional.horizontal_flip(expected) if flip[i] else expected
        torch.testing.assert_close(ours[i], expected, atol=1e-3 * 255, rtol=0)


@given(
    size_in=st.integers(1, 40),
    size_out=st.integers(1, 40),
    data=st.data(),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_weights_sum_to_one_and_are_zero_outside_the_crop(size_in, size_out, data, interpolation):
    start = data.draw(st.integers(0, size_in - 1))
    length = data.draw(st.integers(1, size_in - start))
    weights = resampling_weights(
        torch.tensor([start]),
        torch.tensor([length]),
        size_in,
        size_out,
        interpolation=interpolation,
    )[0]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(size_out))
    outside = torch.ones(size_in, dtype=torch.bool)
    outside[start : start + length] = False
    assert (weights[:, outside] == 0).all()


@pytest.mark.parametrize("size", [1, 2, 5, 32])
@pytest.mark.parametrize("kernel_size", [3, 23])
def test_blur_matches_torchvision(size, kernel_size):
    """Every sigma gives torchvision's `gaussian_blur`; sigma 0 gives the image."""
    images = random_images(5, size, size).float()
    sigma = torch.tensor([0.0, 0.1, 0.5, 1.3, 2.0])
    weights = blur_weights(sigma, size, kernel_size)
    ours = resample(images, weights, weights)
    kernel = min(kernel_size, 2 * size - 1)
    assert torch.equal(ours[0], images[0])
    for i in range(1, 5):
        expected = functional.gaussian_blur(images[i], [kernel, kernel], [float(sigma[i])] * 2)
        torch.testing.assert_close(ours[i], expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_pil_matches_torchvision(interpolation):
    """Byte for byte, shrinking and growing."""
    pixels = random_images(1, 60, 90)[0]
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    for box in ([0, 0, 60, 90], [5, 7, 13, 9], [10, 3, 50, 80], [59, 89, 1, 1]):
        crop = crop_pil(image, torch.tensor(box), 24, interpolation)
        expected = functional.resized_crop(
            image, *box, [24, 24], interpolation=MODES[interpolation]
        )
        assert crop.dtype == torch.uint8
        assert torch.equal(crop, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_crop_pil_refuses_invalid_arguments():
    box = torch.tensor([0, 0, 4, 4])
    with pytest.raises(UserError, match="convert it to 'RGB'"):
        crop_pil(Image.new("L", (4, 4)), box, 4)
    with pytest.raises(UserError, match="'bilinear'"):
        crop_pil(Image.new("RGB", (4, 4)), box, 4, "bilinaer")
