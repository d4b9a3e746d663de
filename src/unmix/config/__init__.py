"""The settings of a run: their groups, the mixtures' flags, and the command line's flags."""

from unmix.config.catalog import method_options, methods_with
from unmix.config.groups import (
    GROUPS,
    EvaluationSettings,
    MachineSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    field_names,
)
from unmix.config.mixtures import IM_TYPES, MIXTURES, RULE_NAMES, MixtureSettings
from unmix.config.settings import Settings
from unmix.config.views import ViewSettings

__all__ = [
    "GROUPS",
    "IM_TYPES",
    "MIXTURES",
    "RULE_NAMES",
    "EvaluationSettings",
    "MachineSettings",
    "MixtureSettings",
    "ModelSettings",
    "OptimizerSettings",
    "RunSettings",
    "Settings",
    "ViewSettings",
    "field_names",
    "method_options",
    "methods_with",
]
