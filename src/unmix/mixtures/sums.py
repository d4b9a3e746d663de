"""Weighted sums of more than two images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmix.mixtures.draws import PixelDraw, source_of
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, MixtureOperator, Per
from unmix.mixtures.pixels import pixelwise
from unmix.mixtures.positions import at_every_position
from unmix.mixtures.sampling import checked_shape, cyclic_owners, dirichlet
from unmix.transfer import to_device

__all__ = ["DirichletMixture", "SumDraw", "weighted_sum"]


@dataclass(frozen=True)
class SumDraw(PixelDraw):
    """Sums of k images by their shares; of any size.

    Attributes:
        owners: Whose images are in each mixture, int64 (N, k); column 0 is the sample itself.
        shares: Their shares, float (N, k); rows sum to 1.
        per_sample: False if the whole batch shares one row of shares.
    """

    owners: Tensor
    shares: Tensor
    per_sample: bool = True

    def shares_at(self, rows: int, columns: int) -> Tensor:
        """The shares, the same in every cell of a grid, (N, k, rows, columns)."""
        return at_every_position(self.shares, rows, columns)

    @property
    def batch(self) -> int:
        """Number of images that this was drawn for."""
        return len(self.owners)

    @property
    def partner(self) -> Tensor:
        """Index of the second owner, int64 (N,)."""
        return self.owners[:, 1]

    @property
    def weight(self) -> Tensor:
        """The sample's own share, (N,)."""
        return self.shares[:, 0]

    @property
    def is_mixed(self) -> Tensor:
        """True where the mixture differs from the image, bool (N,)."""
        return self.weight < 1

    def resized(self, height: int, width: int) -> SumDraw:
        """This draw: it does not depend on the size."""
        return self

    @pixelwise
    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W) with itself, or with another view of itself."""
        source = source_of(images, others, len(self.owners), None)
        return weighted_sum(images, source, self.owners, self.shares)


def weighted_sum(own: Tensor, source: Tensor, owners: Tensor, shares: Tensor) -> Tensor:
    """shares[:, 0] own + sum over the other columns of shares[:, j] source[owners[:, j]].

    Args:
        own: The samples' own pixels or features, (M, ...).
        source: Where those of the other owners are, (N, ...).
        owners: int64 (M, k).
        shares: float (M, k).
    """
    owners = to_device(owners, own.device)
    shares = to_device(shares, own.device, own.dtype).unflatten(1, (-1, *[1] * (own.ndim - 1)))
    mixed = shares[:, 0] * own
    for column in range(1, owners.shape[1]):
        mixed = mixed + shares[:, column] * source[owners[:, column]]
    return mixed


@dataclass(frozen=True)
class DirichletMixture(MixtureOperator):
    """Sums of k images, with shares from a Dirichlet distribution.

    The sample itself has at least `main_at_least` of its mixture: with f that floor and d from
    Dirichlet(alpha, ..., alpha), its share is f + (1 - f) d_0, and the others have (1 - f) d_j.
    Source: InputMix of Lee et al. 2021 (i-Mix, ICLR, Sec. 3.3 and released code), whose floor is
    0.5. There the label is unchanged; here it may be shared. The others are the next ones of the
    shuffled batch.

    Args:
        images: k, the images of a mixture; at least 2.
        alpha: Parameter of the distribution; above 0.
        main_at_least: f, in [0, 1]; 0 gives every owner the same distribution.
        per: One row of shares per `batch`, or per `sample`, as released.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    one_draw = "one row of shares"
    images: int = parameter(3, setting="unmix_images", at_least=2)
    alpha: float = parameter(1.0, setting="beta", above=0)
    main_at_least: float = parameter(0.5, at_least=0, at_most=1)
    per: Per = parameter("sample", setting="unmix_per", choices=PER)

    def describe(self) -> str:
        """How many images are summed, and the distribution of their shares."""
        shares = f"Dirichlet({self.alpha:g}), at least {self.main_at_least:g} of the own"
        return f"sums of {self.images} images; {shares}"

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> SumDraw:
        """Draw for a batch of shape (N, C, H, W)."""
        n, _, _ = checked_shape(shape)
        m = n if self.per == "sample" else 1
        shares = (1 - self.main_at_least) * dirichlet(self.alpha, m, self.images, generator)
        shares[:, 0] += self.main_at_least
        owners = cyclic_owners(n, self.images, generator)
        return SumDraw(owners, shares.expand(n, self.images), self.per == "sample")
