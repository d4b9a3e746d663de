"""Mixtures of integers, and mixtures that share no memory with their images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from test_mixtures_operators import ALL, PAIRS, SEVERAL, by_owner, drawn
from unmix import UnMix, UserError
from unmix.mixtures import Cutout, ImageMixture, MixUp, RandomErasing
from unmix.mixtures.noise import MixupNoise


@pytest.mark.parametrize("operator", PAIRS + SEVERAL, ids=str)
def test_uint8_images_are_mixed_by_their_shares_and_rounded(operator):
    levels = torch.tensor([0, 30, 60, 120, 180, 255], dtype=torch.uint8)
    images = levels.view(6, 1, 1, 1).expand(6, 3, 8, 10).contiguous()
    before = images.clone()
    for seed in range(3):
        draw = drawn(operator, images.shape, seed)
        mixed = draw.apply(images)
        assert mixed.dtype == torch.uint8
        assert torch.equal(images, before)
        expected = by_owner(draw, 6) @ levels.float()
        torch.testing.assert_close(mixed.float().mean((1, 2, 3)), expected, atol=0.51, rtol=0)


@pytest.mark.parametrize("operator", ALL, ids=str)
def test_uint8_images_become_what_their_floats_become(operator):
    images = torch.randint(256, (6, 3, 8, 10), dtype=torch.uint8)
    others = [images.flip(number % 4) for number in range(len(operator.extra))]
    draw = drawn(operator, images.shape, 1)
    mixed = draw.apply(images.float(), [view.float() for view in others])
    assert torch.equal(draw.apply(images, others), mixed.round().to(torch.uint8))


@pytest.mark.parametrize(
    "operator", [ImageMixture(g_prob=1, r_prob=1, r_pixel_decay=0.5), MixupNoise(0.2)], ids=str
)
def test_image_space_mixes_uint8_images_as_their_floats(operator):
    images = torch.randint(256, (6, 3, 8, 10), dtype=torch.uint8)
    draw = operator.draw(images.shape, torch.Generator().manual_seed(0))
    assert torch.equal(draw.apply(images), draw.apply(images.float()).round().to(torch.uint8))


def test_a_value_for_normalized_images_is_not_written_into_uint8_ones():
    images = torch.full((8, 3, 8, 8), 200, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    erased = RandomErasing(random_erasing_prob=1.0).draw(images.shape, generator)
    with pytest.raises(UserError, match=r"torch.uint8; .* normalize them first"):
        erased.apply(images)
    gray = Cutout(mask_size=4, cutout_p=1.0, cutout_inside=True, mask_color=128.0)
    filled = gray.draw(images.shape).apply(images)
    assert filled.unique().tolist() == [128, 200]
    assert (filled == 128).sum().item() == 8 * 3 * 16


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("operator", [UnMix(), MixUp(pairing="halves")], ids=str)
def test_mixtures_changed_in_place_leave_the_images(operator, per):
    images = torch.randn(6, 3, 8, 8)
    before = images.clone()
    draw = replace(operator, per=per).draw(images.shape)
    for ratio in (draw.ratio, torch.ones_like(draw.ratio)):  # as drawn, and with nothing mixed
        replace(draw, ratio=ratio).apply(images).zero_()
        assert torch.equal(images, before)
    ImageMixture(g_prob=0, r_prob=0).draw(images.shape).apply(images).zero_()
    assert torch.equal(images, before)
