"""AttentiveMix: the cells of the partner that the encoder looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmix.mixtures.boxes import upsample_nearest
from unmix.mixtures.draws import MaskDraw, MixtureDraw
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.sampling import PAIRINGS, Pairing, checked_shape
from unmix.transfer import to_device

__all__ = ["AttentiveMix"]


@dataclass(frozen=True)
class AttentiveMix(PairOperator):
    """The cells of a coarse grid that the encoder looks at most are pasted from the partner.

    Of the cells of the partner's attention map, the `share` with the largest values are pasted into
    the same places, and the weight is that of the pixels, counted. Source: Walawalkar et al. 2020
    (ICASSP, arXiv 2003.13048), Sec. 2: the top 6 cells of 7 x 7. There a trained ResNet-50 gives
    the map; here it is the encoder that is being trained, see `unmix.backbones.attention_map`.

    Args:
        cells: Most cells along each side of the map, which may be coarser; at least 2.
        share: Of the cells that are pasted, in (0, 1]; one cell at least is left.
        per: The cells of the first mixture's partner for a `batch`, or each its own a `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    one_draw = "one set of cells"
    by_region: ClassVar[bool] = True
    needs_attention: ClassVar[bool] = True

    cells: int = parameter(7, setting="unmix_patch", at_least=2)
    share: float = parameter(6 / 49, above=0, at_most=1)
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)

    def describe_mixing(self) -> str:
        """Which cells are pasted."""
        return f"the {self.share:.0%} of {self.cells} x {self.cells} cells that are looked at most"

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W).

        Args:
            shape: Of the batch.
            generator: For the partners.
            features: (N, D) for nearest neighbors.
            attention: Where the encoder looks in each image, (N, rows, columns), on any device.

        Raises:
            ValueError: without the attention of all images.
        """
        n, height, width = checked_shape(shape)
        if attention is None or attention.ndim != 3 or len(attention) != n:
            raise ValueError(
                f"AttentiveMix needs where the encoder looks in {n} images (N, rows, columns), not "
                f"{None if attention is None else tuple(attention.shape)}"
            )
        partner = self._partner(n, generator, features)
        of = to_device(partner[: self._times(n)], attention.device)
        size = (min(self.cells, attention.shape[1]), min(self.cells, attention.shape[2]))
        maps = torch.nn.functional.adaptive_avg_pool2d(attention[of].float(), size).flatten(1)
        count = min(maps.shape[1] - 1, max(1, round(self.share * maps.shape[1])))
        cells = torch.zeros_like(maps, dtype=torch.bool)
        cells.scatter_(1, maps.topk(count, dim=1).indices, True)
        rows, columns = (
            torch.arange(side, device=maps.device) * c // side
            for side, c in zip((height, width), size, strict=True)
        )
        mask = upsample_nearest(cells.unflatten(1, size), rows, columns)
        return self._credited(MaskDraw(partner, mask, n))

    def draw_for(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for images (N, C, H, W), with where the encoder looks in them."""
        return self.draw(images.shape, generator, features, attention)
