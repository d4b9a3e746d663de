"""Published sets of view settings, by name."""

from __future__ import annotations

from dataclasses import replace

from unmix.config import ViewSettings
from unmix.errors import check_choice

__all__ = ["PRESETS", "preset"]

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
    "none": replace(_CROP_AND_FLIP, crop_scale_min=1.0, crop_ratio=(1.0, 1.0), flip_p=0.0),
}
"""Published settings of views by name; see `preset`."""


def preset(name: str) -> ViewSettings:
    """Return the published settings of a recipe.

    `moco-v1` and `cmc`: ImageNet, the code that the first version of the paper builds on.
    `moco-v2`: ImageNet, MoCo v2. `moco-cifar`: the paper's CIFAR experiments with MoCo.
    `simclr-cifar`: the W-MSE code, for the paper's SimCLR, BYOL and W-MSE results. `swav-cifar`:
    the paper's SwAV script. `none` resizes the largest centered square and does nothing else.

    ImageNet, with a different second view or local crops: `byol` (Grill et
    al. 2020, appendix B; Barlow Twins took them over), `moco-v3` (its released code),
    `dino` (the released code's defaults: 2 views of 224 and 8 crops of 96 pixels) and
    `swav-imagenet` (the released 800-epoch run: 2 views of 224 and 6 crops of 96 pixels).

    Raises:
        UserError: if there is no preset of that name.
    """
    return PRESETS[check_choice("name", name, PRESETS, owner="preset")]
