"""Random choices that mixtures share: coins, partners, places, and the distribution of lambda."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from unmix.errors import UserError, check_choice, check_number
from unmix.mixtures.fields import check_parameters, old_names, parameter
from unmix.randomness import beta, device_of, uniform

__all__ = [
    "DISTRIBUTIONS",
    "PAIRINGS",
    "Pairing",
    "Weight",
    "batch_shape",
    "checked_shape",
    "coin",
    "cyclic_owners",
    "dirichlet",
    "nearest_neighbors",
    "partners",
    "random_centers",
]

Pairing = Literal["reverse", "permutation", "random", "halves", "neighbor", "second_view"]
PAIRINGS: tuple[str, ...] = get_args(Pairing)
"""The choices of partners; see `partners`."""
DISTRIBUTIONS = ("beta", "uniform")
"""The distributions of lambda; see `Weight`."""


@old_names(beta="alpha", law="distribution")
@dataclass(frozen=True)
class Weight:
    """The distribution of lambda, the share of an image's own content.

    Args:
        distribution: "beta" for Beta(alpha, alpha), as mixup (Zhang et al. 2018), or "uniform".
        alpha: Parameter of the Beta distribution; above 0.
        low: Lower end of the uniform distribution, in [0, 1].
        high: Upper end of the uniform distribution, in [low, 1].
        larger: Take max(lambda, 1 - lambda), so that an image stays the main one of its mixture
            (Lee et al. 2021, i-Mix, released code).

    Raises:
        UserError: if a number is out of its range.
    """

    distribution: Literal["beta", "uniform"] = parameter(
        "beta", setting="unmix_weight", choices=DISTRIBUTIONS
    )
    alpha: float = parameter(1.0, setting="beta", above=0)
    low: float = parameter(0.0, at_least=0, at_most=1)
    high: float = parameter(1.0, at_least=0, at_most=1)
    larger: bool = parameter(False, setting="unmix_larger")

    def __post_init__(self) -> None:
        check_parameters(self)
        check_number("high", self.high, at_least=self.low, at_most=1, owner="Weight")

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n values of lambda: float32 (n,) on the CPU, in [0, 1]."""
        if self.distribution == "beta":
            lam = beta(self.alpha, self.alpha, (n,), generator).cpu()
        else:
            lam = self.low + (self.high - self.low) * uniform((n,), generator).cpu()
        return torch.maximum(lam, 1 - lam) if self.larger else lam

    def __str__(self) -> str:
        text = f"Beta({self.alpha:g}, {self.alpha:g})"
        if self.distribution == "uniform":
            text = f"U({self.low:g}, {self.high:g})"
        return f"the larger of lambda and 1 - lambda, {text}" if self.larger else text


def dirichlet(alpha: float, n: int, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw n points of Dirichlet(alpha, ..., alpha): float32 (n, k) on the CPU, rows sum to 1.

    PyTorch's own takes no generator, so the numbers are NumPy's, seeded by the generator.
    """
    device = device_of(generator)
    seed = torch.randint(2**63 - 1, (), generator=generator, device=device).item()
    numbers = np.random.default_rng(int(seed)).dirichlet([alpha] * k, size=n)
    return torch.as_tensor(numbers, dtype=torch.float32, device="cpu")


def checked_shape(shape: Sequence[int], region: bool = False) -> tuple[int, int, int]:
    """N, H, W of a batch shape (N, C, H, W).

    Args:
        shape: Of the batch.
        region: Whether a box is pasted.

    Raises:
        UserError: if it is none, there is no second image, or no room for a box.
    """
    n, height, width = batch_shape(shape)
    if n < 2:
        raise UserError(
            f"a mixture needs at least 2 images in a batch, not {n}.", parameter="batch_size"
        )
    if region and (height < 2 or width < 2):
        raise UserError(
            f"a region mixture needs images of at least 2 x 2 pixels, not {height} x {width}; use "
            "a global mixture.",
            parameter="size",
        )
    return n, height, width


def batch_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """N, H, W of a batch shape (N, C, H, W).

    Raises:
        UserError: if it is none.
    """
    if isinstance(shape, Tensor):
        raise UserError("shape: give that of the images, images.shape, and not the images.")
    if len(shape) != 4:
        raise UserError(f"shape: {tuple(shape)}; a draw is for a batch of images (N, C, H, W).")
    n, _, height, width = shape
    return n, height, width


def coin(n: int, prob: float, generator: torch.Generator | None) -> Tensor:
    """True with probability `prob`: bool (n,)."""
    return (uniform((n,), generator) < prob).cpu()


def random_centers(n: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    """Rows and columns, uniform over the image's pixels: int64 (n, 2)."""
    size = torch.tensor([height, width], device="cpu")
    return (uniform((n, 2), generator).cpu() * size).long().minimum(size - 1)


def partners(
    pairing: str,
    n: int,
    generator: torch.Generator | None = None,
    features: Tensor | None = None,
) -> Tensor:
    """The partner of each mixture of a batch of n images.

    Args:
        pairing: "reverse" (i with N - 1 - i, Un-Mix; the middle image of an odd batch is its own
            partner), "permutation" (mixup; fixed points are possible), "random" (each image's
            partner is uniform over the batch, self included), "halves" (the first half with the
            second, so there are n // 2 mixtures and the last image of an odd batch is in none,
            MixCo), "neighbor" (the nearest other image, see `nearest_neighbors`) or "second_view"
            (the image itself).
        n: Images in the batch.
        generator: For "permutation" and "random".
        features: For "neighbor": the features that it is nearest in, (n, D).

    Returns:
        int64 (M,), on the CPU, but for "neighbor" on the features' device.

    Raises:
        UserError: if there is no such pairing.
        ValueError: if "neighbor" is given no features, or not n of them.
    """
    check_choice("pairing", pairing, PAIRINGS)
    if pairing == "reverse":
        return torch.arange(n - 1, -1, -1, device="cpu")
    if pairing == "permutation":
        return _permutation(n, generator)
    if pairing == "random":
        device = device_of(generator)
        return torch.randint(n, (n,), generator=generator, device=device).cpu()
    if pairing == "halves":
        return torch.arange(n // 2, device="cpu") + n // 2
    if pairing == "second_view":
        return torch.arange(n, device="cpu")
    if features is None or len(features) != n:
        raise ValueError(
            f"the pairing of {n} images with nearest neighbors needs their features (N, D), "
            f"not {None if features is None else tuple(features.shape)}"
        )
    return nearest_neighbors(features)


@torch.no_grad()
def nearest_neighbors(features: Tensor) -> Tensor:
    """The index of the nearest other row by cosine: int64 (N,), on the features' device.

    Nothing is read back to the host, so this may be called within a step.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = torch.nn.functional.normalize(features.detach().float(), dim=1)
        return (unit @ unit.T).fill_diagonal_(-torch.inf).argmax(dim=1)


def cyclic_owners(n: int, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Each image and the next k - 1 images of a shuffled batch, int64 (n, k).

    Every image is in k mixtures, and the k owners of a mixture differ as long as k <= n; in a
    smaller batch they repeat.
    """
    order = _permutation(n, generator)
    steps = torch.arange(n, device="cpu")[:, None] + torch.arange(k, device="cpu")
    owners = torch.empty(n, k, dtype=torch.int64, device="cpu")
    owners[order] = order[steps % n]
    return owners


def _permutation(n: int, generator: torch.Generator | None) -> Tensor:
    device = device_of(generator)
    return torch.randperm(n, generator=generator, device=device).cpu()
