"""Settings of earlier versions: their old names, and what was done before they existed.

To rename a setting or one of its values, add a line to `SETTINGS` or `VALUES`. The old name keeps
working: on the command line, in Python, in a YAML file and in a study with one line of notice, in
the `config.yaml` of a run folder without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from unmix.errors import UserError
from unmix.synonyms import SETTINGS as SYNONYMS

__all__ = [
    "SETTINGS",
    "VALUES",
    "RenamedWarning",
    "current",
    "current_name",
    "old_names_noted",
    "upgraded",
]

SETTINGS: dict[str, str] = {
    "centre_momentum": "center_momentum",
    "normalise_last": "normalize_last",
}
"""Old names of settings, each with the present one."""

VALUES: dict[str, dict[str, str]] = {
    "unmix_pairing": {"neighbour": "neighbor"},
}
"""For a setting (by its present name) the old names of its values, each with the present one."""

# A new setting's default is what was done before it existed. Here are the settings of which it is
# not, because what was done was wrong, by the method.
_BEFORE: dict[str, dict[str, Any]] = {"mocov3": {"predictor_bias": True}}

# What config.yaml has where nothing was given, in versions that could not say so; now None.
_NOT_GIVEN = {"beta": 1.0, "unmix_prob": 0.5}
_SINCE = "second_crop_scale_min"  # a setting that those versions do not have

# Every config.yaml of a run has these settings, and no recipe has all of them.
_ALWAYS = {"method", "stem", "resident", "knn_k", "logger"}


class RenamedWarning(FutureWarning):
    """A setting or a value was given by its old name."""


def current_name(name: str, *, quiet: bool = False) -> str:
    """Return the present name of a setting; an old one causes a `RenamedWarning`."""
    if name in SETTINGS and not quiet:
        _warn(name, SETTINGS[name])
    return SETTINGS.get(name) or SYNONYMS.get(name, name)


def current(settings: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """Return the settings with the present names of settings and values.

    Args:
        settings: By name, old or present.
        quiet: Without a `RenamedWarning` for every old name.

    Raises:
        UserError: if a setting is given by its old and its present name.
    """
    found: dict[str, Any] = {}
    for given, value in settings.items():
        if given in SETTINGS and SETTINGS[given] in settings:
            raise UserError(
                f"{given}: is the old name of {SETTINGS[given]}, which is given too; keep one."
            )
        if given in SYNONYMS and SYNONYMS[given] in settings:
            raise UserError(
                f"{given}: is another name of {SYNONYMS[given]}, which is given too; keep one."
            )
        name = current_name(given, quiet=quiet)
        new = VALUES.get(name, {}).get(value) if isinstance(value, str) else None
        if new is not None and not quiet:
            _warn(f"{name} {value}", f"{name} {new}")
        found[name] = value if new is None else new
    return found


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a YAML file in the terms of this version.

    If they are those of a whole run, settings that its version did not have get the value that
    stands for what was done then.
    """
    whole = settings.keys() >= _ALWAYS
    before = _BEFORE.get(str(settings["method"]), {}) if whole else {}
    found = {**before, **current(settings, quiet=whole)}
    if whole and _SINCE not in settings:
        found.update({k: None for k, value in _NOT_GIVEN.items() if found.get(k) == value})
    return found


@contextmanager
def old_names_noted(note: Callable[[str], None]) -> Iterator[None]:
    """Give each old name's line to `note` once; other warnings are shown as usual."""
    noted = set()
    show = warnings.showwarning

    def show_once(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, RenamedWarning):
            show(message, category, *where, **more)
        elif str(message) not in noted:
            noted.add(str(message))
            note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", RenamedWarning)
        warnings.showwarning = show_once
        yield


def _warn(old: str, new: str) -> None:
    text = f"{old} is now called {new}; the old name still works."
    warnings.warn(text, RenamedWarning, stacklevel=2)
