"""Which views are made of an image, in order, and what is drawn for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unmix.config import ViewSettings

__all__ = ["ViewKind", "view_kinds"]


@dataclass(frozen=True)
class ViewKind:
    """What is drawn for one of the views, and how large it is.

    Attributes:
        settings: As those of the first view are read: without regard to `second_` and `local_`.
        size: Pixels of its side.
    """

    settings: ViewSettings
    size: int


def view_kinds(
    settings: ViewSettings,
    size: int,
    count: int,
    extra: Sequence[tuple[float, float] | None] = (),
) -> tuple[ViewKind, ...]:
    """Give the kind of every view: global ones, then local crops, then extra ones.

    Args:
        settings: Of the run.
        size: Pixels of a global view's side, and of an extra one's.
        count: Global views; the second has the `second_` settings, the others are as the first.
        extra: For each further view the smallest and largest area of its crop, as a share of the
            image's, or None for the run's own; else it is as the first.

    Raises:
        UserError: if a local crop would be larger than a view.
    """
    first = ViewKind(settings, size)
    second = _changed(first, blur_p=settings.second_blur_p, solarize_p=settings.second_solarize_p)
    kinds = [second if number == 1 else first for number in range(count)]
    if settings.local_crops:
        local = _changed(
            ViewKind(settings, settings.local_side(size)),
            crop_scale_min=settings.local_scale_min,
            crop_scale_max=settings.local_scale_max,
            blur_p=settings.local_blur_p,
        )
        kinds += [local] * settings.local_crops
    for scale in extra:
        smallest, largest = scale or (None, None)
        kinds.append(_changed(first, crop_scale_min=smallest, crop_scale_max=largest))
    return tuple(kinds)


def _changed(kind: ViewKind, **words: float | None) -> ViewKind:
    """The same kind with some settings replaced; None leaves a setting as it is."""
    given = {name: value for name, value in words.items() if value is not None}
    return replace(kind, settings=replace(kind.settings, **given))  # type: ignore[arg-type]
