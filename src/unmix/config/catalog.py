"""The options of methods, rules and commands, without importing PyTorch.

Importing PyTorch takes seconds, which neither a help text nor an error about a flag should. So the
options of the methods, the signatures of the commands, and the rules that each method supports are
kept in `catalog.json`. `python -m unmix.catalog` rewrites it; a test compares it with the code.
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
        about: Its description; the first line is a summary.
        parameters: Its parameters, by name.
        facts: Other facts, by name.
    """

    about: str
    parameters: dict[str, Parameter]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Catalog:
    """The content of `catalog.json`.

    Attributes:
        methods: By name; the fact `why_not` has for every rule None, or why it does not apply.
        rules: By name; the facts are `title`, `source`, `keeps_clean`, `mixture` (the name of the
            one that it was published with) and `settings` (as of a mixture).
        commands: By name, as "data pack".
        mixtures: Those of label space by name; for each of its settings the `choices` and the
            `bounds` of the value.
        image_space: The perturbations of image space, likewise.
        choices: Values defined in classes, such as the names of data sets.
    """

    methods: dict[str, Entry]
    rules: dict[str, Entry]
    commands: dict[str, Entry]
    mixtures: dict[str, dict[str, dict[str, Any]]]
    image_space: dict[str, dict[str, dict[str, Any]]]
    choices: dict[str, list[str]]


@cache
def catalog() -> Catalog:
    """The catalog of this version."""
    file = resources.files("unmix.config") / "catalog.json"
    read = json.loads(file.read_text(encoding="utf-8"))
    groups: Any = {
        group: {name: unpacked(entry) for name, entry in read[group].items()}
        for group in ("methods", "rules", "commands")
    }
    rest: Any = {group: read[group] for group in ("mixtures", "image_space", "choices")}
    return Catalog(**groups, **rest)


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
    """An entry as JSON, without usual values."""
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
    """The entry from its JSON."""
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
