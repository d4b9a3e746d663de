"""Write `config/catalog.json` and `config/keywords.py`: `python -m unmix.catalog`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import unmix.config
from unmix.config import GROUPS
from unmix.config.catalog import Entry, catalog, packed
from unmix.config.completion import choices
from unmix.config.parameters import Parameter, about, parameters_of
from unmix.plugins import method_entry, mixture_facts

__all__ = ["catalog_text", "keywords_text", "main"]

_PATHS = {"data_dir", "init", "run", "teacher", "test_folder", "train_folder"}
# Other values than those that are listed are possible.
_OPEN_ENDED = {"backbone", "unmix_mixture"}
# Parameters of the commands' functions that are not flags.
_NOT_FLAGS = {"say", "baselines", "mixture", "config", "words", "settings", "extend"}


def catalog_text() -> str:
    """The content of `config/catalog.json`, one line per parameter."""
    from unmix.backbones import BACKBONES, STEMS
    from unmix.credit import RULES
    from unmix.data import DATA_SETS
    from unmix.evaluation import PROBES
    from unmix.methods import METHODS
    from unmix.mixtures import IMAGE_SPACE, MIXTURES, PAIRINGS
    from unmix.mixtures.fields import settings_of
    from unmix.mixtures.operators import PER
    from unmix.mixtures.registry import name_of
    from unmix.mixtures.sampling import DISTRIBUTIONS

    methods = {name: method_entry(kind) for name, kind in METHODS.items()}
    rules = {
        name: Entry(
            about(rule),
            {},
            {
                "title": rule.title,
                "source": rule.source,
                "keeps_clean": rule.keeps_clean,
                "mixture": name_of(rule.mixture),
                "settings": mixture_facts(settings_of(type(rule))),
            },
        )
        for name, rule in RULES.items()
    }
    commands = {name: _command(name, function) for name, function in _functions().items()}
    choices = {
        "backbones": BACKBONES,
        "data": DATA_SETS,
        "distributions": DISTRIBUTIONS,
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
            "mixtures": {name: mixture_facts(choice.settings) for name, choice in MIXTURES.items()},
            "image_space": {
                name: mixture_facts(choice.settings) for name, choice in IMAGE_SPACE.items()
            },
            "choices": {name: list(values) for name, values in choices.items()},
        }
    )


_KEYWORDS = '''"""Types of settings as keyword arguments, written by `python -m unmix.catalog`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import TypedDict

__all__ = ["PretrainSettings", "ViewOverrides"]


class ViewOverrides(TypedDict, total=False):
    """Settings of one kind of view, for `second_view=` and `local_view=`."""

{view}


class PretrainSettings(TypedDict, total=False):
    """Every setting of a run, as keyword arguments of `unmix.pretrain`.

    What each is, and its default: `unmix pretrain --method METHOD --help`. Those of a method go
    with that method alone.
    """

    second_view: ViewOverrides
    local_view: ViewOverrides
{settings}
'''


def keywords_text() -> str:
    """The content of `config/keywords.py`: the settings and their types, for type checkers."""
    groups = {name: parameters_of(kind) for name, kind in GROUPS.items()}
    views = [p for name, p in groups["views"].items() if f"second_{name}" in groups["views"]]
    every = [p for found in groups.values() for p in found.values()]
    every += [p for entry in catalog().methods.values() for p in entry.parameters.values()]
    return _KEYWORDS.format(view=_typed(views), settings=_typed(every))


def _typed(parameters: Iterable[Parameter]) -> str:
    """A line for each name; options of several methods may differ in type."""
    types: dict[str, dict[str, None]] = {}
    for parameter in parameters:
        types.setdefault(parameter.name, {})[_annotation(parameter)] = None
    return "\n".join(f"    {name}: {' | '.join(found)}" for name, found in types.items())


def _annotation(parameter: Parameter) -> str:
    """The type of a keyword argument; what is converted is accepted too."""
    name, kind = parameter.name, parameter.kind
    words = kind.choices or (() if name in _OPEN_ENDED else tuple(choices(name)))
    if name == "data":
        return "Any"
    if name in _PATHS:
        text = "str | os.PathLike[str]"
    elif words:
        numbers = [int(word) for word in words if word.isdecimal()]
        text = f"Literal[{', '.join(json.dumps(word) for word in (*words, *numbers))}]"
        text = f"bool | {text}" if {"yes", "no"} <= {*words} else text
    else:
        text = kind.base.__name__
    text = text if kind.count == 1 else f"Sequence[{text}]"
    return f"{text} | None" if kind.optional else text


def _functions() -> dict[str, Callable[..., Any]]:
    """The functions of the commands, by the commands' names."""
    from unmix import commands

    functions = {
        "bench": "bench",
        "compare": "compare",
        "data pack": "pack",
        "demo": "demo",
        "detect": "detect",
        "embed": "embed",
        "export": "export",
        "finetune": "finetune",
        "import": "import_weights",
        "knn": "knn",
        "neighbors": "neighbors",
        "plan": "plan",
        "plot": "plot",
        "predict": "predict",
        "preview": "preview",
        "probe": "probe",
        "quality": "quality",
        "study show": "show_study",
        "study": "study",
        "submit": "submit",
        "transfer": "transfer",
        "watch": "watch",
    }
    return {name: getattr(commands, function) for name, function in functions.items()}


# Keyword-only in Python, but positional on the command line, as the target of `cp`.
_POSITIONAL = {"data pack": "out"}


def _command(name: str, function: Callable[..., Any]) -> Entry:
    found = {
        key: replace(p, positional=p.positional or _POSITIONAL.get(name) == key)
        for key, p in parameters_of(function).items()
    }
    flags = {name: p for name, p in found.items() if name not in _NOT_FLAGS}
    return Entry(about(function), flags, {})


def _json(tree: Mapping[str, Any], depth: int = 0) -> str:
    """JSON with one line per parameter, so that a change is one line of a diff."""
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
    """Write the files."""
    path = Path(unmix.config.__file__).with_name("catalog.json")
    path.write_text(catalog_text(), encoding="utf-8")
    print(path)
    catalog.cache_clear()
    path = path.with_name("keywords.py")
    path.write_text(keywords_text(), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
