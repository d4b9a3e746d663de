"""What is given in pixels follows the views' size, or is said to differ from what was published."""

from __future__ import annotations

from typing import Any

import pytest

from unmix.config import MixtureSettings, Settings, ViewSettings
from unmix.errors import UserError
from unmix.training.run.notes import note_on_width, notes_on_image_space, notes_on_sizes
from unmix.training.run.parts import build_parts, headline

TINY = {
    "method": "moco", "data": "digits", "limit": 32, "backbone": "resnet10", "width": 0.125,
    "size": 8, "batch_size": 16, "queue_size": 32, "bn_splits": 1, "knn_every": 0,
    "evaluate": False, "logger": "none", "device": "cpu", "precision": "32",
}  # fmt: skip
VIT = {**TINY, "method": "simclr", "backbone": "timm:vit_tiny_patch16_224", "unmix": True}
for word in ("queue_size", "bn_splits", "width"):
    VIT.pop(word)


def test_the_square_of_cutout_is_said_in_the_first_lines():
    words = {**TINY, "IM": True, "IM_type": "Cutout"}
    said = headline(build_parts(Settings.of(words)), [])
    assert "\nCutout: squares of 2 px, 50/224 of the side as published; " in said
    said = headline(build_parts(Settings.of({**words, "mask_size": 6})), [])
    assert "\nwarning: --mask_size 6 erases " in said


@pytest.mark.parametrize(
    ("size", "given", "start"),
    [
        (224, None, "Cutout: squares of 50 px, 50/224 of the side as published; 4% of the picture"),
        (32, None, "Cutout: squares of 7 px, 50/224 of the side as published; 4% of the picture"),
        (32, 50, "warning: --mask_size 50 erases 90% of the picture on average, 100% at most; "),
        (96, 50, "warning: --mask_size 50 erases 20% of the picture on average, 27% at most; "),
        (32, 12, "Cutout: squares of 12 px; 11% of the picture on average, 14% at most"),
    ],
)
def test_a_square_that_takes_much_of_the_picture_is_a_warning(size, given, start):
    mixture = MixtureSettings(IM=True, IM_type="Cutout", mask_size=given)
    (line,) = notes_on_sizes(mixture, ViewSettings(), size)
    assert line.startswith(start)


def test_other_mixtures_say_nothing_of_a_square():
    for mixture in (MixtureSettings(), MixtureSettings(IM=True), MixtureSettings(IM_type="Cutout")):
        assert notes_on_sizes(mixture, ViewSettings(), 32) == ()


def test_a_blur_in_pixels_is_noted_for_small_views():
    views = ViewSettings(second_blur_p=0.1)
    (line,) = notes_on_sizes(MixtureSettings(), views, 32)
    assert line.startswith("note: --blur_sigma 0.1 2 is in pixels; ")
    assert "7 times as much" in line
    assert notes_on_sizes(MixtureSettings(), views, 224) == ()


def test_patches_of_a_mixture_are_the_transformers():
    words = {**VIT, "unmix_mixture": "patchmix", "patch": 2}
    operator = build_parts(Settings.of(words)).module.label_space
    assert operator is not None
    assert operator.patch_size == 2
    given = build_parts(Settings.of({**words, "unmix_patch": 4})).module.label_space
    assert given is not None
    assert given.patch_size == 4
    with pytest.raises(UserError, match=r"^unmix_patch: 1 pixels would cut the patches that timm:"):
        build_parts(Settings.of({**words, "unmix_patch": 1}))


@pytest.mark.parametrize("method", ["moco", "cmc"])
def test_an_encoder_wider_than_any_published_one_is_told_before_it_is_built(method):
    plain = {"method": method, "data": "digits", "backbone": "resnet18", "size": 32}
    line = note_on_width(Settings.of({**plain, "width": 8}))
    assert line is not None
    assert f"resnet18 has {'1,428' if method == 'cmc' else '714'} M parameters with it" in line
    assert note_on_width(Settings.of({**plain, "width": 4})) is None


@pytest.mark.parametrize(
    ("settings", "noted"),
    [
        ({"IM_type": "Cutout", "g_prob": 0.5}, ["--g_prob does not apply to --IM_type Cutout"]),
        ({"IM_type": "global", "r_prob": 0.5, "mask_size": 9}, ["--mask_size, --r_prob do not"]),
        ({"IM_type": "region", "r_prob": 0.5}, []),
        ({"g_prob": 0.5, "r_prob": 0.5}, []),
        ({"g_prob": 0.1, "IM_type": "Cutout"}, []),  # the default, as in the released commands
    ],
)
def test_settings_of_another_type_of_image_space_are_noted(
    settings: dict[str, Any], noted: list[str]
) -> None:
    lines = notes_on_image_space(MixtureSettings(IM=True, **settings))
    assert len(lines) == len(noted)
    assert all(part in line for part, line in zip(noted, lines, strict=True))
