"""Recipes: YAML files of settings that state only what they change, a folder for each method."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from unmix.config.earlier import current, upgraded
from unmix.config.nested import flattened
from unmix.errors import UserError, check_choice

__all__ = ["recipe", "recipe_names", "recipe_text", "resolve", "summary"]

_ROOT = resources.files("unmix") / "recipes"


class _TwiceError(ValueError):
    """A setting that a file has twice."""


class _Once(yaml.SafeLoader):
    """YAML's loader takes the last of equal keys without a word; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise _TwiceError(
                    f"lines {seen[key.value]} and {line} both set {key.value}; keep one."
                )
            if isinstance(key, yaml.ScalarNode):
                seen[key.value] = line
        return super().construct_mapping(node, deep)


@cache
def _folders() -> dict[str, str]:
    """The folder of each recipe that ships, by the recipe's name."""
    folders = [folder for folder in _ROOT.iterdir() if folder.is_dir()]
    return {
        file.name.removesuffix(".yaml"): folder.name
        for folder in folders
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }


def recipe_names() -> list[str]:
    """The names of the recipes that ship with the package."""
    return sorted(_folders())


def recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe that ships, or of a YAML file; a recipe comes before a file.

    Raises:
        UserError: if there is no such recipe or file, or it does not hold `word: value` lines.
    """
    path = Path(name)
    is_file = name not in recipe_names() and (path.suffix in (".yaml", ".yml") or path.exists())
    text = _file_text(path) if is_file else recipe_text(name)
    try:
        words = yaml.load(text, Loader=_Once) or {}
    except _TwiceError as error:
        raise UserError(f"--config: {name} {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"--config: {name}{where} is not valid YAML.") from None
    if not isinstance(words, dict):
        raise UserError(f"--config: {name} must hold lines of the form `setting: value`.")
    return upgraded(flattened(words))


def recipe_text(name: str, flag: str | None = None) -> str:
    """The YAML text of a recipe that ships.

    Args:
        name: Of the recipe.
        flag: What the command line calls the name in an error; by default --config.

    Raises:
        UserError: if there is none of that name, with the nearest match.
    """
    check_choice("config", name, recipe_names(), flag=flag)
    file = _ROOT / _folders()[name] / f"{name}.yaml"
    return file.read_text(encoding="utf-8")


def _file_text(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"--config: {path} is a folder; give a YAML file, or the name of a recipe.")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"--config: there is no file {path}; a recipe is named without .yaml."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"--config: {path} cannot be read ({reason}).") from None


def summary(name: str) -> str:
    """The first comment line of a recipe that ships."""
    return recipe_text(name).splitlines()[0].removeprefix("#").strip()


def resolve(
    words: Mapping[str, Any], config: str | Sequence[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Put the layers of settings together: METHOD, then METHOD-DATA or `config`, then `words`.

    Args:
        words: What the user gave.
        config: A recipe's name or a YAML file, or several, each over the ones before; without it
            the recipe METHOD-DATA is taken if it exists.

    Returns:
        The settings that differ from the program's defaults, and the names of the recipes used.
    """
    words = current(words)
    configs = [config] if isinstance(config, (str, os.PathLike)) else list(config or ())
    chosen: dict[str, Any] = {}
    for name in configs:
        chosen.update(recipe(os.fspath(name)))
    method = words.get("method", chosen.get("method", "moco"))
    data = words.get("data", chosen.get("data", "photos"))
    names = recipe_names()
    layers, used = [], []
    automatic = [method] if configs else [method, f"{method}-{data}"]
    if configs[:1] == [method]:
        automatic = []
    for name in automatic:
        if name in names:
            layers.append(recipe(name))
            used.append(name)
    layers.append(chosen)
    used += [os.fspath(name) for name in configs]
    merged: dict[str, Any] = {}
    for layer in (*layers, flattened(words)):
        merged.update(layer)
    return {"method": method, "data": data, **merged}, used
