"""Mistakes of the user, told in one line that names the flag, the value and what would be right."""

from __future__ import annotations

import math
from collections.abc import Iterable

from unmix.names import shown
from unmix.synonyms import called_value, nearest

__all__ = ["UserError", "check_choice", "check_given", "check_number"]


class UserError(ValueError):
    """A mistake that the user can mend.

    The message is one line: it names the flag, file or value, and what would be right. The command
    line prints it without a traceback and exits with status 2. Names in it are made harmless (see
    `unmix.names.shown`).
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shown(message))

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback: the message says all there is to know."""
        return [f"{type(self).__name__}: {self}"]


def check_given(flag: str, value: object) -> None:
    """Check that a text is not empty, as that of a shell variable which was not set.

    Raises:
        UserError: if it is.
    """
    if isinstance(value, str) and not value.strip():
        raise UserError(f"{flag}: the value is empty; give one, or leave {flag} out.")


def check_choice(flag: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        UserError: otherwise, with the nearest match if there is one, and all the choices.
    """
    options = list(choices)
    if value in options:
        return value
    meant = called_value(flag.removeprefix("--"), value)
    near = meant if meant in options else nearest(value, options)
    hint = f" Did you mean {near!r}?" if near else ""
    raise UserError(f"{flag}: {value!r} is unknown.{hint} Known: {', '.join(options)}.")


def check_number(
    flag: str,
    value: float,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    """Check a number against its bounds.

    Raises:
        UserError: if `value` is not finite or lies outside the bounds.
    """
    bounds = []
    if at_least is not None:
        bounds.append(f"at least {_shown(at_least)}")
    if above is not None:
        bounds.append(f"greater than {_shown(above)}")
    if at_most is not None:
        bounds.append(f"at most {_shown(at_most)}")
    wrong = (
        not math.isfinite(value)
        or (at_least is not None and value < at_least)
        or (above is not None and value <= above)
        or (at_most is not None and value > at_most)
    )
    if wrong:
        wanted = " and ".join(bounds) or "a finite number"
        raise UserError(f"{flag}: {_shown(value)} is out of range; it must be {wanted}.")


def _shown(value: float) -> str:
    """A whole number with all its digits, another one with six."""
    return str(value) if isinstance(value, int) else f"{value:g}"
