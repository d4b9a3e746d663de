"""Settings of the views of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from unmix.errors import UserError, check_choice, check_number

__all__ = ["INTERPOLATIONS", "Interpolation", "ViewSettings"]

Interpolation = Literal["bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

_MULTIPLE = 8


@dataclass(frozen=True)
class ViewSettings:
    """Augmentation of the views; each step is drawn independently for each sample.

    The order is crop, flip, blur, color jitter, grayscale, clamp to [0, 1], solarize, normalize.
    All views of an image have the same settings unless a `second_` or `local_` setting is given;
    `second_view: {blur_p: 0}` in YAML and Python is `second_blur_p: 0`. Local crops are the small
    ones of multi-crop (SwAV, Caron et al. 2020, section 3.2).

    Attributes:
        crop_scale_min: Smallest area of a crop, as a share of the image's.
        crop_scale_max: Largest area of a crop, as a share of the image's.
        crop_ratio: Smallest and largest width / height of a crop.
        interpolation: How a crop is resized: "bilinear" or "bicubic", both antialiased.
        flip_p: Probability of a horizontal flip.
        jitter: Strengths of brightness, contrast, saturation and hue.
        jitter_p: Probability of color jitter.
        gray_p: Probability of grayscale.
        blur_p: Probability of a Gaussian blur.
        blur_sigma: Smallest and largest standard deviation of the blur, in pixels of the view.
        blur_kernel: Kernel size of the blur in pixels, odd; smaller if a view is too small for it.
        solarize_p: Probability that pixels at or above half are inverted.
        second_crop_scale_min: Of the second view: smallest area of a crop; by default
            crop_scale_min, as for all that follow.
        second_crop_scale_max: Of the second view: largest area of a crop.
        second_crop_ratio: Of the second view: smallest and largest width / height of a crop.
        second_interpolation: Of the second view: "bilinear" or "bicubic".
        second_flip_p: Of the second view: probability of a horizontal flip.
        second_jitter: Of the second view: brightness, contrast, saturation and hue.
        second_jitter_p: Of the second view: probability of color jitter.
        second_gray_p: Of the second view: probability of grayscale.
        second_blur_p: Of the second view: probability of a blur.
        second_blur_sigma: Of the second view: smallest and largest sigma of the blur.
        second_blur_kernel: Of the second view: kernel size of the blur.
        second_solarize_p: Of the second view: probability that it is solarized.
        local_crops: Number of local crops in addition to the views.
        local_size: Side of a local crop in pixels; by default 3/7 of the views', rounded to a
            multiple of 8: 96 of 224, 16 of 32.
        local_scale_min: Smallest area of a local crop, as a share of the image's.
        local_scale_max: Largest area of a local crop, as a share of the image's.
        local_ratio: Smallest and largest width / height of a local crop; by default crop_ratio,
            as for all that follow.
        local_interpolation: Of a local crop: "bilinear" or "bicubic".
        local_flip_p: Of a local crop: probability of a horizontal flip.
        local_jitter: Of a local crop: brightness, contrast, saturation and hue.
        local_jitter_p: Of a local crop: probability of color jitter.
        local_gray_p: Of a local crop: probability of grayscale.
        local_blur_p: Of a local crop: probability of a blur.
        local_blur_sigma: Of a local crop: smallest and largest sigma of the blur.
        local_blur_kernel: Of a local crop: kernel size of the blur.
        local_solarize_p: Of a local crop: probability that it is solarized.

    Raises:
        UserError: if a setting is out of range.
    """

    crop_scale_min: float = 0.2
    crop_scale_max: float = 1.0
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    flip_p: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 23
    solarize_p: float = 0.0
    second_crop_scale_min: float | None = None
    second_crop_scale_max: float | None = None
    second_crop_ratio: tuple[float, float] | None = None
    second_interpolation: Interpolation | None = None
    second_flip_p: float | None = None
    second_jitter: tuple[float, float, float, float] | None = None
    second_jitter_p: float | None = None
    second_gray_p: float | None = None
    second_blur_p: float | None = None
    second_blur_sigma: tuple[float, float] | None = None
    second_blur_kernel: int | None = None
    second_solarize_p: float | None = None
    local_crops: int = 0
    local_size: int | None = None
    local_scale_min: float = 0.05
    local_scale_max: float = 0.14
    local_ratio: tuple[float, float] | None = None
    local_interpolation: Interpolation | None = None
    local_flip_p: float | None = None
    local_jitter: tuple[float, float, float, float] | None = None
    local_jitter_p: float | None = None
    local_gray_p: float | None = None
    local_blur_p: float | None = None
    local_blur_sigma: tuple[float, float] | None = None
    local_blur_kernel: int | None = None
    local_solarize_p: float | None = None

    def __post_init__(self) -> None:
        for view in _NAMES:
            self._check(_NAMES[view])
        check_number("local_crops", self.local_crops, at_least=0)
        if self.local_size is not None:
            check_number("local_size", self.local_size, at_least=1)

    def of_view(self, view: Literal["first", "second", "local"]) -> ViewSettings:
        """Return the settings of one view, without `second_` and `local_` ones.

        Args:
            view: "first", "second" (the second global view), or "local" (every local crop).
        """
        alike: dict[str, Any] = {f.name: f.default for f in fields(self) if f.name.startswith(_OWN)}
        given = {name: value for name, (_, value) in self._given(view).items()}
        return replace(self, **alike, **given)

    @property
    def changes_nothing(self) -> bool:
        """Whether every view is the whole image as it is, so that all views of an image are one."""
        if self.local_crops:
            return False
        for view in (self.of_view("first"), self.of_view("second")):
            colors = view.jitter_p if any(view.jitter) else 0
            drawn = (view.flip_p, colors, view.gray_p, view.blur_p, view.solarize_p)
            if view.crop_scale_min < 1 or any(drawn):
                return False
        return True

    def given_for(self, view: Literal["second", "local"]) -> list[str]:
        """Return the names of the settings that are given for a view."""
        return [name for name, _ in self._given(view).values()]

    def _given(self, view: str) -> dict[str, tuple[str, Any]]:
        """For each setting given for a view, by its plain name, the full name and the value."""
        pairs = ((name, (own, getattr(self, own))) for name, own in _NAMES[view].items())
        return {name: given for name, given in pairs if given[1] is not None}

    def _check(self, names: Mapping[str, str]) -> None:
        """Check the settings of one view; `names` has the full name of each."""
        own = {name: own for name, own in names.items() if getattr(self, own) is not None}
        setting = {name: own.get(name, name) for name in names}
        value = {name: getattr(self, setting[name]) for name in names}
        for name in own:
            parameter = setting[name]
            if name.endswith("_p"):
                check_number(parameter, value[name], at_least=0, at_most=1)
            elif name.startswith("crop_scale"):
                check_number(parameter, value[name], above=0, at_most=1)
            elif name == "interpolation":
                check_choice(parameter, value[name], INTERPOLATIONS)
            elif name == "jitter":
                _check_jitter(parameter, value[name])
            elif name in ("crop_ratio", "blur_sigma"):
                _check_range(parameter, value[name])
            elif value[name] < 1 or value[name] % 2 == 0:
                raise UserError(
                    f"{value[name]} is even or not positive; it must be odd and at least 1.",
                    parameter=parameter,
                )
        low, high = value["crop_scale_min"], value["crop_scale_max"]
        if low > high:
            raise UserError(
                f"{low:g} is larger than `{setting['crop_scale_max']}`, {high:g}.",
                parameter=setting["crop_scale_min"],
            )

    def local_side(self, size: int) -> int:
        """Return the side of a local crop in pixels, for views of `size` pixels.

        Raises:
            UserError: if `local_size` is larger than `size`.
        """
        if self.local_size is None:
            return min(size, max(_MULTIPLE, _MULTIPLE * round(3 / 7 * size / _MULTIPLE)))
        if self.local_size > size:
            raise UserError(
                f"{self.local_size} is larger than the views, `size={size}`; a local crop is at "
                "most as large.",
                parameter="local_size",
            )
        return self.local_size


_OWN = ("second_", "local_")
_FIRST = [f.name for f in fields(ViewSettings) if not f.name.startswith(_OWN)]
# The names of the settings of each kind of view.
_NAMES = {
    "first": {name: name for name in _FIRST},
    "second": {name: f"second_{name}" for name in _FIRST},
    "local": {name: f"local_{name.removeprefix('crop_')}" for name in _FIRST},
}


def _check_count(parameter: str, values: tuple[float, ...], count: int) -> None:
    if len(values) != count:
        message = f"needs {count} numbers, got {len(values)}."
        raise UserError(message, parameter=parameter)


def _check_jitter(parameter: str, values: tuple[float, ...]) -> None:
    _check_count(parameter, values, 4)
    for strength in values[:3]:
        check_number(parameter, strength, at_least=0)
    check_number(f"{parameter} (hue)", values[3], at_least=0, at_most=0.5)


def _check_range(parameter: str, values: tuple[float, float]) -> None:
    _check_count(parameter, values, 2)
    for value in values:
        check_number(parameter, value, above=0)
    if values[0] > values[1]:
        raise UserError(
            f"{values[0]:g} is larger than {values[1]:g}; give the smaller one first.",
            parameter=parameter,
        )
