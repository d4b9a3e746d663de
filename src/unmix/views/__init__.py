"""Batched augmentation on the device: crop, flip, blur, color, color spaces."""

from __future__ import annotations

from unmix.config import ViewSettings
from unmix.views.color_spaces import (
    COLOR_SPACES,
    normalize_lab,
    normalize_ycbcr,
    rgb_to_lab,
    rgb_to_ycbcr,
)
from unmix.views.draws import ViewDraw
from unmix.views.geometry import crop_pil
from unmix.views.pipeline import Views
from unmix.views.presets import PRESETS, preset

__all__ = [
    "COLOR_SPACES",
    "PRESETS",
    "ViewDraw",
    "ViewSettings",
    "Views",
    "crop_pil",
    "normalize_lab",
    "normalize_ycbcr",
    "preset",
    "rgb_to_lab",
    "rgb_to_ycbcr",
]
