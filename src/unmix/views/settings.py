"""What is done to an image to make a view of it: the settings, and the published sets of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unmix.errors import UserError, check_choice, check_number
from unmix.views.geometry import INTERPOLATIONS

__all__ = ["PRESETS", "ViewSettings", "preset"]


@dataclass(frozen=True)
class ViewSettings:
    """How views are made; each step is drawn for each sample on its own.

    The order is crop, flip, blur, colour jitter, grayscale, clamp to [0, 1], solarize, normalise.

    Attributes:
        crop_scale_min: Smallest area of a crop, as a share of the image's.
        crop_scale_max: Largest area of a crop, as a share of the image's.
        crop_ratio: Smallest and largest width / height of a crop.
        interpolation: How a crop is resized: "bilinear" or "bicubic", both antialiased.
        flip_p: Probability of a horizontal flip.
        jitter: Strengths of brightness, contrast, saturation and hue.
        jitter_p: Probability of colour jitter.
        gray_p: Probability of grayscale.
        blur_p: Probability of a Gaussian blur.
        blur_sigma: Smallest and largest standard deviation of the blur, in pixels of the view.
        blur_kernel: Taps of the blur's kernel, odd; cut to what a small view allows.
        solarize_p: Probability that pixels at or above half are inverted.
    """

    crop_scale_min: float = 0.2
    crop_scale_max: float = 1.0
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip_p: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 23
    solarize_p: float = 0.0

    def __post_init__(self) -> None:
        check_number("--crop_scale_min", self.crop_scale_min, above=0, at_most=1)
        check_number("--crop_scale_max", self.crop_scale_max, above=0, at_most=1)
        if self.crop_scale_min > self.crop_scale_max:
            raise UserError(
                f"--crop_scale_min: {self.crop_scale_min:g} is larger than --crop_scale_max, "
                f"{self.crop_scale_max:g}."
            )
        _check_range("--crop_ratio", self.crop_ratio)
        check_choice("--interpolation", self.interpolation, INTERPOLATIONS)
        for flag in ("flip_p", "jitter_p", "gray_p", "blur_p", "solarize_p"):
            check_number(f"--{flag}", getattr(self, flag), at_least=0, at_most=1)
        _check_count("--jitter", self.jitter, 4)
        for strength in self.jitter[:3]:
            check_number("--jitter", strength, at_least=0)
        check_number("--jitter (hue)", self.jitter[3], at_least=0, at_most=0.5)
        _check_range("--blur_sigma", self.blur_sigma)
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise UserError(f"--blur_kernel: {self.blur_kernel} taps; it must be odd and positive.")


def _check_count(flag: str, values: tuple[float, ...], count: int) -> None:
    if len(values) != count:
        raise UserError(f"{flag}: {len(values)} numbers were given; it must be {count}.")


def _check_range(flag: str, values: tuple[float, float]) -> None:
    _check_count(flag, values, 2)
    for value in values:
        check_number(flag, value, above=0)
    if values[0] > values[1]:
        raise UserError(
            f"{flag}: {values[0]:g} is larger than {values[1]:g}; the smaller is first."
        )


_MOCO_CIFAR = ViewSettings(crop_scale_min=0.08)
_CROP_AND_FLIP = ViewSettings(jitter_p=0, gray_p=0)

PRESETS = {
    "moco-v1": ViewSettings(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0),
    "moco-v2": ViewSettings(blur_p=0.5),
    "moco-cifar": _MOCO_CIFAR,
    "cmc": _CROP_AND_FLIP,
    "simclr-cifar": ViewSettings(gray_p=0.1, interpolation="bicubic"),
    "swav-cifar": ViewSettings(crop_scale_min=0.14),
    "none": replace(_CROP_AND_FLIP, crop_scale_min=1.0, crop_ratio=(1.0, 1.0), flip_p=0.0),
}


def preset(name: str) -> ViewSettings:
    """Give the published settings of a recipe.

    `moco-v1` and `cmc` are the ImageNet views of the code that the paper's first version builds on;
    `moco-v2` those of MoCo v2; `moco-cifar` those of the paper's CIFAR experiments; `simclr-cifar`
    those of the whitening code behind its SimCLR, BYOL and W-MSE results; `swav-cifar` those of its
    SwAV script. `none` only resizes, the largest centred square.

    Raises:
        UserError: if there is no preset of that name.
    """
    return PRESETS[check_choice("--views", name, PRESETS)]
