"""Mixing a batch in one call, for the common cases."""

from __future__ import annotations

import torch
from torch import Tensor

from unmix.mixtures.draws import MixtureDraw
from unmix.mixtures.mixup import CutMix, MixUp
from unmix.mixtures.operators import MixtureOperator, Per
from unmix.mixtures.sampling import Pairing

__all__ = ["cutmix", "mix", "mixup"]


def mix(
    images: Tensor, operator: MixtureOperator, generator: torch.Generator | None = None
) -> tuple[Tensor, MixtureDraw]:
    """Mix a batch with an operator: draw, then apply.

    Args:
        images: (N, C, H, W), on any device.
        operator: Such as `UnMix()`; one that needs no other views or features of the images.
        generator: What the random numbers come from; by default PyTorch's own.

    Returns:
        The mixtures, (M, C, H, W), and the draw, whose `partner` and `weight` say what they are of.
    """
    draw = operator.draw_for(images, generator)
    return draw.apply(images), draw


def mixup(
    images: Tensor,
    alpha: float = 1.0,
    *,
    per: Per = "batch",
    pairing: Pairing = "permutation",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, MixtureDraw]:
    """Mix a batch with itself, lambda x_i + (1 - lambda) x_j; see `MixUp` and `mix`.

        mixed, draw = mixup(x, alpha=1.0, generator=generator)
        loss = shared_loss(criterion, model(mixed), labels, draw)

    Raises:
        UserError: if alpha is not above 0, or there are fewer than 2 images.
    """
    return mix(images, MixUp(alpha, per, pairing), generator)


def cutmix(
    images: Tensor,
    alpha: float = 1.0,
    *,
    per: Per = "batch",
    pairing: Pairing = "permutation",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, MixtureDraw]:
    """Paste a box of each image's partner into it; see `CutMix` and `mix`.

    Raises:
        UserError: if alpha is not above 0, or there are fewer than 2 images.
    """
    return mix(images, CutMix(alpha, per, pairing), generator)
