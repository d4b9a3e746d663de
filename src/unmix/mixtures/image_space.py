"""Image space: views are perturbed by mixtures, and the loss is unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from unmix.mixtures.boxes import box_mask
from unmix.mixtures.draws import PairDraw, check_batch
from unmix.mixtures.fields import check_parameters, parameter
from unmix.mixtures.mixup import GlobalMixture, RegionMixture
from unmix.mixtures.operators import Operator
from unmix.mixtures.pixels import pixelwise
from unmix.mixtures.sampling import checked_shape, coin
from unmix.transfer import all_to_device

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
        fired = torch.zeros_like(self.decay, dtype=torch.bool)
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
        check_batch(images, len(self.decay), self.regions[0].size if self.regions else None)
        decay, (whole, *regions) = _on_device(self.decay, self._steps, images)
        mixed = images.clone()
        if len(whole.rows):
            mixed[whole.rows] = _weighted(images, whole)
        if bool((self.decay != 1).any()):
            mixed *= decay.view(-1, 1, 1, 1)
        for step in regions:
            if len(step.rows):
                own, others = mixed[step.rows], _weighted(images, step)
                inside = torch.lerp(others, own, step.ratio.view(-1, 1, 1, 1))
                mixed[step.rows] = torch.where(box_mask(step.box, *images.shape[2:]), inside, own)
        return mixed

    @cached_property
    def _steps(self) -> list[_Step]:
        """The global rounds as one step, then the region rounds."""
        n = len(self.decay)
        sources, shares = _sums(torch.arange(n, device="cpu"), self.own)
        rows = (shares[0] < 1).nonzero().squeeze(1)
        nothing = sources.new_empty(0), shares.new_empty(0)
        steps = [_Step(rows, sources[:, rows], nothing[0], shares[:, rows], nothing[1])]
        for region, rounds in zip(self.regions, self.partners, strict=True):
            sources, shares = _sums(region.partner, rounds)
            rows = region.is_mixed.nonzero().squeeze(1)
            steps.append(
                _Step(rows, sources[:, rows], region.box[rows], shares[:, rows], region.ratio[rows])
            )
        return steps


class _Step(NamedTuple):
    """What some images become: a weighted sum of images, everywhere or in a box.

    Attributes:
        rows: The images that change, int64 (R,).
        sources: The images that are summed, int64 (k, R).
        box: Where, int64 (R, 4); empty for everywhere.
        shares: Of the images that are summed, float (k, R).
        ratio: The share that the image itself keeps there, float (R,); empty for none.
    """

    rows: Tensor
    sources: Tensor
    box: Tensor
    shares: Tensor
    ratio: Tensor


def _sums(first: Tensor, rounds: Sequence[PairDraw]) -> tuple[Tensor, Tensor]:
    """Global rounds on images `first` (N,) as one sum: sources and shares, each (1 + rounds, N).

    The images of a round are not mixed themselves, so each round scales the shares before it.
    """
    shares = torch.ones_like(first[None], dtype=torch.float32)
    for round_ in rounds:
        shares = torch.cat([shares * round_.ratio, 1 - round_.ratio[None]])
    return torch.stack([first, *(round_.partner for round_ in rounds)]), shares


def _on_device(decay: Tensor, steps: Sequence[_Step], images: Tensor) -> tuple[Tensor, list[_Step]]:
    """Decay and steps on the device of the images, with numbers of their type.

    In two copies, of indices and of numbers: each keeps the host longer than it takes to draw what
    is in it.
    """
    indices = [part for step in steps for part in (step.rows, step.sources, step.box)]
    numbers = [decay, *(part for step in steps for part in (step.shares, step.ratio))]
    places = iter(all_to_device(indices, images.device))
    values = iter(all_to_device(numbers, images.device, images.dtype))
    return next(values), [
        _Step(next(places), next(places), next(places), next(values), next(values)) for _ in steps
    ]


def _weighted(images: Tensor, step: _Step) -> Tensor:
    """Weighted sums of images, (R, C, H, W), by a step on their device."""
    factors = step.shares[..., None, None, None]
    total = images[step.sources[0]] * factors[0]
    for place, factor in zip(step.sources[1:], factors[1:], strict=True):
        total = total.addcmul(images[place], factor)
    return total


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
        decay = torch.ones(n, device="cpu", dtype=torch.float32)
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
    return replace(draw, ratio=torch.where(fires, draw.ratio, torch.ones_like(draw.ratio)))


def _resized(rounds: tuple[PairDraw, ...], height: int, width: int) -> tuple[PairDraw, ...]:
    return tuple(round_.resized(height, width) for round_ in rounds)
