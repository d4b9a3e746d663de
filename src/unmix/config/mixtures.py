"""The published flags, and the operators they stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from unmix.config.catalog import catalog
from unmix.errors import UserError, check_choice, check_number

if TYPE_CHECKING:
    from unmix.mixtures import MixtureOperator, Operator

__all__ = ["IM_TYPES", "MIXTURES", "RULE_NAMES", "MixtureSettings"]

IM_TYPES = ("IM", "global", "region", "Cutout", "RandomErasing")

RULE_NAMES = {
    "unmix": "Un-Mix",
    "replace": "Un-Mix replacing",
    "imix": "i-Mix",
    "mixco": "MixCo",
    "sdmp": "SDMP",
    "mixbt": "Mix-BT",
    "image_space": "image space",
    "sdmp_released": "SDMP as released",
    "swav_released": "SwAV as released",
}
"""What tables call the rules of `unmix.credit`."""

_PAIRS = frozenset({"beta", "unmix_per", "unmix_pairing", "unmix_weight", "unmix_larger"})
_CROPS = _PAIRS - {"unmix_pairing"}

MIXTURES: dict[str, frozenset[str]] = {
    "coin": _PAIRS | {"unmix_prob"},
    "global": _PAIRS,
    "region": _PAIRS,
    "resizemix": _PAIRS,
    "gridmix": _PAIRS | {"unmix_patch"},
    "fmix": _PAIRS,
    "scalemix": _CROPS,
    "cropmix": _CROPS | {"unmix_images"},
    "patchmix": frozenset({"unmix_per", "unmix_images", "unmix_patch"}),
    "manifold": _PAIRS | {"unmix_layer"},
    "dirichlet": frozenset({"beta", "unmix_per", "unmix_images"}),
}
"""The mixtures of label space, each with the flags that have a meaning for it."""


_BOUNDS: dict[str, Mapping[str, Any]] = {
    name: bounds
    for names, bounds in (
        ("r_pixel_decay mask_color", {}),
        ("g_prob r_prob cutout_p random_erasing_prob unmix_prob", {"at_least": 0, "at_most": 1}),
        ("g_alpha r_beta beta unmix_share unmix_temperature", {"above": 0}),
        ("g_num r_num", {"at_least": 0}),
        ("mask_size max_attempt unmix_patch", {"at_least": 1}),
        ("unmix_images", {"at_least": 2}),
        ("min_aspect_ratio", {"above": 0, "at_most": 1}),
    )
    for name in names.split()
}
"""The bounds of numbers. The operators check them too, but need PyTorch to be imported."""


@dataclass(frozen=True)
class MixtureSettings:
    """Which mixtures are used: the flags of the released code, with their defaults.

    Args:
        IM: Image space: perturb the views; the loss does not know.
        IM_type: The perturbation: IM (global, then region), global, region, Cutout, RandomErasing.
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
        mask_color: Cutout: the value written (0 is the mean colour).
        area_ratio_range: RandomErasing: least and greatest share of the image.
        random_erasing_prob: RandomErasing: probability.
        min_aspect_ratio: RandomErasing: least height over width.
        max_attempt: RandomErasing: tries to find a rectangle that fits.
        unmix: Label space: share the loss among the images of a mixture.
        unmix_prob: Probability of a global mixture where a coin decides; else it is a region.
        beta: lambda ~ Beta(beta, beta), or Dirichlet(beta, ...) for dirichlet; at 1, resizemix and
            cropmix have the laws that they were published with.
        unmix_per: One draw a "batch" or a "sample"; by default as the rule was published.
        unmix_pairing: Partner by "reverse" of the batch, "permutation", "halves" (the first half
            with the second), "neighbor" (the nearest of the batch in feature space) or
            "second_view" (oneself); by default as the rule was published.
        unmix_joint: Encode clean and mixed images in one forward; batch norm then takes
            its statistics over both. By default as the rule was released: yes for mixco.
        unmix_rule: How the loss is shared: "unmix" (added to the clean loss), "replace" (instead of
            it), "imix", "mixco", "sdmp", "mixbt", "image_space", "sdmp_released",
            "swav_released".
        unmix_mixture: "coin" (global or region), "global", "region", "resizemix", "gridmix",
            "fmix", "scalemix", "cropmix", "patchmix", "manifold", "dirichlet"; by default as the
            rule was published, else "coin".
        unmix_weight: Law of lambda, "beta" or "uniform"; by default as published.
        unmix_larger: Take the larger of lambda and 1 - lambda; by default as published.
        unmix_layer: manifold: the layer whose output is mixed, such as layer2 or blocks.5.
        unmix_share: What the mixtures' loss counts; by default as published, mostly 1.
        unmix_temperature: mixco: T_mix; by default 0.05.
        unmix_images: dirichlet, patchmix, cropmix: images of a mixture, at least 2.
        unmix_patch: patchmix: side of a patch in pixels; by default the transformer's own.
            gridmix: cells along a side; by default 4.
    """

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
    unmix: bool = False
    unmix_prob: float = 0.5
    beta: float = 1.0
    unmix_per: str | None = None
    unmix_pairing: str | None = None
    unmix_joint: bool | None = None
    unmix_rule: str = "unmix"
    unmix_mixture: str | None = None
    unmix_weight: str | None = None
    unmix_larger: bool | None = None
    unmix_layer: str | None = None
    unmix_images: int | None = None
    unmix_patch: int | None = None
    unmix_share: float | None = None
    unmix_temperature: float | None = None

    def __post_init__(self) -> None:
        untouched = all(getattr(self, field.name) == field.default for field in fields(self))
        check_choice("--IM_type", self.IM_type, IM_TYPES)
        if self.unmix_joint is None:
            apart = self.unmix_mixture == "manifold" or self.unmix_pairing == "neighbor"
            object.__setattr__(self, "unmix_joint", self.unmix_rule == "mixco" and not apart)
        self._check_words()
        if untouched:
            return
        # The operators know what they refuse, and need PyTorch.
        self.label_space()
        for im_type in IM_TYPES:
            self._operator(im_type)

    def _check_words(self) -> None:
        if not re.fullmatch(r"\w+", self.unmix_rule):
            raise UserError(f"--unmix_rule: {self.unmix_rule!r} is no word, such as unmix.")
        known = catalog().choices
        for flag, value, choices in (
            ("--unmix_mixture", self.unmix_mixture, MIXTURES),
            ("--unmix_per", self.unmix_per, known["per"]),
            ("--unmix_pairing", self.unmix_pairing, known["pairings"]),
            ("--unmix_weight", self.unmix_weight, known["laws"]),
        ):
            if value is not None:
                check_choice(flag, value, choices)
        for name, bounds in _BOUNDS.items():
            if (number := getattr(self, name)) is not None:
                check_number(f"--{name}", number, **bounds)

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

    def image_space(self) -> Operator | None:
        """The operator of `IM_type`, or None without `IM`."""
        return self._operator(self.IM_type) if self.IM else None

    def label_space(self, published: Mapping[str, Any] | None = None) -> MixtureOperator | None:
        """The operator of the label-space mixtures, or None without `unmix`.

        Args:
            published: What the rule was published with, by the words of the flags, and "unmix_low"
                and "unmix_high", the bounds of a uniform weight. It stands in for flags that are
                not given; Un-Mix's defaults stand in for the rest.

        Raises:
            UserError: if a flag has no meaning for the mixture.
        """
        given = {
            "unmix_prob": None if self.unmix_prob == 0.5 else self.unmix_prob,
            "beta": None if self.beta == 1 else self.beta,
            "unmix_per": self.unmix_per,
            "unmix_pairing": self.unmix_pairing,
            "unmix_mixture": self.unmix_mixture,
            "unmix_weight": self.unmix_weight,
            "unmix_larger": self.unmix_larger,
            "unmix_layer": self.unmix_layer,
            "unmix_images": self.unmix_images,
            "unmix_patch": self.unmix_patch,
        }
        given = {word: value for word, value in given.items() if value is not None}
        from unmix.config.choosing import Wanted

        operator = Wanted(given, dict(published or {})).operator()
        return operator if self.unmix else None

    def _operator(self, im_type: str) -> Operator:
        from unmix.mixtures import Cutout, ImageMixture, RandomErasing

        if im_type == "Cutout":
            return Cutout(self.mask_size, self.cutout_p, self.cutout_inside, self.mask_color)
        if im_type == "RandomErasing":
            return RandomErasing(
                self.area_ratio_range,
                self.random_erasing_prob,
                self.min_aspect_ratio,
                self.max_attempt,
            )
        return ImageMixture(
            g_alpha=self.g_alpha,
            g_num=0 if im_type == "region" else self.g_num,
            g_prob=self.g_prob,
            r_beta=self.r_beta,
            r_num=0 if im_type == "global" else self.r_num,
            r_prob=self.r_prob,
            r_pixel_decay=self.r_pixel_decay,
        )
