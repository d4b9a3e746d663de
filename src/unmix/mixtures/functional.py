"""Mixing a batch in one call, for the common cases."""

from __future__ import annotations

import torch
from torch import Tensor

from unmix.errors import UserError
from unmix.mixtures.draws import MixtureDraw
from unmix.mixtures.mixup import CutMix, MixUp
from unmix.mixtures.operators import MixtureOperator, Operator, Per
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

    Raises:
        UserError: if the operator is none of label space, or needs more than the images.
    """
    _check(images, operator)
    draw = operator.draw_for(images, generator)
    return draw.apply(images), draw


def _check(images: object, operator: object) -> None:
    if not isinstance(images, Tensor):
        raise UserError(f"images: {type(images).__name__}; give a tensor (N, C, H, W).")
    name = operator.__name__ if isinstance(operator, type) else type(operator).__name__
    if not isinstance(operator, MixtureOperator):
        if isinstance(operator, Operator):
            raise UserError(
                f"operator: {name} is of image space, and has no shares for a loss; draw once with "
                "draw(images.shape, generator), and apply that to every view."
            )
        raise UserError(f"operator: {name} is no mixture; give one, such as unmix.UnMix().")
    needs = (
        (bool(operator.extra), "further views of the images: draw, then draw.apply(images, views)"),
        (
            operator.needs_features,
            "features: draw(images.shape, generator, features)",
        ),
        (operator.needs_attention, "attention: draw(images.shape, generator, None, attention)"),
        (not operator.mixes_pixels, "a layer's output: draw, then encode within unmix.mixed_at"),
    )
    for needed, what in needs:
        if needed:
            raise UserError(f"operator: {name}() as given needs {what}.")


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
