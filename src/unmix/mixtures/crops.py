"""ScaleMix and CropMix: several crops of one image, of different scales, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unmix.errors import UserError
from unmix.mixtures.boxes import clipped_boxes
from unmix.mixtures.draws import PairDraw, check_batch, formatted, whole_image
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, MixtureOperator, Per
from unmix.mixtures.own_draws import OneOwner, OwnDraw, check_others
from unmix.mixtures.pixels import pixelwise
from unmix.mixtures.sampling import Weight, checked_shape, random_centers
from unmix.randomness import uniform
from unmix.transfer import to_device

__all__ = ["CropDraw", "CropMix", "ScaleMix"]


class _Crops(MixtureOperator):
    """Mixtures of crops of one image, all of whose shares are its own."""

    @property
    def shares_vary(self) -> bool:
        """False: each sample owns all of its mixture."""
        return False


@dataclass(frozen=True)
class ScaleMix(_Crops):
    """A box of one crop of an image is pasted into another crop of it.

    Both crops are as those of the run, and the label is unchanged. Source: Wang et al. 2022 (CVPR,
    asym-siam), Sec. 3.2 and released code, with lambda ~ U(0, 1) and a box for each image.

    Args:
        weight: The distribution of lambda, where the box covers 1 - lambda before it is clipped.
        per: One box per `batch`, or per `sample`.

    Raises:
        UserError: if a string is none of its choices.
    """

    one_draw = "one box"
    weight: Weight = Weight("uniform")  # noqa: RUF009 - frozen
    per: Per = parameter("sample", setting="unmix_per", choices=PER)

    def describe(self) -> str:
        """What is pasted, and the distribution of lambda."""
        return f"a box of another crop of the image; {self.weight}"

    @property
    def extra(self) -> tuple[tuple[float, float] | None, ...]:
        """One further view, cropped as the run's own."""
        return (None,)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> OwnDraw:
        """Draw for a batch of shape (N, C, H, W)."""
        n, height, width = checked_shape(shape, region=True)
        m = n if self.per == "sample" else 1
        lam = self.weight.draw(m, generator)
        box = clipped_boxes(lam, random_centers(m, height, width, generator), height, width)
        own = torch.arange(n, device="cpu")
        ratio = torch.zeros_like(own, dtype=torch.float32)
        return OwnDraw(PairDraw(own, box.expand(n, 4), ratio, (height, width), m > 1, batch=n))


@dataclass(frozen=True)
class CropDraw(OneOwner):
    """Crops of one image, mixed one after the other.

    Attributes:
        order: In which order the crops are taken, int64 (N, n) or, for the whole batch, (1, n).
        rounds: How each further crop is mixed into what there is, n - 1 draws of pairs.
        channels: For each round the order of the channels of the crop that comes in, int64 (N, C)
            or (1, C); empty if they stay.
    """

    order: Tensor
    rounds: tuple[PairDraw, ...]
    channels: tuple[Tensor, ...] = ()

    @property
    def is_mixed(self) -> Tensor:
        """True: all pixels are of the crops, bool (N,)."""
        return torch.ones_like(self.rounds[0].partner, dtype=torch.bool)

    def resized(self, height: int, width: int) -> CropDraw:
        """The same order and weights, with scaled boxes."""
        return replace(self, rounds=tuple(each.resized(height, width) for each in self.rounds))

    @pixelwise
    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix the crops.

        Args:
            images: (N, C, H, W), which the crops are of.
            others: The n crops, each (N, C, H, W).

        Raises:
            UserError: if there are not n of them, or they are of another shape.
        """
        check_others(others)
        n = self.order.shape[1]
        for view in (images, *others):
            check_batch(view, len(self.is_mixed), self.rounds[0].size)
        if len(others) != n:
            raise UserError(f"others: this draw mixes {n} crops of each image, not {len(others)}.")
        mixed = self._crop(others, 0)
        for number, round_ in enumerate(self.rounds):
            crop = self._crop(others, number + 1)
            if self.channels:
                crop = _permuted(crop, self.channels[number])
            rows = round_.is_mixed.nonzero().squeeze(1)
            every = len(rows) == len(mixed)
            crop = crop if every else crop[to_device(rows, crop.device)]
            mixed = round_.blend(mixed, crop, rows)
        return formatted(mixed, images)

    def _crop(self, views: Sequence[Tensor], number: int) -> Tensor:
        """The crop that is taken at this place of the order, for every sample."""
        if len(self.order) == 1:
            return views[int(self.order[0, number])]
        which = to_device(self.order[:, number], views[0].device).view(-1, 1, 1, 1)
        crop = views[0]
        for view in range(1, len(views)):
            crop = torch.where(which == view, views[view], crop)
        return crop


def _permuted(images: Tensor, order: Tensor) -> Tensor:
    order = to_device(order, images.device)
    return images.gather(1, order[:, :, None, None].expand_as(images))


@dataclass(frozen=True)
class CropMix(_Crops):
    """Two to four crops of an image, from different ranges of scales, are mixed.

    The range of areas from `least` to 1 is cut into `images` equal ones, and a crop is drawn from
    each; they are mixed in a random order, and the label is unchanged. Source: Han et al. 2022
    (arXiv 2201.12078), Sec. 3, and the defaults of the released code, where the number of crops is
    drawn from 2, 3 and 4 for each image; here it is fixed, since every crop is a view to be made.

    Args:
        images: Crops of an image, 2 to 4.
        least: Least area of a crop, as a share of the image, in (0, 1).
        operation: "global" (weighted sums) or "region" (boxes).
        weight: The distribution of lambda; by default Beta(0.4 / images, 0.4 / images) for global
            mixtures and U(0, 1) for region ones.
        permute: Permute the channels of each crop that comes in. The released code permutes the
            lesser one of a global mixture.
        per: One order and weight per `batch`, or per `sample`, as released.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    one_draw = "one order and weight"
    images: int = parameter(2, setting="unmix_images", at_least=2, at_most=4)
    least: float = parameter(0.01, above=0, at_most=1)
    operation: Literal["global", "region"] = parameter("global", choices=("global", "region"))
    weight: Weight | None = None
    permute: bool = False
    per: Per = parameter("sample", setting="unmix_per", choices=PER)

    def describe(self) -> str:
        """How many crops are mixed, and how."""
        return f"{self.images} crops of the image, {self.operation}"

    @property
    def extra(self) -> tuple[tuple[float, float] | None, ...]:
        """A view for every range of areas."""
        edges = [
            self.least + (1 - self.least) * number / self.images for number in range(self.images)
        ]
        return tuple(zip(edges, [*edges[1:], 1.0], strict=True))

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> CropDraw:
        """Draw for a batch of shape (N, C, H, W)."""
        n, height, width = checked_shape(shape, region=self.operation == "region")
        m = n if self.per == "sample" else 1
        order = uniform((m, self.images), generator).cpu().argsort(dim=1)
        rounds = tuple(self._round(n, m, height, width, generator) for _ in range(self.images - 1))
        channels: tuple[Tensor, ...] = ()
        if self.permute:
            channels = tuple(
                uniform((m, shape[1]), generator).cpu().argsort(dim=1).expand(n, shape[1])
                for _ in rounds
            )
        return CropDraw(order, rounds, channels)

    def _round(
        self, n: int, m: int, height: int, width: int, generator: torch.Generator | None
    ) -> PairDraw:
        lam = self.distribution.draw(m, generator)
        if self.operation == "region":
            box = clipped_boxes(lam, random_centers(m, height, width, generator), height, width)
            ratio = torch.zeros_like(lam)
        else:
            box, ratio = whole_image(m, height, width), lam
        own = torch.arange(n, device="cpu")
        return PairDraw(own, box.expand(n, 4), ratio.expand(n), (height, width), m > 1, batch=n)

    @property
    def distribution(self) -> Weight:
        """The distribution of lambda."""
        if self.weight is not None:
            return self.weight
        if self.operation == "region":
            return Weight("uniform")
        return Weight(alpha=0.4 / self.images)
