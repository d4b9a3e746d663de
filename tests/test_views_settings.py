"""View settings refuse what cannot be, by the flag's name; presets are the published ones."""

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
    ],
)
def test_a_wrong_setting_is_named(field, value):
    """In one line that names the flag."""
    with pytest.raises(UserError, match=f"--{field}") as caught:
        ViewSettings(**{field: value})
    assert "\n" not in str(caught.value)


def test_presets_are_the_published_values():
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
    assert set(PRESETS) == {*published, "cmc", "none"}


def test_an_unknown_preset_gets_a_hint():
    with pytest.raises(UserError, match="Did you mean 'moco-v2'"):
        preset("mocov2")
