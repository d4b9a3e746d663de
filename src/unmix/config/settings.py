"""All settings of a run, in groups; flat on the command line and in YAML, with the same words."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from unmix.config.groups import (
    GROUPS,
    EvaluationSettings,
    MachineSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    field_names,
)
from unmix.config.mixtures import MixtureSettings
from unmix.config.values import fitting
from unmix.config.views import ViewSettings
from unmix.errors import UserError
from unmix.methods import METHODS, method_class

__all__ = ["Settings", "method_options", "methods_with"]


@dataclass(frozen=True)
class Settings:
    """Everything that makes a run, in groups.

    `Settings.of(**words)` takes the words of the command line; `flat()` gives them back.
    """

    run: RunSettings = field(default_factory=RunSettings)
    method: dict[str, Any] = field(default_factory=dict)
    model: ModelSettings = field(default_factory=ModelSettings)
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Settings:
        """Sort flat words into their groups.

        Raises:
            UserError: for a word that no group and not the method has, with the nearest match, or
                a value of another type, or one that its group refuses.
        """
        method = words.get("method", RunSettings.method)
        options = method_options(method)
        hints = get_type_hints(method_class(method).__init__)
        for kind in GROUPS.values():
            hints.update(get_type_hints(kind))
        known = {name: group for group in GROUPS for name in field_names(group)}
        sorted_: dict[str, dict[str, Any]] = {group: {} for group in (*GROUPS, "method")}
        for name, value in words.items():
            group = known.get(name) or ("method" if name in options else None)
            if group is None:
                raise UserError(unknown_word(name, [*known, *options], method))
            sorted_[group][name] = fitting(name, value, hints[name])
        defaults = {name: option.default for name, option in options.items()}
        groups = {group: GROUPS[group](**sorted_[group]) for group in GROUPS}
        return cls(method={**defaults, **sorted_["method"]}, **groups)

    def flat(self) -> dict[str, Any]:
        """All settings as flat words, in the order of the groups; plain lists and numbers."""
        words: dict[str, Any] = {}
        for group in ("run", "method", *list(GROUPS)[1:]):
            value = getattr(self, group)
            items = value if isinstance(value, dict) else dataclasses.asdict(value)
            words.update({k: list(v) if isinstance(v, tuple) else v for k, v in items.items()})
        return words

    def with_words(self, **words: Any) -> Settings:
        """The same settings with some words changed."""
        return Settings.of({**self.flat(), **words})

    @property
    def folder(self) -> Path:
        """The run folder: `run`, or runs/METHOD-DATA-MIXTURE-seedSEED."""
        if self.run.run is not None:
            return Path(self.run.run)
        mixture = self.mixture.folder
        data = Path(self.run.data).name or "data"
        return Path("runs") / f"{self.run.method}-{data}-{mixture}-seed{self.run.seed}"


def method_options(method: str) -> dict[str, inspect.Parameter]:
    """The options of a method: the keyword arguments of its class."""
    parameters = inspect.signature(method_class(method)).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def methods_with(option: str) -> list[str]:
    """The methods that have an option of this name."""
    return [method for method in METHODS if option in method_options(method)]


def unknown_word(name: str, known: list[str], method: str) -> str:
    """The message for a word that means nothing, or something with other methods only."""
    if owners := methods_with(name):
        return f"--{name}: is for --method {' or '.join(owners)} only."
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    hint = f" Did you mean --{near[0]}?" if near else " See unmix pretrain --help."
    return f"--{name}: there is no such setting with --method {method}.{hint}"
