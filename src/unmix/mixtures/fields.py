"""Parameters of operators and rules: dataclass fields with bounds, and the settings they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from unmix.errors import UserError, check_choice, check_number

__all__ = ["check_parameters", "old_names", "parameter", "settings_of"]

T = TypeVar("T")


def parameter(
    default: Any = dataclasses.MISSING,
    *,
    setting: str | None = None,
    choices: tuple[str, ...] = (),
    **bounds: float,
) -> Any:
    """A dataclass field whose value is checked by `check_parameters`.

    Args:
        default: As of `dataclasses.field`.
        setting: The name of the setting of a run that gives it; None if there is none.
        choices: The values that it may have, where it is a string.
        bounds: `at_least`, `above`, `at_most`, where it is a number or several.
    """
    facts = {"setting": setting, "choices": choices, "bounds": bounds}
    return dataclasses.field(default=default, metadata=facts)


def check_parameters(owner: Any) -> None:
    """Check the values of a dataclass's parameters; None is a value of each.

    Raises:
        UserError: for the first that is none of its choices, no number, or out of its bounds.
    """
    name = type(owner).__name__
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if value is None or "bounds" not in field.metadata:
            continue
        if field.metadata["choices"]:
            check_choice(field.name, value, field.metadata["choices"], owner=name)
        elif field.type not in ("str", "bool"):
            for number in _numbers(field, value, name):
                check_number(field.name, number, owner=name, **field.metadata["bounds"])


def _numbers(field: dataclasses.Field[Any], value: Any, owner: str) -> Sequence[float]:
    """The numbers that a parameter is of: one, or as many as its tuple has.

    Raises:
        UserError: if they are something else.
    """
    kind, given = str(field.type), value if isinstance(value, tuple | list) else (value,)
    count = kind.count("float") if "tuple" in kind else 1
    whole = "int" in kind and "float" not in kind
    if len(given) == count and all(isinstance(each, Integral if whole else Real) for each in given):
        return given
    wanted = "a whole number" if whole else "a number"
    wanted = f"{count} numbers" if count > 1 else wanted
    raise UserError(
        f"{value!r} is not {wanted}.",
        parameter=field.name,
        owner=owner,
        predicate=f"must be {wanted}, got {value!r}",
    )


def settings_of(kind: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass that a run's settings give, by the name of the setting."""
    found = {field.metadata.get("setting"): field for field in dataclasses.fields(kind)}
    return {setting: field for setting, field in found.items() if setting is not None}


def old_names(**names: str) -> Callable[[type[T]], type[T]]:
    """Let a class's parameters be given by their old names, each `old=present`, too."""

    def accept(kind: type[T]) -> type[T]:
        init: Any = kind.__init__

        def accepting(self: T, *values: Any, **given: Any) -> None:
            for old in names.keys() & given.keys():
                if names[old] in given:
                    raise TypeError(f"{kind.__name__}: {old} is the old name of {names[old]}")
                given[names[old]] = given.pop(old)
            init(self, *values, **given)

        kind.__init__ = accepting  # type: ignore[method-assign,assignment]
        return kind

    return accept
