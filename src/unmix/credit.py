"""How the loss is shared between the two images of a mixture.

    L = l(q, t)  +  w * l(q_mix, t)  +  (1 - w) * l(q_mix, t[p])

with l the method's loss between a query q and a target t, w the weight and p the partner of the
mixture. One rule for every method: a target is anything that can be indexed by sample.
Source: Shen et al. 2022 (Un-Mix), Eq. 3, with the second mixture term re-indexed by the partner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from unmix.errors import UserError
from unmix.mixtures.draws import MixtureDraw
from unmix.transfer import to_device

__all__ = ["of_partner", "per_tensor", "shared_loss"]

Target = TypeVar("Target")


def shared_loss(
    loss: Callable[[Tensor, Target], Tensor], query: Tensor, target: Target, draw: MixtureDraw
) -> Tensor:
    """The part of a mixture's loss that its two images share: w l(q, t) + (1 - w) l(q, t[p]).

    Args:
        loss: l(query, target), one number a sample (N,), or one number a batch ().
        query: What the trained branch says of the mixtures, N of them; any structure that `loss`
            takes.
        target: What the clean images are compared with: a tensor with N rows, or a tuple, list or
            dict of such.
        draw: The mixture, as drawn.

    Returns:
        A scalar: the mean over the batch.

    Raises:
        UserError: if the loss is one number a batch and the draw has a weight a sample.
    """
    own = loss(query, target)
    others = loss(query, of_partner(target, draw.partner))
    weight = to_device(draw.weight, own.device, own.dtype)
    if own.ndim == 0:
        if draw.per_sample:
            raise UserError(
                "--unmix_per: a loss that is one number a batch needs one weight a batch: batch."
            )
        weight = weight[0]
    return (weight * own + (1 - weight) * others).mean()


def of_partner(target: Target, partner: Tensor) -> Target:
    """The partner's target for each sample: `target[partner]`, through tuples, lists and dicts."""
    return per_tensor(target, lambda rows: rows[to_device(partner, rows.device)])


def per_tensor(rows: Target, change: Callable[[Tensor], Tensor]) -> Target:
    """Change every tensor of a tensor, tuple, list or dict, and keep the structure.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(rows, Tensor):
        return change(rows)  # type: ignore[return-value]
    if isinstance(rows, dict):
        return {key: per_tensor(value, change) for key, value in rows.items()}  # type: ignore[return-value]
    if isinstance(rows, tuple) and hasattr(rows, "_fields"):
        return type(rows)(*(per_tensor(value, change) for value in rows))
    if isinstance(rows, (tuple, list)):
        return type(rows)(per_tensor(value, change) for value in rows)  # type: ignore[return-value]
    raise TypeError(f"queries and targets must hold tensors, not {type(rows).__name__}")
