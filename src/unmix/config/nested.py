"""Settings of a view as a mapping: `second_view: {blur_p: 0}` for `second_blur_p: 0`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmix.errors import UserError

__all__ = ["flattened"]

_VIEWS = {"second_view": "second_", "local_view": "local_"}


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those of `second_view` and `local_view` under their flat names.

    Raises:
        UserError: if one of these is not a mapping, or a setting is given in both forms.
    """
    flat = {name: value for name, value in settings.items() if name not in _VIEWS}
    for view, prefix in _VIEWS.items():
        nested = settings.get(view) or {}
        if not isinstance(nested, Mapping):
            raise UserError(
                f"{view}: {nested!r} is not a mapping of settings, such as {{blur_p: 0}}."
            )
        for name, value in nested.items():
            # A local crop's area is `local_scale_min`.
            own = str(name).removeprefix("crop_" if view == "local_view" else "")
            if prefix + own in flat:
                raise UserError(f"{view}: {name} and {prefix}{own} are the same; give one of them.")
            flat[prefix + own] = value
    return flat
