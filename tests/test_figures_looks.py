"""Looks of conditions: no two alike in black and white, or with a color vision deficiency."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import deltaE_cie76, rgb2lab, rgb2xyz

from unmix.config.catalog import catalog
from unmix.figures.colors import PALETTE, color_of, difference, distinct_colors
from unmix.figures.looks import Look, looks_of

MIXTURES = ("none", "IM", "global", "region", "Un-Mix", "CutMix", "i-Mix", "MixCo")
ONE_METHOD = {f"MoCo + {mixture}": ("moco", mixture) for mixture in MIXTURES}
METHODS = {method: (method, "none") for method in ("moco", "cmc", "simclr", "byol", "swav", "dino")}
CROSSED = {
    f"{method} {mixture}": (method, mixture)
    for method in ("moco", "cmc", "insdis")
    for mixture in MIXTURES[:5]
}

MIXED = {**dict(list(ONE_METHOD.items())[:6]), "CMC": ("cmc", "none"), "CMC + IM": ("cmc", "IM")}

# Full severity, of another source than the code's: Viénot, Brettel and Mollon 1999, in linear RGB.
VIENOT = {
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


def rgb(color: str) -> np.ndarray:
    return np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255


def linear(color: str) -> np.ndarray:
    values = rgb(color)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def seen(color: str, kind: str) -> np.ndarray:
    """CIELAB of a color as it is seen, by scikit-image."""
    values = np.clip(np.array(VIENOT[kind]) @ linear(color), 0, 1)
    encoded = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    return rgb2lab(encoded)


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@pytest.mark.parametrize(
    "conditions", [ONE_METHOD, METHODS, MIXED, CROSSED], ids=["one", "many", "mixed", "crossed"]
)
def test_no_two_conditions_are_alike_without_color(conditions: dict) -> None:
    """In black and white: other markers, or the same one hollow and filled; and dashes."""
    looks = looks_of(conditions)
    assert list(looks) == list(conditions)
    forms = [(look.marker, look.hollow) for look in looks.values()]
    assert len(set(forms)) == len(forms)
    for (_, a), (_, b) in itertools.combinations(looks.items(), 2):
        assert a.marker != b.marker or a.hollow != b.hollow
    for (one, a), (other, b) in itertools.combinations(looks.items(), 2):
        if conditions[one][0] == conditions[other][0]:  # of one method, also without markers
            assert a.dash != b.dash


@pytest.mark.parametrize(
    "conditions", [ONE_METHOD, METHODS, MIXED, CROSSED], ids=["one", "many", "mixed", "crossed"]
)
def test_conditions_differ_in_color_for_everyone(conditions: dict) -> None:
    """Those of one method, or the methods where there are several."""
    looks = looks_of(conditions)
    colors = {look.color for look in looks.values()}
    assert len(colors) == (3 if conditions is CROSSED else len(conditions))
    for one, other in itertools.combinations(colors, 2):
        assert difference(one, other) > 10
        for kind in VIENOT:
            assert deltaE_cie76(seen(one, kind), seen(other, kind)) > 8


def test_any_two_methods_differ_in_color_for_everyone_and_all_without_color() -> None:
    methods = list(catalog().methods)
    for pair in itertools.combinations(methods, 2):
        one, other = looks_of({method: (method, "none") for method in pair}).values()
        assert difference(one.color, other.color) > 10, pair
        for kind in VIENOT:
            assert deltaE_cie76(seen(one.color, kind), seen(other.color, kind)) > 8, pair
    looks = looks_of({method: (method, "none") for method in methods})
    assert len({(look.marker, look.hollow) for look in looks.values()}) == len(methods)


def test_five_mixtures_of_one_method_are_no_longer_one_solid_red_line() -> None:
    looks = list(looks_of({m: ("moco", m) for m in MIXTURES[:6]}).values())
    for what in ("color", "dash", "marker"):
        assert len({getattr(look, what) for look in looks}) == 6
    assert looks[0].hollow
    assert not any(look.hollow for look in looks[1:])


def test_every_color_is_legible_on_white_and_on_a_dark_page() -> None:
    dark = rgb2xyz(rgb("#17171A"))[1]
    for color in (*PALETTE, *map(color_of, catalog().methods)):
        luminance = rgb2xyz(rgb(color))[1]
        assert contrast(luminance, 1.0) > 3, color
        assert contrast(luminance, dark) > 2.9, color


def test_the_difference_of_colors_is_that_of_scikit_image() -> None:
    """For normal vision the distance in CIELAB, which a deficiency can only lower."""
    for one, other in itertools.combinations(PALETTE, 2):
        plain = deltaE_cie76(rgb2lab(rgb(one)), rgb2lab(rgb(other)))
        assert difference(one, other) <= plain + 0.5
    assert difference("#000000", "#FFFFFF") == pytest.approx(100, abs=0.1)


def test_colors_that_are_far_apart_are_kept() -> None:
    assert distinct_colors(["#CC3311", "#0077BB"]) == ["#CC3311", "#0077BB"]
    again = distinct_colors(["#CC3311", "#CC3311"])
    assert again[0] == "#CC3311"
    assert difference(*again) > 20


@given(
    st.dictionaries(
        st.text(max_size=8), st.tuples(st.sampled_from(["moco", "x"]), st.sampled_from(MIXTURES)),
        max_size=28,
    )
)  # fmt: skip
def test_any_conditions_have_looks_and_none_twice(conditions: dict) -> None:
    looks = looks_of(conditions)
    assert list(looks) == list(conditions)
    assert len({(look.marker, look.hollow) for look in looks.values()}) == len(looks)


def test_a_line_of_many_points_keeps_some_markers() -> None:
    look = Look("#CC3311", "-", "D")
    assert look.plot(10)["markevery"] == 1
    for points in (30, 200, 1000):
        drawn = points / look.plot(points)["markevery"]
        assert 8 <= drawn <= 26
