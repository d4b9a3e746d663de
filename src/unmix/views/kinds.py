"""The views of an image: their order, settings and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unmix.config import ViewSettings
from unmix.errors import UserError

__all__ = ["ViewKind", "view_kinds"]


@dataclass(frozen=True)
class ViewKind:
    """Settings and size of one of the views.

    Attributes:
        settings: Its own, without `second_` and `local_` settings.
        size: Side in pixels.
    """

    settings: ViewSettings
    size: int


def view_kinds(
    settings: ViewSettings | Sequence[ViewSettings],
    size: int,
    count: int,
    extra: Sequence[tuple[float, float] | None] = (),
) -> tuple[ViewKind, ...]:
    """Return the kind of each view: global views, then local crops, then extra views.

    Args:
        settings: Of all views: the second has the `second_` settings, the third and further ones
            are like the first. Or a sequence with the settings of each global view.
        size: Side of the global and extra views in pixels.
        count: Number of global views.
        extra: For each extra view the smallest and largest area of its crop as a share of the
            image's, or None for the first view's; it is like the first view otherwise.

    Raises:
        UserError: if a local crop would be larger than a view, or `settings` has another length
            than `count`.
    """
    if isinstance(settings, ViewSettings):
        all_views, local_crops = settings, settings.local_crops
        chosen = [settings.of_view("second" if view == 1 else "first") for view in range(count)]
    elif len(settings) != count:
        raise UserError(
            f"there are {len(settings)} for {count} views; give one for each view.",
            parameter="settings",
            owner="Views",
        )
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
