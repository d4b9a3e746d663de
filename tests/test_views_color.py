"""Color jitter, grayscale and solarize, compared with torchvision."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from unmix.views.color import (
    ColorDraw,
    apply_color,
    color_maps,
    draw_color,
    hue_matrices,
    shift_hue,
    solarize,
)

STEPS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def photographs(side: int = 48) -> torch.Tensor:
    """Four photographs, float32 `(4, 3, side, side)` in [0, 1]."""
    images = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    tensors = [torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in images]
    return torch.stack([functional.resize(image, [side, side]) for image in tensors])


def neutral(n: int, **changes: torch.Tensor) -> ColorDraw:
    """A draw that changes nothing but the given factors."""
    one = torch.ones(n)
    draw = ColorDraw(
        brightness=one,
        contrast=one,
        saturation=one,
        hue=0 * one,
        order=torch.arange(4).expand(n, 4),
        gray=torch.zeros(n, dtype=torch.bool),
    )
    return dataclasses.replace(draw, **changes)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_one_step_matches_torchvision(name, factor):
    """To 1e-3, on colors that nothing clamps."""
    images = 0.35 + 0.25 * photographs()
    ours = apply_color(images, color_maps(neutral(4, **{name: torch.full((4,), factor)})))
    expected = getattr(functional, f"adjust_{name}")(images, factor)
    assert expected.min() >= 0
    assert expected.max() < 1
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


def test_gray_matches_torchvision():
    images = photographs()
    gray = torch.tensor([True, False, True, False])
    ours = apply_color(images, color_maps(neutral(4, gray=gray)))
    torch.testing.assert_close(
        ours[gray], functional.rgb_to_grayscale(images[gray], 3), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(ours[~gray], images[~gray], atol=1e-6, rtol=0)


@pytest.mark.parametrize("hue", [0.08, -0.1, 0.25, 1 / 3, -0.5])
def test_chained_steps_match_torchvision_in_every_order(hue):
    """All 24 orders of the four, and gray: the composed map is the chain of torchvision's steps.

    The hue is shifted where it stands among the others, whose grays and means it changes.
    """
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[orders.sort(dim=1).values.eq(torch.arange(4)).all(dim=1)]
    assert len(orders) == 24
    image = 0.4 + 0.2 * photographs(16)[0]
    factor = (1.2, 0.7, 1.3, hue)
    gray = torch.arange(24) % 5 == 0
    full = [torch.full((24,), value) for value in factor]
    ours = apply_color(image.expand(24, -1, -1, -1), color_maps(ColorDraw(*full, orders, gray)))
    for i, order in enumerate(orders.tolist()):
        expected = image
        for step in order:
            expected = STEPS[step](expected, factor[step])
        expected = functional.rgb_to_grayscale(expected, 3) if gray[i] else expected
        torch.testing.assert_close(ours[i], expected, atol=1e-3, rtol=0)


def shifted(images: torch.Tensor, hue: torch.Tensor) -> torch.Tensor:
    planes = shift_hue(images.flatten(2), hue_matrices(hue))
    torch.testing.assert_close(planes[:, 3], luma(images).flatten(1), atol=1e-5, rtol=0)
    return planes[:, :3].view(images.shape)


def luma(images: torch.Tensor) -> torch.Tensor:
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1)


@given(hue=st.floats(-0.5, 0.5), seed=st.integers(0, 2**31), levels=st.integers(1, 255))
def test_hue_matches_torchvision(hue, seed, levels):
    """To 1e-5, any shift of any colors; of few levels, many channels are equal."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, levels + 1, (2, 3, 8, 8), generator=generator) / levels
    ours = shifted(images, torch.full((2,), hue))
    torch.testing.assert_close(ours, functional.adjust_hue(images, hue), atol=1e-5, rtol=0)


def test_each_sample_has_its_own_hue():
    hues = torch.tensor([0.5, -0.5, 1 / 6, 0.0, -1 / 3, 0.1, 1 / 12, -0.1])
    images = photographs(16).repeat(2, 1, 1, 1)
    expected = [
        functional.adjust_hue(image, float(hue)) for image, hue in zip(images, hues, strict=True)
    ]
    torch.testing.assert_close(shifted(images, hues), torch.stack(expected), atol=1e-5, rtol=0)


@given(hue=st.floats(-0.5, 0.5), factor=st.floats(0, 3), gray=st.floats(-1, 1))
def test_hue_commutes_with_scaling_and_gray(hue, factor, gray):
    """Why it can be applied first: `H(a x + b) = a H(x) + b`, also outside of [0, 1]."""
    images, hues = photographs(8), torch.full((4,), hue)
    ours = shifted(factor * images + gray, hues)
    torch.testing.assert_close(ours, factor * shifted(images, hues) + gray, atol=1e-5, rtol=0)


def test_hue_is_skipped_where_it_is_zero():
    words = {"jitter_p": 0.8, "gray_p": 0.2}
    draws = [
        draw_color(64, torch.Generator().manual_seed(0), jitter=(0.4, 0.4, 0.4, hue), **words)
        for hue in (0.0, 1e-9)
    ]
    assert draws[0].hue is None
    maps = [color_maps(draw) for draw in draws]
    assert maps[0].hue is None
    images = photographs(8).repeat(16, 1, 1, 1)
    one, other = (apply_color(images, each) for each in maps)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("jitter", "bound"), [((0.0, 0.0, 0.0, 0.5), 0.01), ((0.4, 0.4, 0.4, 0.1), 0.5)]
)
def test_jitter_is_within_half_a_gray_level_of_torchvision(jitter, bound):
    """Mean absolute difference on photographs; the rest is torchvision's clamping between steps.

    Without any hue it is above 6 gray levels, by a rotation about the gray axis above 4.
    """
    n = 200
    images = photographs(32).repeat(n // 4, 1, 1, 1)
    draw = draw_color(n, torch.Generator().manual_seed(3), jitter=jitter, jitter_p=1, gray_p=0.1)
    ours = apply_color(images, color_maps(draw)).clamp(0, 1)
    expected = []
    for i, image in enumerate(images):
        out = image
        for step in draw.order[i].tolist():
            factors = (draw.brightness, draw.contrast, draw.saturation, draw.hue)
            out = STEPS[step](out, float(factors[step][i]))
        expected.append(functional.rgb_to_grayscale(out, 3) if draw.gray[i] else out)
    assert 255 * (ours - torch.stack(expected)).abs().mean() < bound


def test_factors_are_distributed_as_documented():
    """100,000 draws: ranges, means, coin flips, and all 24 orders equally often (5 sigma)."""
    n = 100_000
    draw = draw_color(
        n,
        torch.Generator().manual_seed(0),
        jitter=(0.4, 1.5, 0.2, 0.1),
        jitter_p=0.8,
        gray_p=0.2,
    )
    jittered = draw.brightness != 1
    assert abs(jittered.float().mean() - 0.8) < 5 * math.sqrt(0.16 / n)
    assert abs(draw.gray.float().mean() - 0.2) < 5 * math.sqrt(0.16 / n)
    for values, low, high in (
        (draw.brightness, 0.6, 1.4),
        (draw.contrast, 0.0, 2.5),
        (draw.saturation, 0.8, 1.2),
        (draw.hue, -0.1, 0.1),
    ):
        drawn = values[jittered]
        width = high - low
        assert low <= drawn.min() < low + 0.001 * width
        assert high - 0.001 * width < drawn.max() <= high
        sigma = width / math.sqrt(12 * len(drawn))
        assert abs(drawn.double().mean() - (low + high) / 2) < 5 * sigma
    assert (draw.hue[~jittered] == 0).all()
    _, counts = draw.order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - n / 24).abs() < 5 * math.sqrt(n / 24)).all()


@pytest.mark.parametrize("hue", [0.0, 0.1])
def test_jittered_images_have_torchvisions_distribution(hue):
    """500 jittered versions of each of four photographs have torchvision's statistics.

    Of every version, the mean of each channel and the spread of all its values. Of those over all
    versions, the 5th to 95th percentiles agree within 0.02 of the range.
    """
    n, jitter = 2000, (0.4, 0.4, 0.4, hue)
    images = photographs(12).repeat(n // 4, 1, 1, 1)
    draw = draw_color(n, torch.Generator().manual_seed(0), jitter=jitter, jitter_p=0.8, gray_p=0.2)
    ours = apply_color(images, color_maps(draw)).clamp(0, 1)
    reference = v2.Compose(
        [v2.RandomApply([v2.ColorJitter(*jitter)], p=0.8), v2.RandomGrayscale(p=0.2)]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = torch.stack([reference(image) for image in images])

    def statistics(views: torch.Tensor) -> torch.Tensor:
        return torch.cat([views.mean(dim=(2, 3)), views.flatten(1).std(dim=1)[:, None]], dim=1)

    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    torch.testing.assert_close(
        statistics(ours).quantile(levels, dim=0),
        statistics(theirs).quantile(levels, dim=0),
        atol=0.02,
        rtol=0,
    )


def test_solarize_matches_torchvision():
    images = photographs(16)
    which = torch.tensor([True, False, True, True])
    ours = solarize(images, which, threshold=torch.full((3,), 0.5), bound=torch.ones(3))
    assert torch.equal(ours[which], functional.solarize(images[which], 0.5))
    assert torch.equal(ours[~which], images[~which])
