"""The mixtures by name, and how a run's settings make their operators.

To add a mixture of the label space, add a line to `MIXTURES`: which settings it has follows from
its fields (see `unmix.mixtures.fields.parameter`). `python -m unmix.catalog` then tells the command
line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unmix.errors import renamed
from unmix.mixtures.attentivemix import AttentiveMix
from unmix.mixtures.crops import CropMix, ScaleMix
from unmix.mixtures.erasing import Cutout, RandomErasing
from unmix.mixtures.fields import settings_of
from unmix.mixtures.fourier import FMix
from unmix.mixtures.grid import GridMix
from unmix.mixtures.image_space import ImageMixture
from unmix.mixtures.manifold import ManifoldMixture
from unmix.mixtures.mixmask import MixMask
from unmix.mixtures.mixup import UnMix
from unmix.mixtures.noise import MixupNoise
from unmix.mixtures.operators import MixtureOperator, Operator
from unmix.mixtures.pasting import ResizeMix
from unmix.mixtures.patches import PatchMixture
from unmix.mixtures.saliency import SaliencyMix
from unmix.mixtures.sampling import Weight
from unmix.mixtures.smoothmix import SmoothMix
from unmix.mixtures.sums import DirichletMixture
from unmix.mixtures.swapping import RegionSwap

__all__ = ["IMAGE_SPACE", "MIXTURES", "Choice", "image_space", "label_space", "name_of", "renaming"]

# What a mixture takes from the one that a rule was published with, where the user chose another.
_CARRIED = ("per", "pairing", "weight")


@dataclass(frozen=True)
class Choice:
    """An operator as the settings of a run offer it.

    Attributes:
        kind: Its class.
        fixed: Parameters that are part of the choice.
        defaults: Parameters whose default is another one than the class's.
    """

    kind: type[Operator]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, dataclasses.Field[Any]]:
        """The fields that settings give, by the setting: the operator's, and its weight's."""
        own = {
            setting: each
            for setting, each in settings_of(self.kind).items()
            if each.name not in self.fixed
        }
        return {**own, **(settings_of(Weight) if hasattr(self.kind, "weight") else {})}


MIXTURES: dict[str, Choice] = {
    "coin": Choice(UnMix),
    "global": Choice(UnMix, fixed={"prob": 1.0, "align": None}),
    "region": Choice(UnMix, fixed={"prob": 0.0}),
    "resizemix": Choice(ResizeMix),
    "gridmix": Choice(GridMix),
    "regionswap": Choice(RegionSwap),
    "fmix": Choice(FMix),
    "mixmask": Choice(MixMask),
    "smoothmix": Choice(SmoothMix),
    "saliencymix": Choice(SaliencyMix),
    "attentivemix": Choice(AttentiveMix),
    "scalemix": Choice(ScaleMix),
    "cropmix": Choice(CropMix),
    "patchmix": Choice(PatchMixture),
    "manifold": Choice(ManifoldMixture),
    "dirichlet": Choice(DirichletMixture, defaults={"per": "batch"}),
}
"""The mixtures of label space."""

IMAGE_SPACE: dict[str, Choice] = {
    "IM": Choice(ImageMixture),
    "global": Choice(ImageMixture, fixed={"r_num": 0}),
    "region": Choice(ImageMixture, fixed={"g_num": 0}),
    "Cutout": Choice(Cutout),
    "RandomErasing": Choice(RandomErasing),
    "DACL": Choice(MixupNoise),
}
"""The perturbations of image space."""


def name_of(operator: MixtureOperator | None) -> str:
    """The name of the choice that an operator is of; Un-Mix's for None."""
    if operator is None:
        return "coin"
    names = [
        name
        for name, choice in MIXTURES.items()
        if type(operator) is choice.kind
        and all(getattr(operator, key) == value for key, value in choice.fixed.items())
    ]
    return names[-1] if names else type(operator).__name__


def renaming(name: str) -> dict[str, str]:
    """The settings that give the parameters of a mixture, by the parameter."""
    found = {field.name: setting for setting, field in MIXTURES[name].settings.items()}
    return {**found, "mixture": "unmix_mixture", "rule": "unmix_rule", "joint": "unmix_joint"}


def label_space(
    name: str, given: Mapping[str, Any], published: MixtureOperator | None = None
) -> MixtureOperator:
    """The operator of a mixture, with what was given.

    Args:
        name: Of the mixture.
        given: Values by the name of the setting, such as {"unmix_per": "sample"}.
        published: What the rule was published with. If it is of this mixture, the rest is as it is
            there; if not, its partners and its distribution of lambda are kept.

    Raises:
        UserError: if a value is out of range, by the name of its setting.
    """
    choice = MIXTURES[name]
    fields: Any = dataclasses.fields(choice.kind)  # type: ignore[arg-type]
    names = {each.name for each in fields}
    kept = names if published is not None and name_of(published) == name else set(_CARRIED) & names
    values = {**choice.defaults}
    for each in kept:
        if (value := getattr(published, each, None)) is not None:
            values[each] = value
    own = settings_of(choice.kind)
    values.update({own[word].name: value for word, value in given.items() if word in own})
    of_weight = {word: value for word, value in given.items() if word in settings_of(Weight)}
    of_weight = {word: value for word, value in of_weight.items() if word not in own}
    with renamed(renaming(name)):
        if of_weight:
            default = getattr(choice.kind, "weight", None) or Weight()
            values["weight"] = _weight(values.get("weight", default) or Weight(), of_weight)
            for one_alpha in {"alpha", "global_alpha"} & names:  # what is given is of all mixtures
                values[one_alpha] = None
        made: Any = choice.kind(**{**values, **choice.fixed})
    assert isinstance(made, MixtureOperator)
    return made


def _weight(weight: Weight, given: Mapping[str, Any]) -> Weight:
    """A distribution of lambda with what was given of it; a parameter of Beta's makes it Beta."""
    settings = settings_of(Weight)
    changes = {settings[word].name: value for word, value in given.items()}
    if "alpha" in changes:
        changes["distribution"] = "beta"
    return replace(weight, **changes)


def image_space(name: str, given: Mapping[str, Any]) -> Operator:
    """The operator of a perturbation, with what was given, by the name of the setting.

    Raises:
        UserError: if a value is out of range.
    """
    choice = IMAGE_SPACE[name]
    values = {f.name: given[word] for word, f in choice.settings.items() if word in given}
    with renamed({}):
        return choice.kind(**{**values, **choice.fixed})
