"""`Views`: draws can be replayed, match torchvision's steps, and are independent by sample."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from skimage import data
from torchvision.transforms.v2 import functional

from unmix.errors import UserError
from unmix.views import (
    ViewDraw,
    Views,
    ViewSettings,
    normalize_lab,
    normalize_ycbcr,
    preset,
    rgb_to_lab,
    rgb_to_ycbcr,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
EVERYTHING = ViewSettings(blur_p=0.5, solarize_p=0.3)
STEPS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int, height: int, width: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, (n, 3, height, width), dtype=torch.uint8, generator=seeded(9))


def torchvision_view(image: torch.Tensor, draw: ViewDraw, i: int, size: int) -> torch.Tensor:
    """View `i` of a draw by torchvision's functions, one after the other, in [0, 1]."""
    out = functional.resized_crop(image.float() / 255, *draw.boxes[i].tolist(), [size, size])
    if draw.flip is not None and draw.flip[i]:
        out = functional.horizontal_flip(out)
    if draw.color is not None:
        color = draw.color
        factors = (color.brightness, color.contrast, color.saturation, color.hue)
        for step in color.order[i].tolist():
            if (factor := factors[step]) is not None:
                out = STEPS[step](out, float(factor[i]))
        if color.gray[i]:
            out = functional.rgb_to_grayscale(out, 3)
    if draw.sigma is not None and draw.sigma[i] > 0:
        out = functional.gaussian_blur(out, [23, 23], [float(draw.sigma[i])] * 2)
    if draw.solarize is not None and draw.solarize[i]:
        out = functional.solarize(out, 0.5)
    return out


def normalized(images: torch.Tensor) -> torch.Tensor:
    return functional.normalize(images, list(MEAN), list(STD))


def test_pipeline_matches_torchvision_without_clamping():
    """Every step but blur, on muted images: a replayed draw matches to 1e-3."""
    settings = dataclasses.replace(EVERYTHING, jitter=(0.3, 0.3, 0.3, 0.1), blur_p=0.0)
    views = Views(settings, 24, MEAN, STD)
    images = random_images(32, 40, 30, low=70, high=170)
    draw = views.draw(32, 40, 30, seeded())
    expected = torch.stack([torchvision_view(images[i], draw, i, 24) for i in range(32)])
    ours = views.apply(images, draw)
    torch.testing.assert_close(ours, normalized(expected), atol=1e-3, rtol=0)


def test_moco_v2_views_are_close_to_torchvision_on_photographs():
    """Mean RMS over 64 views of four photographs: below 0.006, with the hue or without."""
    pictures = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    images = torch.stack(
        [torch.from_numpy(picture[:300, :400].copy()).permute(2, 0, 1) for picture in pictures]
    ).repeat(16, 1, 1, 1)
    for hue in (0.1, 0.0):
        settings = dataclasses.replace(preset("moco-v2"), jitter=(0.4, 0.4, 0.4, hue))
        views = Views(settings, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        draw = views.draw(64, 300, 400, seeded(1))
        expected = torch.stack([torchvision_view(images[i], draw, i, 32) for i in range(64)])
        errors = (views.apply(images, draw) - expected).square().mean(dim=(1, 2, 3)).sqrt()
        assert errors.mean() < 0.006


def test_a_draw_replays_and_a_seed_repeats():
    views = Views(EVERYTHING, 16, MEAN, STD)
    images = random_images(8, 20, 20)
    first, second = views(images, seeded(3))
    assert not torch.allclose(first, second)
    draws = views.draw_all(8, 20, 20, seeded(3))
    assert torch.equal(views.apply(images, draws[0]), first)
    assert torch.equal(views.apply(images, draws[0]), first)
    assert torch.equal(views.apply(images, draws[1].to("cpu")), second)


@pytest.mark.parametrize("size", [(80, 60), (20, 15)])
def test_a_draw_is_for_images_of_its_size(size):
    """Crops outside of the images had no pixels, and their views were NaN."""
    views = Views(preset("moco-cifar"), 16, MEAN, STD)
    draw = views.draw(4, *size, seeded())
    with pytest.raises(UserError, match=rf"draw: is for images of {size[0]} x {size[1]} pixels"):
        views.apply(random_images(4, 40, 30), draw)
    views.apply_crops(random_images(4, 16, 16), draw)  # whose boxes were used already


@pytest.mark.parametrize("color_space", ["RGB", "Lab", "YCbCr"])
def test_a_view_depends_only_on_its_own_image(color_space):
    views = Views(EVERYTHING, 16, MEAN, STD, color_space=color_space)
    images = random_images(8, 20, 20)
    others = images.clone()
    others[torch.arange(8) != 3] = 255 - others[torch.arange(8) != 3]
    draw = views.draw(8, 20, 20, seeded())
    before, after = views.apply(images, draw), views.apply(others, draw)
    torch.testing.assert_close(after[3], before[3], atol=1e-6, rtol=0)
    assert not torch.allclose(after[2], before[2])


def test_samples_are_drawn_independently():
    """64 copies of one image give 64 different views."""
    views = Views(preset("moco-cifar"), 8, MEAN, STD)
    out = views.apply(
        random_images(1, 32, 32).expand(64, 3, 32, 32), views.draw(64, 32, 32, seeded())
    )
    assert len(out.flatten(1).unique(dim=0)) == 64


def test_flip_is_horizontal_with_the_given_probability():
    """With only flips drawn, each view is the plain one or its mirror image; n = 4,000, 5 sigma."""
    settings = dataclasses.replace(preset("none"), flip_p=0.3)
    views = Views(settings, 4, MEAN, STD)
    images = random_images(4000, 4, 4)
    draw = views.draw(4000, 4, 4, seeded())
    plain = views.plain(images)
    expected = torch.where(draw.flip[:, None, None, None], plain.flip(3), plain)
    torch.testing.assert_close(views.apply(images, draw), expected, atol=1e-5, rtol=0)
    assert abs(draw.flip.float().mean() - 0.3) < 5 * (0.21 / 4000) ** 0.5


def test_blur_and_solarize_have_the_given_probabilities():
    views = Views(ViewSettings(blur_p=0.5, blur_sigma=(0.1, 2.0), solarize_p=0.2), 4, MEAN, STD)
    draw = views.draw(10_000, 4, 4, seeded())
    drawn = draw.sigma[draw.sigma > 0]
    assert abs(len(drawn) / 10_000 - 0.5) < 5 * 0.005
    assert 0.1 <= drawn.min() < 0.11
    assert 1.99 < drawn.max() <= 2.0
    assert abs(drawn.mean() - 1.05) < 5 * 1.9 / (12 * 5000) ** 0.5
    assert abs(draw.solarize.float().mean() - 0.2) < 5 * 0.004


def test_given_crops_get_every_step_but_the_crop():
    """`apply_crops` equals `apply` with boxes of the whole image."""
    views = Views(dataclasses.replace(EVERYTHING, crop_scale_min=0.05), 16, MEAN, STD)
    crops = random_images(32, 16, 16)
    draw = views.draw(32, 500, 400, seeded())
    boxes = torch.tensor([0, 0, 16, 16]).expand(32, 4)
    whole = dataclasses.replace(draw, boxes=boxes, size=(16, 16))
    torch.testing.assert_close(
        views.apply_crops(crops, draw), views.apply(crops, whole), atol=1e-4, rtol=0
    )


def test_plain_normalizes_and_nothing_else():
    views = Views(EVERYTHING, 16, MEAN, STD)
    images = random_images(4, 16, 16)
    torch.testing.assert_close(views.plain(images), normalized(images / 255))


def test_plain_resizes_the_center_square_of_other_sizes():
    views = Views(EVERYTHING, 16, MEAN, STD)
    images = random_images(2, 40, 30)
    expected = functional.resize(functional.center_crop(images / 255, [30, 30]), [16, 16])
    torch.testing.assert_close(views.plain(images), normalized(expected), atol=1e-4, rtol=0)


def test_preset_none_gives_the_plain_view():
    for height, width in ((16, 16), (40, 30)):
        images = random_images(3, height, width)
        views = Views(preset("none"), 16, MEAN, STD)
        for view in views(images, seeded()):
            torch.testing.assert_close(view, views.plain(images), atol=1e-4, rtol=0)


def test_lab_and_ycbcr_views_match_cmc_and_ignore_the_rgb_mean():
    images = random_images(4, 16, 16)
    for name, convert, normalize in (
        ("Lab", rgb_to_lab, normalize_lab),
        ("YCbCr", rgb_to_ycbcr, normalize_ycbcr),
    ):
        views = Views(preset("cmc"), 16, MEAN, STD, color_space=name)
        torch.testing.assert_close(views.plain(images), normalize(convert(images / 255)))
        rgb = Views(preset("cmc"), 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        draw = rgb.draw(4, 16, 16, seeded())
        expected = normalize(convert(rgb.apply(images, draw)))
        torch.testing.assert_close(views.apply(images, draw), expected)


def test_colors_are_clamped():
    """The strongest jitter stays within black and white, also after bicubic overshoot."""
    settings = ViewSettings(jitter=(3.0, 3.0, 3.0, 0.5), jitter_p=1.0, interpolation="bicubic")
    views = Views(settings, 16, MEAN, STD)
    out = views.apply(random_images(32, 20, 20), views.draw(32, 20, 20, seeded()))
    rgb = out * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert -1e-5 < rgb.min() < 1e-5
    assert 1 - 1e-5 < rgb.max() < 1 + 1e-5


@pytest.mark.parametrize("name", ["moco-v1", "moco-v2", "cmc", "simclr-cifar", "none"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 50)])
@pytest.mark.parametrize("size", [1, 8])
def test_thin_images_work(name, height, width, size):
    views = Views(preset(name), size, MEAN, STD)
    for view in views(random_images(3, height, width), seeded()):
        assert view.shape == (3, 3, size, size)
        assert view.isfinite().all()


@pytest.mark.parametrize("color_space", ["RGB", "YCbCr"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_chunked_color_steps_give_the_same_images(color_space, channels_last, monkeypatch):
    """Of a batch of 7, in chunks of 3: the last chunk is short."""
    views = Views(EVERYTHING, 8, MEAN, STD, color_space=color_space, channels_last=channels_last)
    images = random_images(7, 10, 10)
    whole = views(images, seeded())
    monkeypatch.setattr("unmix.views.pipeline._IN_CACHE", 3 * 64)
    for one, other in zip(whole, views(images, seeded()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_an_empty_batch_has_empty_views():
    for view in Views(EVERYTHING, 8, MEAN, STD)(random_images(0, 10, 10), seeded()):
        assert view.shape == (0, 3, 8, 8)


@pytest.mark.parametrize("color_space", ["RGB", "Lab"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_views_can_be_traced_and_functionalized(color_space, channels_last):
    """As for Inductor: no graph break, no in-place operation left, the same numbers."""
    views = Views(EVERYTHING, 8, MEAN, STD, color_space=color_space, channels_last=channels_last)
    images = random_images(4, 10, 10)
    draw = views.draw(4, 10, 10, seeded())
    expected = views.apply(images, draw)
    torch._dynamo.reset()
    views.make = torch.compile(views.make, backend="aot_eager", dynamic=False, fullgraph=True)
    ours = views.apply(images, draw)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert ours.stride() == expected.stride()


def test_no_jitter_at_all_changes_nothing():
    settings = dataclasses.replace(preset("none"), jitter=(0.0, 0.0, 0.0, 0.0), jitter_p=1.0)
    views = Views(settings, 8, MEAN, STD)
    images = random_images(3, 8, 8)
    for view in views(images, seeded()):
        torch.testing.assert_close(view, views.plain(images), atol=1e-5, rtol=0)


def test_the_memory_format_changes_no_value():
    images = random_images(4, 20, 20)
    usual = Views(EVERYTHING, 16, MEAN, STD)(images, seeded())
    last = Views(EVERYTHING, 16, MEAN, STD, channels_last=True)(images, seeded())
    for a, b in zip(usual, last, strict=True):
        assert a.is_contiguous()
        assert b.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a, b)


def test_views_are_float32_without_gradient_under_autocast():
    """A training step's bf16 autocast must not reach the pixels."""
    images = random_images(4, 20, 20)
    views = Views(EVERYTHING, 16, MEAN, STD)
    expected = views(images, seeded())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        view = views(images, seeded())[0]
    assert view.dtype == torch.float32
    assert not view.requires_grad
    assert torch.equal(view, expected)


def test_count_is_the_number_of_views():
    images = random_images(2, 8, 8)
    for count in (1, 3):
        assert len(Views(EVERYTHING, 8, MEAN, STD, count=count)(images, seeded())) == count


def test_invalid_arguments_are_named():
    views = Views(EVERYTHING, 8, MEAN, STD)
    draw = views.draw(2, 8, 8, seeded())
    for call, message in (
        (lambda: views(torch.zeros(2, 3, 8, 8), seeded()), "torch.float32"),
        (lambda: views.plain(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), r"\(2, 1, 8, 8\)"),
        (lambda: views.apply(random_images(3, 8, 8), draw), "draw: is for 2 images, but 3"),
        (lambda: views.apply_crops(random_images(2, 9, 8), draw), "view 0 of `size=8`"),
        (lambda: Views(EVERYTHING, 0, MEAN, STD), "Views: size must be at least 1, got 0"),
        (
            lambda: Views(EVERYTHING, 8, MEAN, STD, count=0),
            "count must be at least 1, got 0",
        ),
        (lambda: Views(EVERYTHING, 8, MEAN, STD, color_space="lab"), "Did you mean 'Lab'"),
        (lambda: Views(EVERYTHING, 8, MEAN, (1.0, 0.0, 1.0)), "std"),
        (
            lambda: Views(EVERYTHING, 8, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
            r"Views: mean \(123.675, .* divided by 255",
        ),
        (lambda: Views(EVERYTHING, 8, MEAN, (58.395, 57.12, 57.375)), r"Views: std \(58.395"),
        (lambda: Views(EVERYTHING, 8, 0.5, STD), "mean 0.5 must be three numbers"),
        (lambda: Views(EVERYTHING, 8.5, MEAN, STD), "size: 8.5 is no whole number"),
        (lambda: Views(EVERYTHING, (8, 8), MEAN, STD), r"size: \(8, 8\) is no whole"),
        (lambda: Views("moco-cifar", 8, MEAN, STD), "settings: 'moco-cifar'; give .*preset"),
    ):
        with pytest.raises(UserError, match=message):
            call()
