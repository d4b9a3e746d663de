"""From words to a label-space operator: what each mixture takes, and what has no meaning for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unmix.config.mixtures import MIXTURES
from unmix.errors import UserError, check_choice
from unmix.mixtures.crops import CropMix, ScaleMix
from unmix.mixtures.fourier import FMix
from unmix.mixtures.grid import GridMix
from unmix.mixtures.manifold import ManifoldMixture
from unmix.mixtures.operators import MixtureOperator
from unmix.mixtures.pasting import ResizeMix
from unmix.mixtures.patches import PatchMixture
from unmix.mixtures.sums import DirichletMixture
from unmix.mixtures.unmix import UnMix
from unmix.mixtures.weights import Weight

__all__ = ["Wanted"]


@dataclass(frozen=True)
class Wanted:
    """Which mixture is wanted.

    Attributes:
        given: What the user said, by the words of the flags.
        published: What the rule was published with; stands in for what the user left out.
    """

    given: Mapping[str, Any]
    published: Mapping[str, Any]

    def operator(self) -> MixtureOperator:
        """The operator.

        Raises:
            UserError: if a flag that was given has no meaning for the mixture, or its value is out
                of range.
        """
        mixture = check_choice("--unmix_mixture", self._word("unmix_mixture", "coin"), MIXTURES)
        for word in sorted(set(self.given) - MIXTURES[mixture] - {"unmix_mixture"}):
            raise UserError(self._without_meaning(word, mixture))
        return _BUILDERS[mixture](self)

    def _without_meaning(self, word: str, mixture: str) -> str:
        names = [name for name, words in MIXTURES.items() if word in words]
        others = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        return (
            f"--{word}: {self.given[word]!r} has no meaning for --unmix_mixture {mixture}; "
            f"leave it out, or use {others}."
        )

    def _word(self, word: str, default: Any) -> Any:
        return self.given.get(word, self.published.get(word, default))

    def weight(self) -> Weight | None:
        """The law of lambda; None if nothing was said of it."""
        said = {"unmix_weight", "unmix_larger", "beta"} & {*self.given, *self.published}
        if not said:
            return None
        return Weight(
            law=self._word("unmix_weight", "beta"),
            beta=self._word("beta", 1.0),
            low=self.published.get("unmix_low", 0.0),
            high=self.published.get("unmix_high", 1.0),
            larger=bool(self._word("unmix_larger", False)),
        )

    def pairs(self) -> dict[str, Any]:
        """How two images are paired, as Un-Mix does by default, and the law if it was said."""
        law = self.weight()
        return {
            "per": self._word("unmix_per", "batch"),
            "pairing": self._word("unmix_pairing", "reverse"),
            **({} if law is None else {"weight": law}),
        }

    def own(self, **names: str) -> dict[str, Any]:
        """The given words as arguments of the mixture's names; its own defaults for the rest."""
        return {
            name: value
            for word, name in names.items()
            if (value := self._word(word, None)) is not None
        }


def _coin(wanted: Wanted, prob: float | None = None) -> MixtureOperator:
    share = wanted.given.get("unmix_prob", 0.5) if prob is None else prob
    return UnMix(share, **wanted.pairs())


def _crops(wanted: Wanted) -> dict[str, Any]:
    law = wanted.weight()
    return {**wanted.own(unmix_per="per"), **({} if law is None else {"weight": law})}


def _manifold(wanted: Wanted) -> MixtureOperator:
    layer = wanted.own(unmix_layer="layer")
    if not layer:
        raise UserError(
            "--unmix_layer: --unmix_mixture manifold needs the name of a layer, such as layer2 of "
            "a ResNet or blocks.5 of a ViT."
        )
    return ManifoldMixture(**layer, **wanted.pairs())


def _dirichlet(wanted: Wanted) -> MixtureOperator:
    options = wanted.own(unmix_images="images", beta="alpha")
    return DirichletMixture(**options, per=wanted.pairs()["per"])


_BUILDERS: dict[str, Callable[[Wanted], MixtureOperator]] = {
    "coin": _coin,
    "global": lambda wanted: _coin(wanted, 1.0),
    "region": lambda wanted: _coin(wanted, 0.0),
    "resizemix": lambda wanted: ResizeMix(**wanted.pairs()),
    "gridmix": lambda wanted: GridMix(**wanted.pairs(), **wanted.own(unmix_patch="cells")),
    "fmix": lambda wanted: FMix(**wanted.pairs()),
    "scalemix": lambda wanted: ScaleMix(**_crops(wanted)),
    "cropmix": lambda wanted: CropMix(**_crops(wanted), **wanted.own(unmix_images="images")),
    "patchmix": lambda wanted: PatchMixture(
        **wanted.own(unmix_per="per", unmix_images="images", unmix_patch="patch_size")
    ),
    "manifold": _manifold,
    "dirichlet": _dirichlet,
}
