"""What every operator draws with: a checked shape, coins, partners and places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmix.errors import UserError
from unmix.randomness import uniform

__all__ = ["anyone", "centres", "checked_shape", "coin"]


def checked_shape(shape: Sequence[int], region: bool = False) -> tuple[int, int, int]:
    """N, H, W of a batch shape (N, C, H, W).

    Args:
        shape: Of the batch.
        region: Whether a box has to find room.

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


def coin(n: int, prob: float, generator: torch.Generator | None) -> Tensor:
    """True with probability `prob`: bool (n,)."""
    return (uniform((n,), generator) < prob).cpu()


def anyone(n: int, generator: torch.Generator | None) -> Tensor:
    """A uniform draw from the batch for each of its images, oneself included: int64 (n,)."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randint(n, (n,), generator=generator, device=device).cpu()


def centres(n: int, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    """Rows and columns, uniform over the image's pixels: int64 (n, 2)."""
    size = torch.tensor([height, width])
    return (uniform((n, 2), generator).cpu() * size).long().minimum(size - 1)
