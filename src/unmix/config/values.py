"""A value as its type wants it, wherever it is from: Python, YAML or the command line."""

from __future__ import annotations

import os
from types import UnionType
from typing import Any, Union, get_args, get_origin

from unmix.errors import UserError

__all__ = ["fitting"]

_WANTED: dict[type, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a word"
}  # fmt: skip


def fitting(name: str, value: Any, hint: Any) -> Any:
    """A value as its type wants it, wherever it is from: Python, YAML or the command line.

    A text that reads as a number is one (YAML takes 1e-3 for a text), and a number is a word where
    a word is wanted (`precision: 32`).

    Raises:
        UserError: if the value is of another type.
    """
    args = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return None if value is None else fitting(name, value, args[0])
    if get_origin(hint) is tuple:
        return _fitting_tuple(name, value, args)
    kind = hint if hint in _WANTED else str
    converted = _convert(value, kind)
    if converted is None:
        raise UserError(f"--{name}: {value!r} is not {_WANTED[kind]}.")
    return converted


def _fitting_tuple(name: str, value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    count = None if Ellipsis in args else len(args)
    if not isinstance(value, (list, tuple)):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"--{name}: {value!r} is not a list of {wanted}.")
    if count is not None and len(value) != count:
        raise UserError(f"--{name}: {list(value)} must be {count} numbers.")
    return tuple(fitting(name, item, args[0]) for item in value)


def _convert(value: Any, kind: type) -> Any:
    """The value as `kind`, or None if it cannot be that without a loss."""
    if kind is str and isinstance(value, bool):
        return "yes" if value else "no"  # YAML takes these words for true and false
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is str:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        return str(value) if isinstance(value, (str, int, float)) else None
    if kind is int and isinstance(value, float):
        return None
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        return None
