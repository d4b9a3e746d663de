"""All settings of a run, in groups; flat, by the same names, on the command line and in YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmix.config.augmentation import expanded, layered
from unmix.config.catalog import method_options, methods_with
from unmix.config.groups import (
    GROUPS,
    EvaluationSettings,
    MachineSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
)
from unmix.config.limits import check_sizes
from unmix.config.mixtures import MixtureSettings
from unmix.config.parameters import parameters_of
from unmix.config.teacher import TEACHER, TeacherSettings
from unmix.config.views import ViewSettings
from unmix.errors import UserError
from unmix.files import as_path
from unmix.names import in_words, is_stream, name_of_stream
from unmix.synonyms import hint

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """All settings of a run, in groups.

    `Settings.of(settings)` takes flat settings by name; `flat()` returns them.
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
        frozen, epochs = self.optimizer.freeze_backbone_epochs, self.run.epochs
        if frozen >= epochs:
            raise UserError(
                f"{frozen} of `epochs={epochs}` would leave the backbone untrained; it must be at "
                f"most {epochs - 1}.",
                parameter="freeze_backbone_epochs",
            )
        last = max(self.optimizer.restarts, default=0)
        if last >= epochs:
            raise UserError(
                f"the schedules start again after epoch {last}, so `epochs={epochs}` is too few; "
                f"it must be at least {last + 1}.",
                parameter="restarts",
            )
        mixture = self.mixture
        if (mixture.IM or mixture.unmix) and mixture.mix_from_epoch >= epochs:
            raise UserError(
                f"{mixture.mix_from_epoch} of `epochs={epochs}` would leave no step for the "
                f"mixture; it must be at most {epochs - 1}.",
                parameter="mix_from_epoch",
            )
        self._check_parts()
        if TEACHER[0] in self.method:
            TeacherSettings(**self.teacher)

    @property
    def teacher(self) -> dict[str, Any]:
        """The settings of the teacher that the method learns from; none without one."""
        return {name: value for name, value in self.method.items() if name in TEACHER}

    def _check_parts(self) -> None:
        """Check that each device has 2 images at a time."""
        processes, parts = self.machine.processes, self.machine.accumulate
        if parts > 1 and self.run.batch_size % (processes * parts):
            devices = f" on {processes} devices" if processes > 1 else ""
            raise UserError(
                f"`batch_size={self.run.batch_size}` has no {parts} equal parts{devices}; use a "
                f"multiple of {processes * parts}.",
                parameter="accumulate",
            )
        if parts > 1 and self.run.batch_size < 2 * processes * parts:
            raise UserError(
                f"{parts} parts of `batch_size={self.run.batch_size}` are of "
                f"{self.run.batch_size // (processes * parts)} image; batch norm and mixtures need "
                f"at least 2, so use at most {self.run.batch_size // (2 * processes)}.",
                parameter="accumulate",
            )
        least = 2 * processes
        if processes > 1 and self.run.batch_size < least:
            nodes = f" of `nodes={self.machine.nodes}`" if self.machine.nodes > 1 else ""
            raise UserError(
                f"{self.run.batch_size} images on `devices={self.machine.devices}`{nodes} are "
                f"{self.run.batch_size / processes:g} for each; batch norm and mixtures need at "
                f"least 2, so `batch_size={least}` or more.",
                parameter="batch_size",
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Settings:
        """Sort flat settings into their groups.

        Raises:
            UserError: for a name that neither a group nor the method has, with the nearest match,
                a value of a wrong type, or one that its group refuses.
        """
        method = settings.get("method", RunSettings.method)
        options = method_options(method)
        groups = {group: parameters_of(kind) for group, kind in GROUPS.items()}
        known = {name: group for group, found in groups.items() for name in found}
        sorted_: dict[str, dict[str, Any]] = {group: {} for group in (*GROUPS, "method")}
        for name, value in expanded(settings).items():
            group = known.get(name) or ("method" if name in options else None)
            if group is None:
                raise unknown_setting(str(name), [*known, *options], method)
            kind = (options if group == "method" else groups[group])[name].kind
            sorted_[group][name] = kind.fit(name, value)
        defaults = {name: option.default for name, option in options.items()}
        # Last, because checking the mixtures imports PyTorch, which takes seconds.
        order = sorted(GROUPS, key=lambda group: group == "mixture")
        made = {group: GROUPS[group](**sorted_[group]) for group in order}
        found = cls(method={**defaults, **sorted_["method"]}, **made)
        check_sizes(found.flat())
        return found

    def flat(self) -> dict[str, Any]:
        """All settings by name, in the order of the groups; plain lists and numbers."""
        flat: dict[str, Any] = {}
        for group in ("run", "method", *list(GROUPS)[1:]):
            value = getattr(self, group)
            items = value if isinstance(value, dict) else dataclasses.asdict(value)
            flat.update({k: list(v) if isinstance(v, tuple) else v for k, v in items.items()})
        return flat

    def with_changes(self, **changes: Any) -> Settings:
        """The same settings with some changed."""
        return Settings.of(layered([self.flat(), changes]))

    @property
    def folder(self) -> Path:
        """The run folder: `run`, or runs/METHOD-DATA-MIXTURE-seedSEED."""
        if self.run.run is not None:
            return as_path(self.run.run)
        mixture = self.mixture.folder
        # Data given in Python has a colon, which not all file systems take.
        data = Path(self.run.data).name.replace(":", "-") or "data"
        if is_stream(self.run.data):
            data = name_of_stream(self.run.data)
        return Path("runs") / f"{self.run.method}-{data}-{mixture}-seed{self.run.seed}"


def unknown_setting(name: str, known: list[str], method: str) -> UserError:
    """The error for a name that is no setting, or one of other methods only."""
    if owners := methods_with(name):
        message = f"applies only to `method` {in_words(owners, 'or')}."
    else:
        message = f"unknown setting.{hint(name, known) or ' See unmix pretrain --help.'}"
    return UserError(message, parameter=name)
