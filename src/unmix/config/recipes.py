"""Recipes: YAML files of settings that state only what they change.

Those that ship lie in `recipes/METHOD/`; users give their own as `--config FILE.yaml`. A file may
say `extends: NAME`: it then changes the settings of that recipe or file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from unmix.config.augmentation import layered
from unmix.config.earlier import current, upgraded
from unmix.config.groups import TIMM
from unmix.config.nested import flattened
from unmix.config.yaml_files import INVALID, YamlError, parse_yaml
from unmix.errors import UserError
from unmix.files import read_text
from unmix.schema import excerpt
from unmix.synonyms import nearest

__all__ = ["recipe", "recipe_in_full", "recipe_names", "recipe_text", "resolve", "summary"]

_ROOT = resources.files("unmix") / "recipes"


@dataclass(frozen=True)
class _Layer:
    """One file.

    Attributes:
        name: The name of a recipe that ships, or the path of a file.
        text: Its content.
        settings: What it sets itself.
        extends: The recipe or file that it changes, or None.
    """

    name: str
    text: str
    settings: Mapping[str, Any]
    extends: str | None


@cache
def _folders() -> dict[str, str]:
    """The folder of each recipe that ships, by the recipe's name."""
    return {
        file.name.removesuffix(".yaml"): folder.name
        for folder in _ROOT.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }


def recipe_names() -> list[str]:
    """The names of the recipes that ship with the package."""
    return sorted(_folders())


def recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe that ships, or of a YAML file, with those that it extends.

    A recipe takes precedence over a file of the same name.

    Raises:
        UserError: if there is no such recipe or file, or it does not hold `setting: value` lines,
            or extends what does not exist or itself.
    """
    return layered([layer.settings for layer in reversed(_layers(name))])


def recipe_text(name: str, flag: str | None = None) -> str:
    """The YAML text of a recipe that ships.

    Args:
        name: Of the recipe.
        flag: What the command line calls the name in an error; by default --config.

    Raises:
        UserError: if there is none of that name, with the nearest match.
    """
    if name not in recipe_names():
        near = nearest(name, recipe_names(), cutoff=0.6)
        hint = f"Did you mean {near!r}?" if near else "Run `unmix recipes` for a list."
        raise UserError(f"{name!r} is not a recipe. {hint}", parameter="config", flag=flag)
    file = _ROOT / _folders()[name] / f"{name}.yaml"
    return file.read_text(encoding="utf-8")


def recipe_in_full(name: str, flag: str | None = None) -> str:
    """The YAML text of a recipe that ships, with the lines that it takes from those it extends.

    Raises:
        UserError: as `recipe_text`.
    """
    recipe_text(name, flag)
    lines: list[str] = []
    known: set[str] = set()
    for layer in _layers(name):
        if known or lines:
            lines.append(f"# From {layer.name}:")
        for line in layer.text.splitlines():
            key = line.partition(":")[0]
            is_comment = line.startswith("#")
            if (is_comment and layer.name == name) or key in layer.settings.keys() - known:
                lines.append(line)
        known |= layer.settings.keys()
    return "\n".join(lines) + "\n"


def summary(name: str) -> str:
    """The first comment line of a recipe that ships."""
    return recipe_text(name).splitlines()[0].removeprefix("#").strip()


def _layers(name: str) -> list[_Layer]:
    """A recipe or file, what it extends, and so on."""
    layers = [_read(name)]
    while (base := layers[-1].extends) is not None:
        by = layers[-1].name
        if not _is_recipe(by) and not _is_recipe(base):
            base = os.path.normpath(Path(by).parent / base)
        names = [layer.name for layer in layers]
        if base in names:
            chain = " -> ".join([*names[names.index(base) :], base])
            raise UserError(f"{by} extends itself: {chain}.", parameter="config")
        if not (_is_recipe(base) or Path(base).exists()):
            raise UserError(_unknown_base(by, str(layers[-1].extends), base), parameter="config")
        layers.append(_read(base))
    return layers


def _unknown_base(by: str, extends: str, path: str) -> str:
    """The message for a recipe or file that does not exist."""
    if Path(extends).suffix in (".yaml", ".yml"):
        return f"{by} extends {extends}, but there is no file {path}."
    near = nearest(extends, recipe_names(), cutoff=0.6)
    hint = f"Did you mean {near!r}?" if near else "`unmix recipes` lists them."
    return f"{by} extends {extends!r}, which is not a recipe. {hint}"


def _is_recipe(name: str) -> bool:
    return name in _folders()


def _read(name: str) -> _Layer:
    path = Path(name)
    is_file = not _is_recipe(name) and (path.suffix in (".yaml", ".yml") or path.exists())
    if not is_file:
        return _shipped(name)
    return _parsed(os.path.normpath(path), _file_text(path))


@cache
def _shipped(name: str) -> _Layer:
    return _parsed(name, recipe_text(name))


def _parsed(name: str, text: str) -> _Layer:
    try:
        settings = parse_yaml(text) or {}
    except YamlError as error:
        where = f" line {error.line}" if error.line else ""
        reason = str(error)
        if not reason.startswith("lines "):
            reason = f"is not valid YAML{'' if reason == INVALID else f' ({reason})'}"
        raise UserError(f"{name}{where} {reason}.", parameter="config") from None
    if not isinstance(settings, dict):
        raise UserError(f"{name} must hold lines of the form `setting: value`.", parameter="config")
    extends = settings.pop("extends", None)
    if extends is not None and not isinstance(extends, str):
        raise UserError(
            f"{name} extends {extends!r}; it must be the name of one recipe or file.",
            parameter="config",
        )
    return _Layer(name, text, upgraded(flattened(settings)), extends)


def _file_text(path: Path) -> str:
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; give a YAML file, or the name of a recipe.", parameter="config"
        )
    try:
        return read_text(path, at_most=1 << 20)
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}; a recipe is named without .yaml.", parameter="config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise UserError(f"{path} cannot be read ({reason}).", parameter="config") from None


def resolve(
    given: Mapping[str, Any], config: str | Sequence[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Merge the sources of settings: METHOD, then METHOD-DATA or `config`, then what is given.

    Args:
        given: What the user gave.
        config: A recipe's name or a YAML file, or several, of which later ones override earlier
            ones; without it the recipe METHOD-DATA is taken if it exists.

    Where the user gives a backbone of another kind than the recipes that ship have, such as timm's
    for a ResNet, their settings of that network, such as its width or patches, are left out, also
    where a file extends them. A ResNet in place of another keeps width and stem.

    Returns:
        The settings that differ from the program's defaults, and the names of the recipes used.
    """
    given = current(flattened(given))
    files = _named(config)
    chosen: dict[str, Any] = {}
    of_files: set[str] = set()
    for name in files:
        chosen.update(recipe(name))
        for layer in reversed(_layers(name)):
            own = layer.settings.keys()
            of_files = of_files - own if _is_recipe(layer.name) else of_files | own
    method = given.get("method", chosen.get("method", "moco"))
    data = given.get("data", chosen.get("data", "photos"))
    automatic = [method] if files else [method, f"{method}-{data}"]
    if files[:1] == [method]:
        automatic = []
    used = [name for name in automatic if name in recipe_names()]
    layers = [layer.settings for name in used + files for layer in reversed(_layers(name))]
    left_out = _of_another_network({**layered(layers), **chosen}, given) - of_files
    kept = [{k: v for k, v in layer.items() if k not in left_out} for layer in layers]
    return layered([{"method": method, "data": data}, *kept, given]), used + files


def _named(config: Any) -> list[str]:
    """The recipes and files that `config` names.

    Raises:
        UserError: if it is, or holds, no name.
    """
    names = [config] if isinstance(config, (str, os.PathLike)) else config or ()
    if not isinstance(names, (list, tuple)) or not all(
        isinstance(name, (str, os.PathLike)) for name in names
    ):
        raise UserError(
            f"{excerpt(config)} must be a recipe or a YAML file, or a list of these.",
            parameter="config",
        )
    return [os.path.expanduser(name) for name in names]


def _of_another_network(recipes: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
    """Settings of the recipes' own network, if the user gave another one.

    Depth and heads belong to the model that is named; the rest to ResNets and AlexNet, or to
    timm's models.
    """
    usual = recipes.get("backbone", "resnet18")
    backbone = given.get("backbone") or usual
    if backbone == usual:
        return set()
    if str(backbone).startswith(TIMM):
        return {"depth", "heads", "width", "stem", "zero_init_residual"}
    return {
        "depth", "heads", "patch", "registers", "class_token", "pooling", "drop_path",
        "drop_path_uniform",
    }  # fmt: skip
