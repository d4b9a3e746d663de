"""What PyTorch's classes and the commands say of themselves, without importing them.

PyTorch takes seconds to import, and a help text or the refusal of a mistyped flag shall not. So the
options of the methods, the signatures of the commands, and which rules go with which methods are
kept in `catalog.json`. `python -m unmix.catalog` writes it anew; a test holds it against the code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from unmix.config.parameters import Parameter
from unmix.config.values import Kind
from unmix.errors import check_choice

__all__ = ["Catalog", "Entry", "catalog", "method_options", "methods_with", "packed", "unpacked"]

_BASES = {kind.__name__: kind for kind in (bool, int, float, str)}


@dataclass(frozen=True)
class Entry:
    """A method, a rule or a command.

    Attributes:
        about: What it is; the first line stands alone.
        parameters: What can be set, by name.
        facts: What else is known of it.
    """

    about: str
    parameters: dict[str, Parameter]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Catalog:
    """Everything in `catalog.json`.

    Attributes:
        methods: By name; the fact `why_not` has None or a reason for every rule.
        rules: By name; the facts are `source` and `keeps_clean`.
        commands: By name, as "data pack".
        words: Choices that classes know, such as the names of data sets.
    """

    methods: dict[str, Entry]
    rules: dict[str, Entry]
    commands: dict[str, Entry]
    words: dict[str, list[str]]


@cache
def catalog() -> Catalog:
    """The catalog that ships."""
    file = resources.files("unmix.config") / "catalog.json"
    read = json.loads(file.read_text(encoding="utf-8"))
    groups = {
        group: {name: unpacked(entry) for name, entry in read[group].items()}
        for group in ("methods", "rules", "commands")
    }
    return Catalog(**groups, words=read["words"])


def method_options(method: str) -> dict[str, Parameter]:
    """The options of a method: the keyword arguments of its class.

    Raises:
        UserError: if there is no such method, with the nearest match.
    """
    methods = catalog().methods
    return methods[check_choice("method", method, methods)].parameters


def methods_with(option: str) -> list[str]:
    """The methods that have an option of this name."""
    return [name for name, entry in catalog().methods.items() if option in entry.parameters]


def packed(entry: Entry) -> dict[str, Any]:
    """An entry as JSON; what is usual is left out."""
    parameters = {
        name: {
            "type": p.kind.base.__name__,
            **({} if p.kind.count == 1 else {"count": p.kind.count}),
            **({"optional": True} if p.kind.optional else {}),
            **({"choices": list(p.kind.choices)} if p.kind.choices else {}),
            **({"required": True} if p.required else {"default": p.default}),
            **({"positional": True} if p.positional else {}),
            "text": p.text,
        }
        for name, p in entry.parameters.items()
    }
    return {"about": entry.about, "parameters": parameters, **entry.facts}


def unpacked(found: dict[str, Any]) -> Entry:
    """The entry that JSON stands for."""
    parameters = {}
    for name, p in found["parameters"].items():
        kind = Kind(
            _BASES[p["type"]],
            p.get("count", 1),
            p.get("optional", False),
            tuple(p.get("choices", ())),
        )
        default = p.get("default")
        parameters[name] = Parameter(
            name,
            kind,
            tuple(default) if isinstance(default, list) else default,
            p["text"],
            p.get("required", False),
            p.get("positional", False),
        )
    facts = {k: v for k, v in found.items() if k not in ("about", "parameters")}
    return Entry(found["about"], parameters, facts)
