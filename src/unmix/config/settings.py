"""All settings of a run, in groups; flat on the command line and in YAML, with the same words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmix.config.catalog import method_options, methods_with
from unmix.config.groups import (
    GROUPS,
    EvaluationSettings,
    MachineSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
)
from unmix.config.mixtures import MixtureSettings
from unmix.config.parameters import parameters_of
from unmix.config.views import ViewSettings
from unmix.errors import UserError
from unmix.synonyms import hint

__all__ = ["Settings"]


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

    def __post_init__(self) -> None:
        least, processes = 2 * self.machine.processes, self.machine.processes
        if processes > 1 and self.run.batch_size < least:
            nodes = f" of --nodes {self.machine.nodes}" if self.machine.nodes > 1 else ""
            raise UserError(
                f"--batch_size: {self.run.batch_size} images on --devices {self.machine.devices}"
                f"{nodes} are {self.run.batch_size / processes:g} for each; batch norm and "
                f"mixtures need at least 2, so --batch_size {least} or more."
            )

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Settings:
        """Sort flat words into their groups.

        Raises:
            UserError: for a word that no group and not the method has, with the nearest match, or
                a value of another type, or one that its group refuses.
        """
        method = words.get("method", RunSettings.method)
        options = method_options(method)
        groups = {group: parameters_of(kind) for group, kind in GROUPS.items()}
        known = {name: group for group, found in groups.items() for name in found}
        sorted_: dict[str, dict[str, Any]] = {group: {} for group in (*GROUPS, "method")}
        for name, value in words.items():
            group = known.get(name) or ("method" if name in options else None)
            if group is None:
                raise UserError(unknown_word(name, [*known, *options], method))
            kind = (options if group == "method" else groups[group])[name].kind
            sorted_[group][name] = kind.fit(name, value)
        defaults = {name: option.default for name, option in options.items()}
        # What the mixtures refuse needs PyTorch, which takes seconds to import: last.
        order = sorted(GROUPS, key=lambda group: group == "mixture")
        made = {group: GROUPS[group](**sorted_[group]) for group in order}
        return cls(method={**defaults, **sorted_["method"]}, **made)

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
        # A colon, of data that was given in Python, is no part of a file's name everywhere.
        data = Path(self.run.data).name.replace(":", "-") or "data"
        return Path("runs") / f"{self.run.method}-{data}-{mixture}-seed{self.run.seed}"


def unknown_word(name: str, known: list[str], method: str) -> str:
    """The message for a word that means nothing, or something with other methods only."""
    if owners := methods_with(name):
        return f"--{name}: is for --method {' or '.join(owners)} only."
    meant = hint(str(name), known) or " See unmix pretrain --help."
    return f"--{name}: there is no such setting with --method {method}.{meant}"
