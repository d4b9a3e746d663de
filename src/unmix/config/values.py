"""The types of settings, and the conversion of values from Python, YAML or the command line."""

from __future__ import annotations

import collections.abc
import os
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from unmix.errors import UserError, check_choice

__all__ = ["Kind"]

_WANTED: dict[type, str] = {
    bool: "true or false", int: "an integer", float: "a number", str: "a string"
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """The type of a setting.

    Attributes:
        base: bool, int, float or str.
        count: The number of values: 1, more for a tuple, or None for any number.
        optional: Whether it may be None.
        choices: The allowed strings; empty if any is allowed.
    """

    base: type = str
    count: int | None = 1
    optional: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, hint: Any) -> Kind:
        """The kind of a type annotation; anything but a number or bool is a string."""
        args = [arg for arg in get_args(hint) if arg is not type(None)]
        origin = get_origin(hint)
        if origin in (Union, UnionType):
            kind = cls.of(args[0])
            return cls(kind.base, kind.count, type(None) in get_args(hint), kind.choices)
        if origin is Literal:
            return cls(choices=tuple(args))
        if origin is tuple and Ellipsis not in args:
            return cls(cls.of(args[0]).base, len(args))
        if origin in (tuple, collections.abc.Sequence):
            return cls(cls.of(args[0]).base, None)
        return cls(hint if hint in _WANTED else str)

    @property
    def is_numbers(self) -> bool:
        """Whether it is several numbers, which may be separated by commas."""
        return self.count != 1 and self.base in (int, float)

    @property
    def wanted(self) -> str:
        """The type of one value, for messages."""
        return _WANTED[self.base]

    def fit(self, name: str, value: Any) -> Any:
        """Convert a value to the type.

        A string that reads as a number is one (YAML takes 1e-3 for a string), a number becomes a
        string where one is expected (`precision: 32`), and numbers may be separated by commas.

        Raises:
            UserError: if the value has another type, or is not one of the choices.
        """
        if value is None and self.optional:
            return None
        if self.count == 1:
            return self._fit_one(name, value)
        if self.is_numbers and isinstance(value, str) and "," in value:
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            wanted = "numbers" if self.count is None else f"{self.count} numbers"
            raise UserError(f"{value!r} is not a list of {wanted}.", parameter=name)
        if self.count is not None and len(value) != self.count:
            raise UserError(f"{list(value)} must be {self.count} numbers.", parameter=name)
        return tuple(self._fit_one(name, item) for item in value)

    def _fit_one(self, name: str, value: Any) -> Any:
        converted = self.convert(value)
        if converted is None:
            raise UserError(f"{value!r} is not {self.wanted}.", parameter=name)
        return check_choice(name, converted, self.choices) if self.choices else converted

    def convert(self, value: Any) -> Any:
        """One value as `base`, or None if that is not possible without loss."""
        kind = self.base
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
