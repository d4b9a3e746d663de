"""View settings refuse invalid values by name; presets have the published values."""

from __future__ import annotations

import pytest

from unmix.errors import UserError
from unmix.views import PRESETS, ViewSettings, preset


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale_min", 0.0),
        ("crop_scale_min", float("nan")),
        ("crop_scale_max", 1.5),
        ("crop_scale_max", 0.1),
        ("crop_ratio", (4 / 3, 3 / 4)),
        ("crop_ratio", (0.0, 1.0)),
        ("interpolation", "nearest"),
        ("flip_p", -0.1),
        ("jitter", (0.4, 0.4, 0.4)),
        ("jitter", (-0.4, 0.4, 0.4, 0.1)),
        ("jitter", (0.4, 0.4, 0.4, 0.6)),
        ("jitter_p", 1.1),
        ("gray_p", 2.0),
        ("blur_p", -1.0),
        ("blur_sigma", (0.0, 2.0)),
        ("blur_sigma", (2.0, 0.1)),
        ("blur_kernel", 22),
        ("solarize_p", 1.0001),
        ("second_blur_p", 1.5),
        ("second_solarize_p", -0.1),
        ("second_crop_scale_min", 0.0),
        ("second_crop_scale_min", 2.0),
        ("second_crop_scale_max", 0.1),
        ("second_crop_ratio", (2.0, 1.0)),
        ("second_interpolation", "nearest"),
        ("second_flip_p", 1.1),
        ("second_jitter", (0.4, 0.4, 0.4)),
        ("second_jitter", (0.4, 0.4, 0.4, 0.6)),
        ("second_jitter_p", -0.1),
        ("second_gray_p", 1.1),
        ("second_blur_sigma", (0.0, 2.0)),
        ("second_blur_kernel", 4),
        ("local_blur_p", float("nan")),
        ("local_ratio", (2.0, 1.0)),
        ("local_interpolation", "nearest"),
        ("local_flip_p", 1.1),
        ("local_jitter", (-0.1, 0.4, 0.4, 0.1)),
        ("local_blur_kernel", 4),
        ("local_solarize_p", 1.1),
        ("local_crops", -1),
        ("local_size", 0),
        ("local_scale_min", 0.0),
        ("local_scale_min", 0.2),
        ("local_scale_max", 1.2),
        ("local_scale_max", 0.01),
    ],
)
def test_an_invalid_setting_is_named(field, value):
    """In one line, by its name; on the command line by its flag."""
    with pytest.raises(UserError, match=rf"\b{field}") as caught:
        ViewSettings(**{field: value})
    assert "\n" not in str(caught.value)
    assert caught.value.on_command_line().count(f"--{field}") == 1


def test_presets_have_the_published_values():
    """Crop, jitter, its probability, gray, blur and flip of each recipe (reference, section b)."""
    published = {
        "moco-v1": (0.2, (0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0, 0.5),
        "moco-v2": (0.2, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.5),
        "moco-cifar": (0.08, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.0, 0.5),
        "simclr-cifar": (0.2, (0.4, 0.4, 0.4, 0.1), 0.8, 0.1, 0.0, 0.5),
        "swav-cifar": (0.14, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.0, 0.5),
    }
    for name, values in published.items():
        chosen = preset(name)
        assert values == (
            chosen.crop_scale_min,
            chosen.jitter,
            chosen.jitter_p,
            chosen.gray_p,
            chosen.blur_p,
            chosen.flip_p,
        )
        assert chosen.interpolation == ("bicubic" if name == "simclr-cifar" else "bilinear")
    cmc = preset("cmc")
    assert (cmc.crop_scale_min, cmc.jitter_p, cmc.gray_p, cmc.flip_p) == (0.2, 0, 0, 0.5)
    assert set(PRESETS) == {*published, *ASYMMETRIC, "cmc", "crop-flip", "none"}


ASYMMETRIC = {
    "byol": (0.08, "bicubic", (0.4, 0.4, 0.2, 0.1), (1.0, 0.0), (0.1, 0.2), 0),
    "moco-v3": (0.2, "bilinear", (0.4, 0.4, 0.2, 0.1), (1.0, 0.0), (0.1, 0.2), 0),
    "dino": (0.4, "bicubic", (0.4, 0.4, 0.2, 0.1), (1.0, 0.0), (0.1, 0.2), 8),
    "swav-imagenet": (0.14, "bilinear", (0.8, 0.8, 0.8, 0.2), (0.5, 0.0), (None, None), 6),
}
"""Smallest crop, interpolation, jitter, blur and solarize of the first and second view, local
crops: from the released code of each (Barlow Twins' for BYOL)."""


def test_imagenet_presets_have_the_values_of_the_released_code():
    for name, values in ASYMMETRIC.items():
        chosen = preset(name)
        assert values == (
            chosen.crop_scale_min,
            chosen.interpolation,
            chosen.jitter,
            (chosen.blur_p, chosen.solarize_p),
            (chosen.second_blur_p, chosen.second_solarize_p),
            chosen.local_crops,
        )
        assert (chosen.jitter_p, chosen.gray_p, chosen.flip_p) == (0.8, 0.2, 0.5)
        assert (chosen.blur_sigma, chosen.blur_kernel) == ((0.1, 2.0), 23)
        if chosen.local_crops:
            assert chosen.local_side(224) == 96
    dino, swav = preset("dino"), preset("swav-imagenet")
    assert (dino.local_scale_min, dino.local_scale_max, dino.local_blur_p) == (0.05, 0.4, 0.5)
    assert (swav.local_scale_min, swav.local_scale_max, swav.local_blur_p) == (0.05, 0.14, None)


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'moco-v2'"):
        preset("mocov2")
