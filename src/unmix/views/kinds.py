"""Which views are made of an image, in order, and what is drawn for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unmix.config import ViewSettings
from unmix.errors import UserError

__all__ = ["ViewKind", "view_kinds"]


@dataclass(frozen=True)
class ViewKind:
    """What is drawn for one of the views, and how large it is.

    Attributes:
        settings: Without `second_` and `local_` settings.
        size: Pixels of its side.
    """

    settings: ViewSettings
    size: int


def view_kinds(
    settings: ViewSettings | Sequence[ViewSettings],
    size: int,
    count: int,
    extra: Sequence[tuple[float, float] | None] = (),
) -> tuple[ViewKind, ...]:
    """Give the kind of every view: global ones, then local crops, then extra ones.

    Args:
        settings: Of the run: the second view has the `second_` settings, and from the third on they
            are as the first. Or for each global view its own.
        size: Pixels of a global view's side, and of an extra one's.
        count: Global views.
        extra: For each further view the smallest and largest area of its crop, as a share of the
            image's, or None for the run's own; else it is as the first.

    Raises:
        UserError: if a local crop would be larger than a view, or there are settings for another
            number of views.
    """
    if isinstance(settings, ViewSettings):
        all_views, local_crops = settings, settings.local_crops
        chosen = [settings.of_view("second" if view == 1 else "first") for view in range(count)]
    elif len(settings) != count:
        raise UserError(f"settings: of {len(settings)} views were given; there are {count} views.")
    else:
        all_views, local_crops = settings[0], settings[0].local_crops
        chosen = [each.of_view("first") for each in settings]
    kinds = [ViewKind(each, size) for each in chosen]
    if local_crops:
        local = ViewKind(all_views.of_view("local"), all_views.local_side(size))
        kinds += [local] * local_crops
    for scale in extra:
        low, high = scale or (chosen[0].crop_scale_min, chosen[0].crop_scale_max)
        changed = replace(chosen[0], crop_scale_min=low, crop_scale_max=high)
        kinds.append(ViewKind(changed, size))
    return tuple(kinds)
