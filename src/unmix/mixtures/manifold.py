"""Manifold mixup: features are mixed instead of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unmix.errors import UserError
from unmix.mixtures.basics import checked_shape
from unmix.mixtures.draws import PairDraw, whole_image
from unmix.mixtures.layers import mixed_at
from unmix.mixtures.operators import PairOperator
from unmix.mixtures.weights import Weight

__all__ = ["FeatureDraw", "ManifoldMixture"]


@dataclass(frozen=True)
class FeatureDraw(PairDraw):
    """Mixtures of pairs of the output of a layer.

    Attributes:
        layer: Its name; see `unmix.mixtures.mixed_at`.
    """

    layer: str = ""

    def query(self, method: Any, images: Tensor, others: Sequence[Tensor] = ()) -> Any:
        """A method's query of its first view, whose features are mixed on the way."""
        with mixed_at(method, self.layer, self):
            return method.query(images, 0)


@dataclass(frozen=True)
class ManifoldMixture(PairOperator):
    """A global mixture of the output of a layer; see `unmix.mixtures.mixed_at`.

    Source: Verma et al. 2019 (ICML, Manifold Mixup), Sec. 2, with a layer that is chosen instead of
    one drawn at random at each step.

    Args:
        layer: Name of the layer in the backbone: "layer2" of a ResNet, "blocks.5" of a ViT.
        weight: The law of lambda.
        per: One weight for a `batch`, or for each `sample`.
        pairing: See `unmix.mixtures.pairing.partners`; not "second_view".

    Raises:
        UserError: if a word is unknown.
    """

    layer: str
    weight: Weight = Weight()  # noqa: RUF009 - frozen
    per: Literal["batch", "sample"] = "batch"
    pairing: str = "reverse"

    @property
    def mixes_pixels(self) -> bool:
        """False: features are mixed."""
        return False

    def __post_init__(self) -> None:
        self._check_pairs()
        if self.pairing == "second_view":
            raise UserError(
                "--unmix_pairing: second_view mixes pixels of two views, and --unmix_mixture "
                "manifold the features of one; use reverse, permutation, halves or neighbor."
            )

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> FeatureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for pairing by neighbours."""
        n, height, width = checked_shape(shape)
        ratio = self.weight.draw(self._times(n), generator)
        partner = self._partner(n, generator, features)
        m = len(partner)
        return FeatureDraw(
            partner,
            whole_image(m, height, width),
            ratio.expand(m),
            (height, width),
            per_sample=self.per == "sample",
            batch=n,
            layer=self.layer,
        )
