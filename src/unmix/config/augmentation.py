"""The augmentation of the views by name: published settings, crops and flips alone, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from unmix.config.views import ViewSettings

__all__ = ["AUGMENTATIONS", "PRESETS", "RECIPE", "augmentation_of", "expanded", "layered"]

RECIPE = "recipe"
"""The augmentation of a run that is given no other: what its recipe has."""

_CROP_AND_FLIP = ViewSettings(jitter_p=0, gray_p=0)
_BYOL = ViewSettings(
    crop_scale_min=0.08,
    interpolation="bicubic",
    jitter=(0.4, 0.4, 0.2, 0.1),
    blur_p=1.0,
    second_blur_p=0.1,
    second_solarize_p=0.2,
)

PRESETS = {
    "none": replace(_CROP_AND_FLIP, crop_scale_min=1.0, crop_ratio=(1.0, 1.0), flip_p=0.0),
    "crop-flip": _CROP_AND_FLIP,
    "moco-v1": ViewSettings(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0),
    "moco-v2": ViewSettings(blur_p=0.5),
    "moco-v3": replace(_BYOL, crop_scale_min=0.2, interpolation="bilinear"),
    "moco-cifar": ViewSettings(crop_scale_min=0.08),
    "byol": _BYOL,
    "cmc": _CROP_AND_FLIP,
    "dino": replace(
        _BYOL,
        crop_scale_min=0.4,
        local_crops=8,
        local_scale_min=0.05,
        local_scale_max=0.4,
        local_blur_p=0.5,
    ),
    "simclr-cifar": ViewSettings(gray_p=0.1, interpolation="bicubic"),
    "swav-cifar": ViewSettings(crop_scale_min=0.14),
    "swav-imagenet": ViewSettings(
        crop_scale_min=0.14,
        jitter=(0.8, 0.8, 0.8, 0.2),
        blur_p=0.5,
        local_crops=6,
        local_scale_min=0.05,
        local_scale_max=0.14,
    ),
}
"""Published settings of views by name; see `unmix.views.preset`."""

AUGMENTATIONS = (RECIPE, *PRESETS)
"""The values of the setting `augmentation`."""

_VIEWS = frozenset(asdict(ViewSettings()))


def layered(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of several sources as one, of which later ones override earlier ones.

    A source that names an augmentation overrides every setting of the views in earlier sources; of
    several such sources the last one does.

    Args:
        layers: Flat settings.
    """
    naming = [number for number, layer in enumerate(layers) if "augmentation" in layer]
    merged: dict[str, Any] = {}
    for number, layer in enumerate(layers):
        if number in naming[-1:] and layer["augmentation"] != RECIPE:
            merged = {name: value for name, value in merged.items() if name not in _VIEWS}
        merged.update(layer)
    return merged


def expanded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those that their augmentation stands for, which single ones override.

    Args:
        settings: Flat; without `augmentation`, or with an unknown one, they stay as they are.
    """
    preset = PRESETS.get(str(settings.get("augmentation")))
    return {**(asdict(preset) if preset is not None else {}), **settings}


def augmentation_of(settings: Mapping[str, Any]) -> str:
    """The name of settings of views, whatever they were given as; "recipe" for those of no name.

    Args:
        settings: All of a run, flat.
    """
    usual = asdict(ViewSettings())
    views = {name: _plain(settings.get(name, value)) for name, value in usual.items()}
    for name, preset in PRESETS.items():
        if views == {key: _plain(value) for key, value in asdict(preset).items()}:
            return name
    return RECIPE


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(float, value))
    return float(value) if isinstance(value, int) else value
