"""The settings of mixtures: the flags of the released code, and the operators that they make."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from unmix.config.catalog import catalog
from unmix.errors import UserError, check_choice, check_number
from unmix.names import in_words

if TYPE_CHECKING:
    from unmix.mixtures import MixtureOperator, MixtureSchedule, Operator

__all__ = ["IM_TYPES", "MIXTURES", "RULE_NAMES", "MixtureSettings"]

# Read from the catalog, because the operators and rules need PyTorch to be imported.
IM_TYPES = tuple(catalog().image_space)
MIXTURES = tuple(catalog().mixtures)
RULE_NAMES = {name: entry.facts["title"] for name, entry in catalog().rules.items()}
"""What tables call the rules of `unmix.credit`."""


@dataclass(frozen=True)
class MixtureSettings:
    """Which mixtures are used: the flags of the released code, with their defaults.

    Args:
        mix_from_epoch: Epochs before the first mixtures, with `IM` or `unmix`; their steps are
            plain clean ones.
        mix_ramp_epochs: Epochs after these over which the probability that a step is mixed rises
            to 1.
        IM: Image space: perturb the views; the loss is unchanged.
        IM_type: The perturbation: IM (global, then region), global, region, Cutout, RandomErasing,
            DACL.
        g_alpha: Global mixtures: lambda ~ Beta(g_alpha, g_alpha).
        g_num: Global mixtures: rounds.
        g_prob: Global mixtures: probability of each round.
        r_beta: Region mixtures: lambda ~ Beta(r_beta, r_beta).
        r_prob: Region mixtures: probability of each round.
        r_num: Region mixtures: rounds.
        r_pixel_decay: Region mixtures: factor on the image in the first round.
        mask_size: Cutout: side of the square in pixels; by default 50 in views of 224, and the same
            share of the side of others.
        cutout_p: Cutout: probability.
        cutout_inside: Cutout: keep the square inside the image.
        mask_color: Cutout: the value written (0 is the mean color).
        area_ratio_range: RandomErasing: least and greatest share of the image.
        random_erasing_prob: RandomErasing: probability.
        min_aspect_ratio: RandomErasing: least height over width.
        max_attempt: RandomErasing: tries to find a rectangle that fits.
        dacl_alpha: DACL: the least share of an image's own pixels in each of its views.
        unmix: Label space: weight the loss between the images of a mixture.
        unmix_prob: coin: probability of a global mixture, else it is a region; by default 0.5.
        beta: lambda ~ Beta(beta, beta), or Dirichlet(beta, ...) for dirichlet; by default 1, or the
            distribution that the mixture or the rule was published with.
        unmix_per: One draw a "batch" or a "sample"; by default as the rule was published.
        unmix_pairing: Partner by "reverse" of the batch, "permutation", "random" (uniform over the
            batch, self included), "halves" (the first half with the second), "neighbor" (the
            nearest of the batch in feature space) or "second_view" (the image itself); by default
            as the rule was published.
        unmix_joint: Encode clean and mixed images in one forward; batch norm then takes
            its statistics over both. By default as the rule was released: yes for mixco.
        unmix_rule: How the loss is shared: "unmix" (added to the clean loss), "replace" (instead of
            it), "imix", "mixco", "sdmp", "mixbt", "image_space", "exact" (of a
            frozen teacher), "sdmp_released", "swav_released", "esvit", "regioncl", "patchmix".
        unmix_mixture: "coin" (global or region), "global", "region", "resizemix", "gridmix",
            "regionswap", "fmix", "mixmask", "smoothmix", "saliencymix", "attentivemix",
            "scalemix", "cropmix", "patchmix", "manifold", "dirichlet"; by default as the rule was
            published, else "coin". Several, each with a draw and a forward of its own, are joined
            by "+", as coin+mixmask.
        unmix_shares: Weights of the losses of several mixtures, each times `unmix_share`; by
            default equal, with the sum 1.
        unmix_weight: Distribution of lambda, "beta" or "uniform"; by default as published.
        unmix_larger: Take the larger of lambda and 1 - lambda; by default as published.
        unmix_layer: manifold: the layer whose output is mixed, such as layer2 or blocks.5.
        unmix_every_crop: unmix, replace: mix every view that is a query, the local crops too, each
            with a draw of its own; by default the first view alone.
        unmix_share: Weight of the mixed loss; by default the rule's published value, usually 1.
        unmix_temperature: mixco: T_mix; by default 0.05.
        unmix_images: dirichlet, patchmix, cropmix: images of a mixture, at least 2.
        unmix_patch: patchmix: side of a patch in pixels; by default the transformer's own.
            gridmix, mixmask, attentivemix: cells along a side; by default 4, 8 and 7.
        unmix_align: Side in pixels of cells to whose edges boxes and masks are rounded; by default
            the transformer's patches where the loss is by patch, else none.
    """

    mix_from_epoch: int = 0
    mix_ramp_epochs: int = 0
    IM: bool = False
    IM_type: str = "IM"
    g_alpha: float = 1.0
    g_num: int = 2
    g_prob: float = 0.1
    r_beta: float = 1.0
    r_prob: float = 0.1
    r_num: int = 2
    r_pixel_decay: float = 1.0
    mask_size: int | None = None
    cutout_p: float = 0.1
    cutout_inside: bool = False
    mask_color: float = 0.0
    area_ratio_range: tuple[float, float] = (0.02, 0.4)
    random_erasing_prob: float = 0.1
    min_aspect_ratio: float = 0.3
    max_attempt: int = 20
    dacl_alpha: float = 0.9
    unmix: bool = False
    unmix_prob: float | None = None
    beta: float | None = None
    unmix_per: str | None = None
    unmix_pairing: str | None = None
    unmix_joint: bool | None = None
    unmix_rule: str = "unmix"
    unmix_mixture: str | None = None
    unmix_shares: tuple[float, ...] | None = None
    unmix_weight: str | None = None
    unmix_larger: bool | None = None
    unmix_layer: str | None = None
    unmix_images: int | None = None
    unmix_patch: int | None = None
    unmix_align: int | None = None
    unmix_every_crop: bool | None = None
    unmix_share: float | None = None
    unmix_temperature: float | None = None

    def __post_init__(self) -> None:
        check_choice("IM_type", self.IM_type, IM_TYPES)
        for word in ("mix_from_epoch", "mix_ramp_epochs"):
            check_number(word, getattr(self, word), at_least=0)
        if self.unmix_joint is None:
            apart = "manifold" in self.mixtures or self.unmix_pairing == "neighbor"
            object.__setattr__(self, "unmix_joint", self.unmix_rule == "mixco" and not apart)
        if not re.fullmatch(r"\w+", self.unmix_rule):
            raise UserError(
                f"{self.unmix_rule!r} is no word, such as unmix.", parameter="unmix_rule"
            )
        for name in self.mixtures if self.unmix_mixture is not None else ():
            check_choice("unmix_mixture", name, catalog().mixtures)
        if self.unmix_shares is not None:
            _check_shares(self.unmix_shares, len(self.mixtures))
        for facts in catalog().image_space.values():
            _check_values({name: getattr(self, name) for name in facts}, facts)
        low, high = self.area_ratio_range
        check_number("area_ratio_range", high, at_least=low, at_most=1)
        self._check_label_space()
        if self.unmix:
            self.label_spaces()  # the operator knows the rest, and needs PyTorch

    def _check_label_space(self) -> None:
        """Check that what was given applies to the mixture and the rule, and is in range.

        Raises:
            UserError: if not.
        """
        mixture, rules = "+".join(self.mixtures), catalog().rules
        of_mixture = {
            word: facts
            for each in self.mixtures
            for word, facts in catalog().mixtures[each].items()
        }
        of_rule = rules[self.unmix_rule].facts["settings"] if self.unmix_rule in rules else None
        of_rules = {word for entry in rules.values() for word in entry.facts["settings"]}
        for word, value in self._given().items():
            if word in of_rules and of_rule is not None and word not in of_rule:
                able = [name for name, entry in rules.items() if word in entry.facts["settings"]]
                raise UserError(
                    f'is not for `unmix_rule="{self.unmix_rule}"`. It goes with '
                    f"{in_words(able, 'or')}.",
                    parameter=word,
                )
            if word not in of_rules and word not in of_mixture:
                raise UserError(_does_not_apply(word, value, mixture), parameter=word)
        _check_values(self._given(), {**of_mixture, **(of_rule or {})})
        if (
            self.unmix_weight == "uniform"
            and self.beta is not None
            and "unmix_weight" in of_mixture
        ):
            message = f'{self.beta:g} does not apply to `unmix_weight="uniform"`; leave it out.'
            raise UserError(message, parameter="beta")
        if "manifold" in self.mixtures and not self.unmix_layer:
            raise UserError(
                '`unmix_mixture="manifold"` needs the name of a layer, such as layer2 of a ResNet '
                "or blocks.5 of a ViT.",
                parameter="unmix_layer",
            )

    @property
    def mixtures(self) -> tuple[str, ...]:
        """The mixtures of label space: those that were given, or that of the rule."""
        rules = catalog().rules
        if self.unmix_mixture is not None or self.unmix_rule not in rules:
            return tuple((self.unmix_mixture or MIXTURES[0]).replace(" ", "").split("+"))
        return (str(rules[self.unmix_rule].facts["mixture"]),)

    def _given(self) -> dict[str, Any]:
        """What was given of the label-space mixture and its rule, by setting."""
        names = {word for facts in catalog().mixtures.values() for word in facts}
        names |= {word for entry in catalog().rules.values() for word in entry.facts["settings"]}
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name in names}
        return {word: value for word, value in found.items() if value is not None}

    @property
    def name(self) -> str:
        """What tables call it: "none", the IM_type, the rule, or both joined by "+".

        A mixture that was chosen apart from the rule is named behind it: "Un-Mix (fmix)".
        """
        rule = RULE_NAMES.get(self.unmix_rule, self.unmix_rule)
        if self.unmix_mixture not in (None, "coin" if self.unmix_rule == "unmix" else None):
            rule += f" ({self.unmix_mixture})"
        parts = [self.IM_type] * self.IM + [rule] * self.unmix
        return " + ".join(parts) or "none"

    @property
    def folder(self) -> str:
        """The name as a part of a path: small letters, without spaces and brackets."""
        return re.sub(r"[^a-z0-9.+-]+", "-", self.name.lower().replace(" ", "")).strip("-")

    def schedule(self) -> MixtureSchedule:
        """Which steps of the run are mixed."""
        from unmix.mixtures import MixtureSchedule

        return MixtureSchedule(self.mix_from_epoch, self.mix_ramp_epochs)

    def image_space(self) -> Operator | None:
        """The operator of `IM_type`, or None without `IM`."""
        return self._operator(self.IM_type) if self.IM else None

    def label_space(self, published: MixtureOperator | None = None) -> MixtureOperator | None:
        """The operator of the label-space mixture, or None without `unmix`.

        Args:
            published: What the rule was published with. It stands in for what was not given.

        Raises:
            UserError: if there are several, a value is out of range, or does not apply to the
                mixture.
        """
        found = self.label_spaces(published)
        if len(found) > 1:
            raise UserError(
                f"{self.unmix_mixture} are {len(found)} mixtures; give one of them here.",
                parameter="unmix_mixture",
            )
        return found[0] if found else None

    def label_spaces(self, published: MixtureOperator | None = None) -> list[MixtureOperator]:
        """The operators of all label-space mixtures of a step, as `label_space`."""
        from unmix.mixtures import registry

        names = self.mixtures
        if self.unmix_mixture is None and published is not None:
            names = (registry.name_of(published),)
        found = []
        for name in names:
            given = {k: v for k, v in self._given().items() if k in catalog().mixtures[name]}
            found.append(registry.label_space(name, given, published))
        return found if self.unmix else []

    def _operator(self, im_type: str) -> Operator:
        from unmix.mixtures import registry

        given = {name: getattr(self, name) for name in catalog().image_space[im_type]}
        return registry.image_space(im_type, given)


def _check_shares(shares: tuple[float, ...], count: int) -> None:
    if count == 1:
        message = "is for several mixtures; for the weight of one give `unmix_share`."
        raise UserError(message, parameter="unmix_shares")
    if len(shares) != count:
        message = f"{len(shares)} for {count} mixtures; give one for each."
        raise UserError(message, parameter="unmix_shares")
    for share in shares:
        check_number("unmix_shares", share, above=0)


def _does_not_apply(word: str, value: Any, mixture: str) -> str:
    names = [name for name, words in catalog().mixtures.items() if word in words]
    others = in_words(names, "or")
    return (
        f'{value!r} does not apply to `unmix_mixture="{mixture}"`; leave it out, or use {others}.'
    )


def _check_values(values: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Check values against the choices and bounds of the catalog."""
    for name, value in values.items():
        if value is None:
            continue
        if facts[name]["choices"]:
            check_choice(name, value, facts[name]["choices"])
        elif not isinstance(value, str):
            for number in value if isinstance(value, tuple) else (value,):
                check_number(name, number, **facts[name]["bounds"])
