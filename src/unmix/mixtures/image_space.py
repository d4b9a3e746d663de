"""Image space: views are perturbed by mixtures, and the loss is unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmix.mixtures.draws import PairDraw, check_batch
from unmix.mixtures.fields import check_parameters, parameter
from unmix.mixtures.mixup import GlobalMixture, RegionMixture
from unmix.mixtures.operators import Operator
from unmix.mixtures.pixels import pixelwise
from unmix.mixtures.sampling import checked_shape, coin
from unmix.transfer import to_device

__all__ = ["ImageMixture", "ImageSpaceDraw"]


@dataclass(frozen=True)
class ImageSpaceDraw:
    """The image-space chain IM = RM(GM(images)): global rounds, then region rounds.

    Source: Shen et al. 2020 (arXiv 2003.05438 v1), classes GM and RM of the released code.

    Attributes:
        own: Global rounds of each image. Their partners are unmixed images of the batch.
        regions: Region rounds. The partner of each is itself globally mixed before it is pasted...
        partners: ...by these rounds, one tuple a region round; entry i is for sample i's partner.
        decay: What each image is multiplied by in the first region round, float (N,); 1 where
            that round did not fire.
    """

    own: tuple[PairDraw, ...]
    regions: tuple[PairDraw, ...]
    partners: tuple[tuple[PairDraw, ...], ...]
    decay: Tensor

    @property
    def is_mixed(self) -> Tensor:
        """True where a round fired for the image, bool (N,)."""
        fired = torch.zeros(len(self.decay), dtype=torch.bool)
        for round_ in (*self.own, *self.regions):
            fired |= round_.ratio < 1
        return fired

    def resized(self, height: int, width: int) -> ImageSpaceDraw:
        """The same partners, weights and decays, with scaled boxes."""
        return replace(
            self,
            own=_resized(self.own, height, width),
            regions=_resized(self.regions, height, width),
            partners=tuple(_resized(rounds, height, width) for rounds in self.partners),
        )

    @pixelwise
    def apply(self, images: Tensor) -> Tensor:
        """Mix a batch (N, C, H, W) with itself; every view given gets the same mixture."""
        check_batch(images, len(self.decay), None)
        mixed = images
        for round_ in self.own:
            mixed = round_.onto(mixed, images)
        for number, (region, rounds) in enumerate(zip(self.regions, self.partners, strict=True)):
            if number == 0 and bool((self.decay != 1).any()):
                mixed = mixed * to_device(self.decay, mixed.device, mixed.dtype).view(-1, 1, 1, 1)
            rows = region.is_mixed.nonzero().squeeze(1)
            others = images[to_device(region.partner[rows], images.device)]
            for round_ in rounds:
                others = _mix_rows(round_, others, images, rows)
            mixed = region.blend(mixed, others, rows)
        return mixed


@dataclass(frozen=True)
class ImageMixture(Operator):
    """Image space: views are perturbed by mixtures, and the loss is unchanged.

    `g_num` times, with probability `g_prob`, a global mixture; then `r_num` times, with
    probability `r_prob`, a region mixture whose partner is itself globally mixed. The partner is a
    uniform draw from the batch: marginally the same as one from the data set, without a second
    decode. Apply one draw to every view, so that all of them have the same partner, weight and
    box. Source: Shen et al. 2020, v1; the defaults are the released flags'.

    Args:
        g_alpha: Global weights are from Beta(g_alpha, g_alpha); above 0.
        g_num: Rounds of global mixing; 0 for none.
        g_prob: Probability of each global round, in [0, 1].
        r_beta: Region boxes are from Beta(r_beta, r_beta); above 0.
        r_num: Rounds of region mixing; 0 for none.
        r_prob: Probability of each region round, in [0, 1].
        r_pixel_decay: What the image is multiplied by in the first region round if it fires.
    """

    g_alpha: float = parameter(1.0, setting="g_alpha", above=0)
    g_num: int = parameter(2, setting="g_num", at_least=0)
    g_prob: float = parameter(0.1, setting="g_prob", at_least=0, at_most=1)
    r_beta: float = parameter(1.0, setting="r_beta", above=0)
    r_num: int = parameter(2, setting="r_num", at_least=0)
    r_prob: float = parameter(0.1, setting="r_prob", at_least=0, at_most=1)
    r_pixel_decay: float = parameter(1.0, setting="r_pixel_decay")

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def mixed_fraction(self) -> float:
        """The expected fraction of images that are changed, in [0, 1]."""
        return 1 - (1 - self.g_prob) ** self.g_num * (1 - self.r_prob) ** self.r_num

    def describe(self) -> str:
        """The rounds, with their probabilities."""
        decay = f", pixel decay {self.r_pixel_decay:g}" if self.r_pixel_decay != 1 else ""
        rounds = [
            f"global {self.g_num} times with probability {self.g_prob:g}" * (self.g_num > 0),
            f"region {self.r_num} times with probability {self.r_prob:g}{decay}" * (self.r_num > 0),
        ]
        return ", then ".join(filter(None, rounds)) or "no rounds"

    def draw(
        self, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> ImageSpaceDraw:
        """Draw every round for a batch of shape (N, C, H, W)."""
        n, _, _ = checked_shape(shape, region=self.r_num > 0)
        own = tuple(self._global_round(shape, generator) for _ in range(self.g_num))
        decay = torch.ones(n)
        regions, partners = [], []
        for number in range(self.r_num):
            fires = coin(n, self.r_prob, generator)
            regions.append(_only(RegionMixture(self.r_beta).pairs(shape, generator), fires))
            partners.append(tuple(self._global_round(shape, generator) for _ in range(self.g_num)))
            if number == 0:
                decay[fires] = self.r_pixel_decay
        return ImageSpaceDraw(own, tuple(regions), tuple(partners), decay)

    def _global_round(self, shape: Sequence[int], generator: torch.Generator | None) -> PairDraw:
        fires = coin(shape[0], self.g_prob, generator)
        return _only(GlobalMixture(self.g_alpha).pairs(shape, generator), fires)


def _only(draw: PairDraw, fires: Tensor) -> PairDraw:
    """The draw where `fires`, and the image left as it is elsewhere."""
    return replace(draw, ratio=torch.where(fires, draw.ratio, torch.ones(())))


def _resized(rounds: tuple[PairDraw, ...], height: int, width: int) -> tuple[PairDraw, ...]:
    return tuple(round_.resized(height, width) for round_ in rounds)


def _mix_rows(round_: PairDraw, base: Tensor, images: Tensor, rows: Tensor) -> Tensor:
    """One global round on some samples only: `base[k]` belongs to sample `rows[k]`."""
    picked = replace(
        round_, partner=round_.partner[rows], box=round_.box[rows], ratio=round_.ratio[rows]
    )
    return picked.onto(base, images)
