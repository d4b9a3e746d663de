"""Multi-crop and asymmetric views: number, size, settings and random numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unmix.errors import UserError
from unmix.views import Views, ViewSettings, preset

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
EVERYTHING = ViewSettings(blur_p=0.5, solarize_p=0.3)
# Drawn by the version before multi-crop: the boxes of two views, and the number after them.
BOXES = [
    [[15, 4, 17, 17], [9, 3, 20, 15], [1, 0, 26, 28]],
    [[2, 1, 35, 34], [1, 6, 29, 30], [0, 3, 30, 32]],
]
NEXT = 0.5517055988311768


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, side: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=seeded(9))


def views_of(settings: ViewSettings, size: int = 32, **options: object) -> Views:
    return Views(settings, size, MEAN, STD, **options)  # type: ignore[arg-type]


def test_global_views_come_first_then_local_crops_then_extra_ones():
    settings = dataclasses.replace(EVERYTHING, local_crops=3, local_size=12)
    views = views_of(settings, count=2, extra=[None, (0.1, 0.3)])
    sizes = [32, 32, 12, 12, 12, 32, 32]
    assert len(views) == 7
    assert views.sizes == tuple(sizes)
    made = views(images(5), seeded())
    assert [tuple(view.shape) for view in made] == [(5, 3, size, size) for size in sizes]
    assert len({view.sum().item() for view in made}) == 7
    assert len(views_of(EVERYTHING, count=4)) == 4


def test_draws_of_two_equal_views_are_those_of_earlier_versions():
    views = views_of(EVERYTHING, size=16)
    generator = seeded(3)
    first, second = views.draw_all(3, 40, 36, generator)
    assert first.boxes.tolist() == BOXES[0]
    assert second.boxes.tolist() == BOXES[1]
    assert torch.rand((), generator=generator).item() == pytest.approx(NEXT, abs=1e-7)


def test_local_and_extra_crops_do_not_change_the_global_views():
    more = dataclasses.replace(EVERYTHING, local_crops=4)
    plain = views_of(EVERYTHING)(images(6), seeded(1))
    for views in (views_of(more), views_of(EVERYTHING, extra=[(0.2, 0.4)])):
        made = views(images(6), seeded(1))
        assert len(made) > 2
        assert all(torch.equal(a, b) for a, b in zip(plain, made, strict=False))


def areas(views: Views, view: int, n: int = 4000) -> torch.Tensor:
    """Areas of crops, as shares of an image whose pixels are fine enough not to matter."""
    boxes = views.draw_boxes(n, 2000, 2000, seeded(view), view)
    assert torch.equal(boxes, views.draw(n, 2000, 2000, seeded(view), view).boxes)
    return boxes[:, 2:].prod(dim=1) / 2000**2


def test_areas_are_uniform_in_the_range_of_their_view():
    """Kolmogorov and Smirnov's test; crops of at most half the image always fit."""
    settings = ViewSettings(
        crop_scale_min=0.3, crop_scale_max=0.5, local_crops=1,
        local_scale_min=0.05, local_scale_max=0.14,
    )  # fmt: skip
    views = views_of(settings, extra=[(0.2, 0.25), None])
    ranges = [(0.3, 0.5), (0.3, 0.5), (0.05, 0.14), (0.2, 0.25), (0.3, 0.5)]
    assert len(views) == len(ranges)
    for view, (low, high) in enumerate(ranges):
        found = areas(views, view).numpy()
        assert stats.kstest(found, stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_each_view_is_blurred_and_solarized_with_its_own_probability():
    """DINO's: blur 1, 0.1 and 0.5; solarize 0, 0.2 and 0."""
    views = views_of(preset("dino"), extra=[None])
    draws = views.draw_all(20_000, 8, 8, seeded())
    blurred = [1.0, 0.1] + [0.5] * 8 + [1.0]
    solarized = [0.0, 0.2] + [0.0] * 8 + [0.0]
    assert len(draws) == len(blurred)
    for draw, blur, solarize in zip(draws, blurred, solarized, strict=True):
        assert draw.sigma is not None
        assert (draw.sigma > 0).float().mean().item() == pytest.approx(blur, abs=0.015)
        assert (draw.solarize is None) == (solarize == 0)
        if draw.solarize is not None:
            assert draw.solarize.float().mean().item() == pytest.approx(solarize, abs=0.015)


def test_the_second_view_can_turn_off_steps_of_the_first():
    """0 differs from not given."""
    settings = ViewSettings(blur_p=1, solarize_p=1, second_blur_p=0, second_solarize_p=0)
    first, second = views_of(settings).draw_all(4, 8, 8, seeded())
    assert first.sigma is not None
    assert first.solarize is not None
    assert second.sigma is None
    assert second.solarize is None
    third = views_of(settings, count=4).draw(4, 8, 8, seeded(), view=2)
    assert third.sigma is not None


def test_a_local_crop_equals_a_view_of_its_size_and_scale():
    """For images, and for crops that are made where images are decoded."""
    settings = dataclasses.replace(
        EVERYTHING, interpolation="bicubic", local_crops=2, local_size=12, local_blur_p=0.9
    )
    small = dataclasses.replace(
        settings, crop_scale_min=0.05, crop_scale_max=0.14, blur_p=0.9, local_crops=0
    )
    ours, theirs = views_of(settings), views_of(small, size=12)
    draw = ours.draw(6, 40, 40, seeded(), view=3)
    assert torch.equal(draw.boxes, theirs.draw(6, 40, 40, seeded()).boxes)
    assert torch.equal(ours.apply(images(6), draw, 3), theirs.apply(images(6), draw))
    crops = images(6, side=12)
    assert torch.equal(ours.apply_crops(crops, draw, 3), theirs.apply_crops(crops, draw))
    with pytest.raises(UserError, match=r"view 1 of `size=32` needs \(32, 32\)"):
        ours.apply_crops(crops, draw, 1)


OTHER = {
    "crop_scale_min": 0.6, "crop_scale_max": 0.7, "crop_ratio": (1.0, 1.2),
    "interpolation": "bicubic", "flip_p": 0.9, "jitter": (0.1, 0.2, 0.3, 0.0), "jitter_p": 0.3,
    "gray_p": 0.7, "blur_p": 0.2, "blur_sigma": (1.0, 1.5), "blur_kernel": 3, "solarize_p": 0.8,
}  # fmt: skip
"""A value for every setting of a view that differs from EVERYTHING's."""


def test_there_is_a_second_and_a_local_setting_for_each_of_the_first_view():
    names = [field.name for field in dataclasses.fields(ViewSettings)]
    first = [name for name in names if not name.startswith(("second_", "local_"))]
    assert first == list(OTHER)
    assert [f"second_{name}" for name in first if f"second_{name}" not in names] == []
    local = [f"local_{name.removeprefix('crop_')}" for name in first]
    assert [name for name in local if name not in names] == []


def alike(ours: Views, view: int, theirs: Views) -> None:
    """Check that a view of ours equals the first of theirs bit by bit, also for given crops."""
    draw = ours.draw(6, 40, 36, seeded(4), view)
    other = theirs.draw(6, 40, 36, seeded(4))
    assert torch.equal(draw.boxes, other.boxes)
    pixels = torch.randint(0, 256, (6, 3, 40, 36), dtype=torch.uint8, generator=seeded(9))
    assert torch.equal(ours.apply(pixels, draw, view), theirs.apply(pixels, other))
    crops = images(6, theirs.sizes[0])
    assert torch.equal(ours.apply_crops(crops, draw, view), theirs.apply_crops(crops, other))


@pytest.mark.parametrize("chosen", [*([name] for name in OTHER), list(OTHER)], ids=str)
@pytest.mark.parametrize("which", ["second", "local"])
def test_every_setting_of_a_view_can_be_its_own(which: str, chosen: list[str]):
    """The view is as if all views had these settings, and the other views are unchanged."""
    base = dataclasses.replace(EVERYTHING, local_crops=2, local_size=16)
    if chosen == ["crop_scale_max"]:
        base = dataclasses.replace(base, crop_scale_min=0.1)
    if which == "local":
        own = {f"local_{name.removeprefix('crop_')}": OTHER[name] for name in chosen}
        if chosen == ["crop_scale_min"]:
            own["local_scale_max"] = 1.0
        view, size, rest = 2, 16, (0, 1)
    else:
        own = {f"second_{name}": OTHER[name] for name in chosen}
        view, size, rest = 1, 32, (0, 2, 3)
    settings = dataclasses.replace(base, **own)
    plain = dataclasses.replace(EVERYTHING, **{name: OTHER[name] for name in chosen})
    if which == "local":
        scale = (settings.local_scale_min, settings.local_scale_max)
        plain = dataclasses.replace(plain, crop_scale_min=scale[0], crop_scale_max=scale[1])
    elif chosen == ["crop_scale_max"]:
        plain = dataclasses.replace(plain, crop_scale_min=0.1)
    alike(views_of(settings), view, views_of(plain, size=size))
    for unchanged in rest:
        kind = views_of(settings).kinds[unchanged]
        assert kind == views_of(base).kinds[unchanged]


def test_a_weak_second_view_is_only_cropped_and_flipped():
    """Like the weak augmentation of ReSSL (Zheng et al. 2021); frequencies within 3 sigma."""
    weak = {"second_jitter_p": 0, "second_gray_p": 0, "second_blur_p": 0, "second_solarize_p": 0}
    strong = ViewSettings(jitter_p=0.8, gray_p=0.2, blur_p=0.5, solarize_p=0.1)
    settings = dataclasses.replace(strong, **weak, second_crop_scale_min=0.4)
    views, n = views_of(settings), 10_000
    first, second = views.draw_all(n, 2000, 2000, seeded())
    assert second.color is None
    assert second.sigma is None
    assert second.solarize is None
    assert second.flip.float().mean().item() == pytest.approx(0.5, abs=0.015)
    area = second.boxes[:, 2:].prod(dim=1) / 2000**2
    assert area.min() > 0.399
    assert (first.boxes[:, 2:].prod(dim=1) / 2000**2).min() < 0.25
    assert (first.sigma > 0).float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert first.color.gray.float().mean().item() == pytest.approx(0.2, abs=0.012)
    assert (first.color.brightness != 1).float().mean().item() == pytest.approx(0.8, abs=0.012)
    assert first.solarize.float().mean().item() == pytest.approx(0.1, abs=0.009)


def test_every_global_view_can_have_settings_of_its_own_in_python():
    strong = dataclasses.replace(EVERYTHING, local_crops=1, local_size=16)
    weak, gray = preset("none"), ViewSettings(gray_p=1)
    views = views_of([strong, weak, gray], extra=[(0.2, 0.3)])
    assert len(views) == 5
    assert views.sizes == (32, 32, 32, 16, 32)
    alike(views, 1, views_of(weak))
    alike(views, 2, views_of(gray))
    assert torch.equal(views.plain(images(2)), views_of(strong).plain(images(2)))
    assert views_of([weak, strong]).kinds[1] == views_of(strong).kinds[0]
    with pytest.raises(UserError, match="settings: there are 2 for 4 views"):
        views_of([strong, weak], count=4)


@pytest.mark.parametrize(
    ("size", "side"), [(224, 96), (96, 40), (64, 24), (48, 24), (32, 16), (16, 8), (8, 8), (4, 4)]
)
def test_a_local_crops_side_follows_from_the_views(size: int, side: int):
    assert ViewSettings().local_side(size) == side


@given(size=st.integers(1, 2000))
def test_a_local_crops_side_is_near_three_sevenths(size: int):
    side = ViewSettings().local_side(size)
    assert 1 <= side <= size
    if size >= 16:
        assert side % 8 == 0
        assert abs(side - 3 / 7 * size) <= 4


def test_a_local_crop_larger_than_the_views_is_refused():
    settings = ViewSettings(local_crops=2, local_size=40)
    with pytest.raises(UserError, match="local_size: 40 is larger than the views, `size=32`") as e:
        views_of(settings)
    assert "\n" not in str(e.value)
    assert views_of(dataclasses.replace(settings, local_crops=0)).sizes == (32, 32)
    assert views_of(settings, size=40).sizes == (40,) * 4
