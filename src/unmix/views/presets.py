"""Published sets of view settings, by name."""

from __future__ import annotations

from unmix.config import ViewSettings
from unmix.config.augmentation import PRESETS
from unmix.errors import check_choice

__all__ = ["PRESETS", "preset"]


def preset(name: str) -> ViewSettings:
    """Return the published settings of a recipe.

    `none` resizes the largest centered square and does nothing else; `crop-flip` crops and flips.

    `moco-v1` and `cmc`: ImageNet, the code that the first version of the paper builds on.
    `moco-v2`: ImageNet, MoCo v2. `moco-cifar`: the paper's CIFAR experiments with MoCo.
    `simclr-cifar`: the W-MSE code, for the paper's SimCLR, BYOL and W-MSE results. `swav-cifar`:
    the paper's SwAV script.

    ImageNet, with a different second view or local crops: `byol` (Grill et
    al. 2020, appendix B; Barlow Twins took them over), `moco-v3` (its released code),
    `dino` (the released code's defaults: 2 views of 224 and 8 crops of 96 pixels) and
    `swav-imagenet` (the released 800-epoch run: 2 views of 224 and 6 crops of 96 pixels).

    Raises:
        UserError: if there is no preset of that name.
    """
    return PRESETS[check_choice("name", name, PRESETS, owner="preset")]
