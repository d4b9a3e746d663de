"""Write `config/catalog.json` from the code: `python -m unmix.catalog`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import unmix.config
from unmix.config.catalog import Entry, packed
from unmix.config.parameters import Parameter, about, parameters_of

__all__ = ["catalog_text", "main"]

# What a command's function takes that no flag gives.
_NOT_FLAGS = {"say", "baselines", "mixture", "config", "words", "settings"}


def catalog_text() -> str:
    """The content of `config/catalog.json`: a line for each parameter."""
    from unmix.backbones import BACKBONES, STEMS
    from unmix.credit import RULES
    from unmix.data import DATA_SETS
    from unmix.evaluation import PROBES
    from unmix.methods import METHODS
    from unmix.mixtures import PAIRINGS
    from unmix.mixtures.operators import PER
    from unmix.mixtures.weights import LAWS

    methods = {
        name: Entry(
            about(kind),
            _options(kind),
            {"why_not": {rule: RULES[rule].why_not(kind) for rule in RULES}},
        )
        for name, kind in METHODS.items()
    }
    rules = {
        name: Entry(about(rule), {}, {"source": rule.source, "keeps_clean": rule.keeps_clean})
        for name, rule in RULES.items()
    }
    commands = {name: _command(name, function) for name, function in _functions().items()}
    words = {
        "backbones": BACKBONES,
        "data": DATA_SETS,
        "laws": LAWS,
        "pairings": PAIRINGS,
        "per": PER,
        "protocols": PROBES,
        "stems": STEMS,
    }
    return _json(
        {
            "methods": {name: packed(entry) for name, entry in methods.items()},
            "rules": {name: packed(entry) for name, entry in rules.items()},
            "commands": {name: packed(entry) for name, entry in commands.items()},
            "words": {name: list(choices) for name, choices in words.items()},
        }
    )


def _functions() -> dict[str, Callable[..., Any]]:
    from unmix.commands import bench, compare, demo, knn, pack, preview, probe, show_study, study

    return {
        "bench": bench, "compare": compare, "data pack": pack, "demo": demo, "knn": knn,
        "preview": preview, "probe": probe, "study": study, "study show": show_study,
    }  # fmt: skip


def _options(kind: type) -> dict[str, Parameter]:
    """The keyword arguments of a method's class."""
    found = parameters_of(kind)
    return {name: p for name, p in found.items() if not p.required}


# By keyword alone in Python, and without a flag on the command line, as the target of `cp`.
_POSITIONAL = {"data pack": "out"}


def _command(name: str, function: Callable[..., Any]) -> Entry:
    found = {
        key: replace(p, positional=p.positional or _POSITIONAL.get(name) == key)
        for key, p in parameters_of(function).items()
    }
    flags = {name: p for name, p in found.items() if name not in _NOT_FLAGS}
    return Entry(about(function), flags, {})


def _json(tree: Mapping[str, Any], depth: int = 0) -> str:
    """JSON with a line for each parameter, so that a change is a line in a diff."""
    nested = [value for value in tree.values() if isinstance(value, dict)]
    if depth and not nested:
        return json.dumps(tree, ensure_ascii=False)
    inner = "  " * (depth + 1)
    lines = [
        f"{inner}{json.dumps(key)}: "
        + (
            _json(value, depth + 1)
            if isinstance(value, dict)
            else json.dumps(value, ensure_ascii=False)
        )
        for key, value in tree.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}" + ("" if depth else "\n")


def main() -> None:
    """Write the file."""
    path = Path(unmix.config.__file__).with_name("catalog.json")
    path.write_text(catalog_text(), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
