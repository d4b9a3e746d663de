"""The base class of backbones, and the choice of the stem by the size of the images."""

from __future__ import annotations

from torch import nn

from unmix.errors import check_choice, check_number

__all__ = ["STEMS", "Backbone", "check_stem", "scale_channels"]

STEMS = ("auto", "small", "medium", "large", "padded")
"""What may stand before the first stage; see `check_stem`."""


class Backbone(nn.Module):
    """An encoder whose forward maps images `(N, C, H, W)` to pooled features `(N, feature_dim)`."""

    feature_dim: int


def check_stem(stem: str, size: int) -> str:
    """Return the stem to build, with "auto" resolved by the size of the images.

    The stem comes before the first stage: "small" keeps the resolution (3x3 convolution of
    stride 1 and padding 1), "medium" halves it once (the same convolution, then a max-pool),
    "large" is the one that was published for 224 pixels. "padded" is "small" with a padding of 2,
    as solo-learn's encoders for CIFAR have it, whose maps are two pixels larger.

    Args:
        stem: One of `STEMS`. "auto" is "small" up to 32 pixels, "medium" up to 64, and "large"
            above, as in the whitening paper's CIFAR, STL-10 and ImageNet encoders (arXiv
            2007.06346).
        size: Side of the images in pixels.

    Raises:
        UserError: if the stem is unknown or the size is not positive.
    """
    check_choice("stem", stem, STEMS)
    check_number("size", size, at_least=1)
    if stem != "auto":
        return stem
    if size <= 32:
        return "small"
    return "medium" if size <= 64 else "large"


def scale_channels(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded, and at least 1.

    Raises:
        UserError: if `width` is not a positive number.
    """
    check_number("width", width, above=0)
    return max(1, round(channels * width))
