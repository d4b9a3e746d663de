"""What a file must hold that is read back: a dataclass that describes it, and the check of one.

    @dataclass(frozen=True)
    class Shard:
        file: Annotated[str, Check(plain_name, "a file name without a folder")]
        bytes: Count

    checked(Shard, {"file": "a.tar", "bytes": "9"}, "pack.json")
    # UserError: pack.json: bytes is '9'; it must be a whole number of at least 0.

Keys that a description does not have are ignored: a newer version may have added them.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from unmix.errors import UserError

__all__ = [
    "Between",
    "Check",
    "Count",
    "Epoch",
    "Fraction",
    "Integer",
    "Percent",
    "checked",
    "excerpt",
]

T = TypeVar("T")
_LONGEST = 80
_LARGEST = 2**63 - 1
_SEQUENCES = (list, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)


@dataclass(frozen=True)
class Between:
    """Bounds of a number, both allowed.

    Attributes:
        low: The smallest.
        high: The largest.
        words: What it must be, for messages; by default from the bounds.
    """

    low: float
    high: float = math.inf
    words: str = ""

    def __call__(self, value: float) -> bool:
        """Whether a number is within."""
        return self.low <= value <= self.high

    def wanted(self, kind: str) -> str:
        """What it must be."""
        if self.words:
            return self.words
        if math.isinf(self.high):
            return f"{kind} of at least {self.low:g}"
        return f"{kind} from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Check:
    """A condition that a value of the right type must meet.

    Attributes:
        test: Whether a value does.
        words: What it must be, for messages.
    """

    test: Callable[[Any], bool]
    words: str

    def __call__(self, value: Any) -> bool:
        """Whether a value meets it."""
        return self.test(value)

    def wanted(self, kind: str) -> str:
        """What it must be."""
        return self.words


Count = Annotated[int, Between(0)]
Epoch = Annotated[int, Between(0, 1e9, "a whole number from 0 to 1,000,000,000")]
Integer = Annotated[int, Between(-_LARGEST, _LARGEST, "a whole number of at most 64 bits")]
Fraction = Annotated[float, Between(0, 1)]
Percent = Annotated[float, Between(0, 100, "a percentage from 0 to 100")]


class _WrongError(Exception):
    """A value that is not as described; the message is a clause that names its key."""


def checked(kind: type[T], value: Any, where: object, remedy: str = "") -> T:
    """Make a dataclass of the content of a file, which is checked against its annotations.

    They may be `str`, `bool`, `int` (also a float without a fraction, if it fits 64 bits), `float`
    (finite, also an int), a dataclass, `Literal`, a list, tuple or mapping of these, `| None`, and
    `Any` (any JSON value, but no number that is not finite); with `Annotated` also conditions.

    Args:
        kind: The dataclass, or another annotation.
        value: What the file holds.
        where: What messages call the file.
        remedy: A sentence for the end of messages.

    Raises:
        UserError: with the first key that is missing or wrong, its value, and what it must be.
    """
    try:
        return _fitted(kind, value, "")
    except _WrongError as error:
        raise UserError(f"{where}: {error}.{remedy and f' {remedy}'}") from None


def excerpt(value: Any) -> str:
    """The `repr` of a value, cut to fit a line."""
    try:
        text = repr(value[:_LONGEST] if isinstance(value, str | bytes) else value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _fitted(kind: Any, value: Any, key: str, whole: Any = None) -> Any:
    """The value as `kind` describes it, which is part of the annotation `whole`, if any."""
    origin, args = get_origin(kind), get_args(kind)
    whole = kind if whole is None else whole
    if origin is Annotated:
        found = _fitted(args[0], value, key, whole)
        for test in args[1:]:
            if found is not None and not test(found):
                raise _wrong(whole, value, key)
        return found
    if origin in (Union, UnionType):
        return None if value is None else _fitted(_not_none(args), value, key, whole)
    if kind is Any:
        _check_finite(value, key)
        return value
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, key, whole)
    if origin is Literal:
        if isinstance(value, bool) or value not in args:
            raise _wrong(whole, value, key)
        return value
    if origin in _SEQUENCES or origin is tuple:
        return _sequence(kind, value, key, whole)
    if origin in _MAPPINGS:
        if not isinstance(value, Mapping):
            raise _wrong(whole, value, key)
        inner = args[1]
        return {str(name): _fitted(inner, item, _key(key, name)) for name, item in value.items()}
    return _scalar(kind, value, key, whole)


def _record(kind: Any, value: Any, key: str, whole: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(whole, value, key)
    found = {}
    for name, (hint, required) in _fields(kind).items():
        if name in value:
            found[name] = _fitted(hint, value[name], _key(key, name))
        elif required:
            raise _WrongError(f"{_key(key, name)} is missing; it must be {_wanted(hint)}")
    return kind(**found)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The annotation of each field of a dataclass, and whether it must be given."""
    hints = get_type_hints(kind, include_extras=True)
    missing = dataclasses.MISSING
    return {
        field.name: (
            hints[field.name],
            field.default is missing and field.default_factory is missing,
        )
        for field in dataclasses.fields(kind)
        if field.init
    }


def _sequence(kind: Any, value: Any, key: str, whole: Any) -> Any:
    args = get_args(kind)
    if not isinstance(value, list | tuple):
        raise _wrong(whole, value, key)
    if get_origin(kind) is tuple and Ellipsis not in args:
        if len(value) != len(args):
            raise _wrong(whole, value, key)
        pairs = zip(args, value, strict=True)
        return tuple(_fitted(hint, item, f"{key}[{i}]") for i, (hint, item) in enumerate(pairs))
    found = [_fitted(args[0], item, f"{key}[{i}]") for i, item in enumerate(value)]
    return tuple(found) if get_origin(kind) is tuple else found


def _scalar(kind: Any, value: Any, key: str, whole: Any) -> Any:
    if kind in (str, bool):
        if not isinstance(value, kind):
            raise _wrong(whole, value, key)
        return value
    # True is an int in Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(whole, value, key)
    if not (abs(value) <= _LARGEST if kind is int else abs(value) < math.inf):
        raise _wrong(whole, value, key)
    if kind is int and value != int(value):
        raise _wrong(whole, value, key)
    try:
        return kind(value)
    except OverflowError:
        raise _wrong(whole, value, key) from None


def _check_finite(value: Any, key: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise _WrongError(f"{key or 'it'} is {value}; it must be a finite number")
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_finite(item, _key(key, name))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_finite(item, f"{key}[{i}]")


def _key(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _not_none(args: tuple[Any, ...]) -> Any:
    (kind,) = (arg for arg in args if arg is not NoneType)
    return kind


def _wrong(kind: Any, value: Any, key: str) -> _WrongError:
    if not key:
        return _WrongError(f"holds {excerpt(value)}; it must be a JSON object")
    return _WrongError(f"{key} is {excerpt(value)}; it must be {_wanted(kind)}")


_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def _wanted(kind: Any) -> str:
    """What a value must be, in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        words = _wanted(args[0])
        for test in args[1:]:
            words = test.wanted(words)
        return words
    if origin in (Union, UnionType):
        return f"{_wanted(_not_none(args))}, or null"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is tuple and Ellipsis not in args:
        inner = {_wanted(arg) for arg in args}
        each = f", each {inner.pop()}" if len(inner) == 1 else ""
        return f"a list of {len(args)}{each}"
    if origin in _SEQUENCES or origin is tuple:
        return "a list"
    return _NAMES.get(kind, "an object")
