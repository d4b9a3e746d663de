"""Mixture operators: what is drawn, and with which probabilities.

Each operator draws for a batch shape and a `torch.Generator` and gives a record (see
`unmix.mixtures.draws`) that does the work:

    draw = UnMix().draw(x.shape, generator)
    mixed = draw.apply(x)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from unmix.errors import UserError, check_choice, check_number
from unmix.mixtures.boxes import clipped_boxes
from unmix.mixtures.draws import Draw, ImageSpaceDraw, PairDraw, whole_image
from unmix.randomness import beta, uniform

__all__ = ["GlobalMixture", "ImageMixture", "Operator", "RegionMixture", "UnMix"]


class Operator(Protocol):
    """Draws what happens to a batch of images."""

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Draw:
        """Draw for a batch of shape (N, C, H, W)."""
        ...


@dataclass(frozen=True)
class GlobalMixture:
    """Weighted sums of pairs, x_i <- lambda x_i + (1 - lambda) x_j, as mixup.

    Args:
        alpha: lambda ~ Beta(alpha, alpha); above 0.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number("--g_alpha", self.alpha, above=0)

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> PairDraw:
        """Draw a partner (uniform over the batch, oneself included) and a weight a sample."""
        n, height, width = _batch(shape)
        ratio = beta(self.alpha, self.alpha, (n,), generator).cpu()
        partner = _anyone(n, generator)
        return PairDraw(partner, whole_image(n, height, width), ratio, (height, width))


@dataclass(frozen=True)
class RegionMixture:
    """A box of one image pasted into another, as CutMix.

    Args:
        beta: lambda ~ Beta(beta, beta), where the box covers 1 - lambda before it is clipped;
            above 0.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        check_number("--r_beta", self.beta, above=0)

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> PairDraw:
        """Draw a partner (uniform over the batch, oneself included) and a box a sample."""
        n, height, width = _batch(shape, region=True)
        lam = beta(self.beta, self.beta, (n,), generator).cpu()
        partner = _anyone(n, generator)
        box = clipped_boxes(lam, _centres(n, height, width, generator), height, width)
        return PairDraw(partner, box, torch.zeros(n), (height, width))


@dataclass(frozen=True)
class ImageMixture:
    """Image space: views are perturbed by mixtures and the loss does not know.

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

    g_alpha: float = 1.0
    g_num: int = 2
    g_prob: float = 0.1
    r_beta: float = 1.0
    r_num: int = 2
    r_prob: float = 0.1
    r_pixel_decay: float = 1.0

    def __post_init__(self) -> None:
        check_number("--g_alpha", self.g_alpha, above=0)
        check_number("--g_num", self.g_num, at_least=0)
        check_number("--g_prob", self.g_prob, at_least=0, at_most=1)
        check_number("--r_beta", self.r_beta, above=0)
        check_number("--r_num", self.r_num, at_least=0)
        check_number("--r_prob", self.r_prob, at_least=0, at_most=1)
        check_number("--r_pixel_decay", self.r_pixel_decay)

    def draw(
        self, shape: Sequence[int], generator: torch.Generator | None = None
    ) -> ImageSpaceDraw:
        """Draw every round for a batch of shape (N, C, H, W)."""
        n, _, _ = _batch(shape, region=self.r_num > 0)
        own = tuple(self._global_round(shape, generator) for _ in range(self.g_num))
        decay = torch.ones(n)
        regions, partners = [], []
        for number in range(self.r_num):
            fires = _coin(n, self.r_prob, generator)
            regions.append(_only(RegionMixture(self.r_beta).draw(shape, generator), fires))
            partners.append(tuple(self._global_round(shape, generator) for _ in range(self.g_num)))
            if number == 0:
                decay[fires] = self.r_pixel_decay
        return ImageSpaceDraw(own, tuple(regions), tuple(partners), decay)

    def _global_round(self, shape: Sequence[int], generator: torch.Generator | None) -> PairDraw:
        fires = _coin(shape[0], self.g_prob, generator)
        return _only(GlobalMixture(self.g_alpha).draw(shape, generator), fires)


@dataclass(frozen=True)
class UnMix:
    """Label space: the mixtures whose loss is shared between their two images.

    One coin decides between a global mixture (probability `unmix_prob`) and a region mixture.
    Source: Shen et al. 2022 (AAAI), Algorithm 1: one weight and one coin a batch, the partner is
    the batch reversed.

    Args:
        unmix_prob: Probability P of the global mixture, in [0, 1]; the rest are region mixtures.
        beta: lambda ~ Beta(beta, beta) for both kinds; above 0.
        per: One weight and one coin for a `batch`, or for each `sample`.
        pairing: The partner is the batch in `reverse` (i with N - 1 - i; the middle image of an odd
            batch mixes with itself) or by a random `permutation`.
    """

    extra: ClassVar[tuple[tuple[float, float], ...]] = ()
    needs_features: ClassVar[bool] = False

    unmix_prob: float = 0.5
    beta: float = 1.0
    per: Literal["batch", "sample"] = "batch"
    pairing: Literal["reverse", "permutation"] = "reverse"

    def __post_init__(self) -> None:
        check_number("--unmix_prob", self.unmix_prob, at_least=0, at_most=1)
        check_number("--beta", self.beta, above=0)
        check_choice("--unmix_per", self.per, ("batch", "sample"))
        check_choice("--unmix_pairing", self.pairing, ("reverse", "permutation"))

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> PairDraw:
        """Draw for a batch of shape (N, C, H, W)."""
        n, height, width = _batch(shape, region=self.unmix_prob < 1)
        m = n if self.per == "sample" else 1
        ratio = beta(self.beta, self.beta, (m,), generator).cpu()
        is_global = _coin(m, self.unmix_prob, generator)
        region = clipped_boxes(ratio, _centres(m, height, width, generator), height, width)
        box = torch.where(is_global[:, None], whole_image(m, height, width), region)
        ratio = torch.where(is_global, ratio, torch.zeros(()))
        return PairDraw(
            self._partner(n, generator),
            box.expand(n, 4),
            ratio.expand(n),
            (height, width),
            per_sample=self.per == "sample",
        )

    def _partner(self, n: int, generator: torch.Generator | None) -> Tensor:
        if self.pairing == "reverse":
            return torch.arange(n - 1, -1, -1)
        device = generator.device if generator is not None else torch.device("cpu")
        return torch.randperm(n, generator=generator, device=device).cpu()


def _batch(shape: Sequence[int], region: bool = False) -> tuple[int, int, int]:
    """N, H, W of a batch shape.

    Raises:
        UserError: where there is nobody to mix with, or no room for a box.
    """
    n, _, height, width = shape
    if n < 2:
        raise UserError(f"--batch_size: a mixture needs at least 2 images in a batch, not {n}.")
    if region and (height < 2 or width < 2):
        raise UserError(
            f"--size: a region mixture needs images of at least 2 x 2 pixels, not {height} x "
            f"{width}; use a global mixture (--IM_type global, or --unmix_prob 1)."
        )
    return n, height, width


def _coin(n: int, prob: float, generator: torch.Generator | None) -> Tensor:
    return (uniform((n,), generator) < prob).cpu()


def _anyone(n: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randint(n, (n,), generator=generator, device=device).cpu()


def _centres(n: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    size = torch.tensor([height, width])
    return (uniform((n, 2), generator).cpu() * size).long().minimum(size - 1)


def _only(draw: PairDraw, fires: Tensor) -> PairDraw:
    """The draw where `fires`, and the image left as it is elsewhere."""
    ratio = torch.where(fires, draw.ratio, torch.ones(()))
    return PairDraw(draw.partner, draw.box, ratio, draw.size, draw.per_sample)
