"""What is done to an image to make views of it: the settings."""

from __future__ import annotations

from dataclasses import dataclass

from unmix.errors import UserError, check_choice, check_number

__all__ = ["INTERPOLATIONS", "ViewSettings"]

INTERPOLATIONS = ("bilinear", "bicubic")

_MULTIPLE = 8


@dataclass(frozen=True)
class ViewSettings:
    """How views are made; each step is drawn for each sample on its own.

    The order is crop, flip, blur, colour jitter, grayscale, clamp to [0, 1], solarize, normalise.
    The views of an image differ only where a `second_` or `local_` setting says so. Local crops are
    the small ones of multi-crop (SwAV, Caron et al. 2020, section 3.2).

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
        second_blur_p: Probability of a blur of the second view; by default blur_p.
        second_solarize_p: Probability that the second view is solarized; by default solarize_p.
        local_crops: How many local crops there are beside the views.
        local_size: Side of a local crop in pixels; by default 3/7 of the views', rounded to a
            multiple of 8: 96 of 224, 16 of 32.
        local_scale_min: Smallest area of a local crop, as a share of the image's.
        local_scale_max: Largest area of a local crop, as a share of the image's.
        local_blur_p: Probability of a blur of a local crop; by default blur_p.
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
    second_blur_p: float | None = None
    second_solarize_p: float | None = None
    local_crops: int = 0
    local_size: int | None = None
    local_scale_min: float = 0.05
    local_scale_max: float = 0.14
    local_blur_p: float | None = None

    def __post_init__(self) -> None:
        _check_scale("crop", self.crop_scale_min, self.crop_scale_max)
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
        for flag in ("second_blur_p", "second_solarize_p", "local_blur_p"):
            if (value := getattr(self, flag)) is not None:
                check_number(f"--{flag}", value, at_least=0, at_most=1)
        check_number("--local_crops", self.local_crops, at_least=0)
        if self.local_size is not None:
            check_number("--local_size", self.local_size, at_least=1)
        _check_scale("local", self.local_scale_min, self.local_scale_max)

    def local_side(self, size: int) -> int:
        """Give the pixels of a local crop's side, beside views of `size` pixels.

        Raises:
            UserError: if `local_size` is larger than `size`.
        """
        if self.local_size is None:
            return min(size, max(_MULTIPLE, _MULTIPLE * round(3 / 7 * size / _MULTIPLE)))
        if self.local_size > size:
            raise UserError(
                f"--local_size: {self.local_size} is larger than the views, --size {size}; "
                "a local crop is at most as large."
            )
        return self.local_size


def _check_scale(what: str, smallest: float, largest: float) -> None:
    check_number(f"--{what}_scale_min", smallest, above=0, at_most=1)
    check_number(f"--{what}_scale_max", largest, above=0, at_most=1)
    if smallest > largest:
        raise UserError(
            f"--{what}_scale_min: {smallest:g} is larger than --{what}_scale_max, {largest:g}."
        )


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
