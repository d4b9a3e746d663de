"""A value as its type wants it, wherever it is from: Python, YAML or the command line."""

from __future__ import annotations

import collections.abc
import os
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from unmix.errors import UserError, check_choice

__all__ = ["Kind"]

_WANTED: dict[type, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a word"
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """The type of a setting.

    Attributes:
        base: bool, int, float or str.
        count: How many of them make the value: 1, more as a tuple, or None for any number.
        optional: Whether None is a value too.
        choices: The texts that it may be, where only these are possible.
    """

    base: type = str
    count: int | None = 1
    optional: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, hint: Any) -> Kind:
        """The kind that a type annotation stands for; what is no number or bool is a text."""
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
        """Whether it is several numbers, which may be joined by commas."""
        return self.count != 1 and self.base in (int, float)

    @property
    def wanted(self) -> str:
        """What one value of it must be, in words."""
        return _WANTED[self.base]

    def fit(self, name: str, value: Any) -> Any:
        """A value as the type wants it.

        A text that reads as a number is one (YAML takes 1e-3 for a text), a number is a word where
        a word is wanted (`precision: 32`), and numbers joined by commas are several.

        Raises:
            UserError: if the value is of another type, or none of the choices.
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
        """One value as `base`, or None if it cannot be that without a loss."""
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
