"""The parameters of functions and classes, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

from unmix.config.values import Kind

__all__ = ["Parameter", "about", "parameters_of"]


@dataclass(frozen=True)
class Parameter:
    """A parameter.

    Attributes:
        name: As in Python; the flag is `--name`.
        kind: Its type.
        default: Its value if it is not given.
        text: Its description, in one line.
        required: Whether it has no default.
        positional: Whether it is positional on the command line.
    """

    name: str
    kind: Kind
    default: Any = None
    text: str = ""
    required: bool = False
    positional: bool = False


@cache
def parameters_of(function: Any, documented: Any = None) -> dict[str, Parameter]:
    """The parameters of a function or a class, by name.

    Args:
        function: A function, or a class, whose constructor is used.
        documented: The object with the docstring; by default the function itself.
    """
    texts = _texts(inspect.getdoc(documented or function) or "")
    annotated: Any = function.__init__ if inspect.isclass(function) else function  # type: ignore[misc]
    hints = _hints(annotated)
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        name, required = parameter.name, parameter.default is parameter.empty
        usual = (
            type(parameter.default) if isinstance(parameter.default, bool | int | float) else str
        )
        kind = Kind.of(hints.get(name, usual))
        if parameter.kind is parameter.VAR_POSITIONAL:
            kind = replace(kind, base=str, count=None)
        found[name] = Parameter(
            name,
            kind,
            None if required else parameter.default,
            texts.get(name, ""),
            required,
            required and parameter.kind is not parameter.KEYWORD_ONLY,
        )
    return found


def _hints(function: Any) -> dict[str, Any]:
    """The annotations of a function, but for names that it imports for type checkers alone."""
    with suppress(NameError):
        return get_type_hints(function)
    found: dict[str, Any] = {}
    for name, hint in function.__annotations__.items():
        alone = type("Alone", (), {"__annotations__": {name: hint}})
        with suppress(NameError):
            found |= get_type_hints(alone, function.__globals__)
    return found


def about(described: Any) -> str:
    """The description of an object: its docstring up to the first section."""
    text = inspect.getdoc(described) or ""
    return re.split(r"\n+(?:Args|Attributes|Returns|Raises):\n", text)[0].strip()


def _texts(doc: str) -> dict[str, str]:
    """The entries of a docstring's `Args:` or `Attributes:`, each as one line."""
    section = re.search(r"^(?:Args|Attributes):\n((?: .*\n?|\n)+)", doc, re.MULTILINE)
    body = section.group(1) if section else ""
    _, *entries = re.split(r"^    (\w+): ", body, flags=re.MULTILINE)
    return {
        name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)
    }
