"""How a loss is shared between the images of a mixture.

    L = l(q, t)  +  w * l(q_mix, t)  +  (1 - w) * l(q_mix, t[p])

with l the method's loss between a query q and a target t, w the weight and p the partner of the
mixture. One rule for every method: a target is anything that can be indexed by sample, or by sample
and position; then w is that of the position,

    sum over positions u of  w_u * l_u(q_mix, t)  +  (1 - w_u) * l_u(q_mix, t[p]).

Source: Shen et al. 2022 (Un-Mix), Eq. 3, with the second mixture term re-indexed by the partner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from unmix.distributed import rank, world_size
from unmix.errors import UserError
from unmix.mixtures.own_draws import OneOwner
from unmix.transfer import to_device

__all__ = [
    "PositionShares",
    "Shares",
    "of_partner",
    "on_one_device",
    "per_tensor",
    "shared_loss",
    "shared_position_loss",
    "shared_probability",
    "soft_cross_entropy",
]

Target = TypeVar("Target")


class Shares(Protocol):
    """Who is in a mixture, and with what share; every label-space draw is one.

    Attributes:
        owners: Whose images are in each mixture, int64 (M, k); column 0 is the sample itself.
        shares: The share of each owner's content, float (M, k); rows sum to 1.
        per_sample: False if the whole batch shares one row.
    """

    @property
    def owners(self) -> Tensor: ...  # noqa: D102 - described above

    @property
    def shares(self) -> Tensor: ...  # noqa: D102

    @property
    def per_sample(self) -> bool: ...  # noqa: D102


class PositionShares(Protocol):
    """Who is where in a mixture; every label-space draw says it.

    Attributes:
        owners: As in `Shares`.
    """

    @property
    def owners(self) -> Tensor: ...  # noqa: D102 - described above

    def shares_at(self, rows: int, columns: int) -> Tensor:
        """The owners' shares of each cell of a grid, float (M, k, rows, columns); k sums to 1."""
        ...


def shared_loss(
    loss: Callable[[Any, Target], Tensor], query: Any, target: Target, draw: Shares
) -> Tensor:
    """The loss of mixtures, shared among their images: w l(q, t) + (1 - w) l(q, t[p]) for two.

    Args:
        loss: l(query, target), per sample (M,), or a scalar per batch ().
        query: The online branch's output for the M mixtures; any structure that `loss` takes.
        target: What the clean images are compared with: a tensor with N rows, or a tuple, list or
            dict of such.
        draw: The mixtures, as drawn.

    Returns:
        A scalar: the mean over the mixtures.

    Raises:
        UserError: if the loss is neither per sample nor a scalar, or is a scalar per batch and the
            draw has a weight per sample, or the target has not a row for each image.
    """
    _check_draw(loss, draw)
    _check_rows(target, getattr(draw, "batch", None))
    total: Tensor | None = None
    for owners, shares in zip(draw.owners.unbind(1), draw.shares.unbind(1), strict=True):
        if total is not None and _adds_nothing(draw, shares):
            continue
        part = loss(query, of_partner(target, owners))
        share = to_device(shares, part.device, part.dtype)
        if part.numel() == 1 and len(share) > 1:
            part = part.reshape(())  # a scalar of another shape, such as (1,) of lightly's SwaVLoss
        if part.ndim and part.shape != share.shape:
            raise UserError(
                f"loss: it gives {tuple(part.shape)} for {len(share)} mixtures; it must give one "
                f"number for each, ({len(share)},), or a scalar per batch."
            )
        if part.ndim == 0:
            if draw.per_sample:
                raise UserError(
                    "a scalar loss per batch needs one weight per batch: draw with `per='batch'`.",
                    parameter="per",
                )
            share = share[0]
        total = share * part if total is None else total + share * part
    assert total is not None
    return total.mean()


def _check_draw(loss: object, draw: object) -> None:
    if not callable(loss):
        raise UserError("loss: the first argument is the loss, then query, target and draw.")
    if not all(hasattr(draw, name) for name in ("owners", "shares", "per_sample")):
        raise UserError(
            f"draw: a {type(draw).__name__} says nobody's share of a mixture; give what a "
            "label-space mixture drew, such as unmix.UnMix().draw(images.shape)."
        )


def _check_rows(target: Any, images: int | None) -> None:
    for rows in tree_leaves(target):
        if images is not None and isinstance(rows, Tensor) and rows.shape[:1] != (images,):
            raise UserError(
                f"target: {tuple(rows.shape)} where {images} images were mixed; it must have a row "
                "for each of them, in their order."
            )


def shared_position_loss(
    loss: Callable[[Any, Target], Tensor], query: Any, target: Target, draw: PositionShares
) -> Tensor:
    """A loss by position, shared at each one among the images that are there.

    Args:
        loss: What each position adds to the loss of a sample, l_u(query, target), (M, rows,
            columns): 0 at those that do not count.
        query: The online branch's output for the M mixtures; any structure that `loss` takes.
        target: What the clean images are compared with: a tensor with N rows, or a tuple, list or
            dict of such.
        draw: The mixtures, as drawn.

    Returns:
        A scalar: the sum over positions, and the mean over the mixtures.
    """
    total = loss(query, of_partner(target, draw.owners[:, 0]))
    shares = draw.shares_at(*total.shape[1:])
    total = to_device(shares[:, 0], total.device, total.dtype) * total
    for column in range(1, shares.shape[1]):
        if _adds_nothing(draw, shares[:, column]):
            continue
        part = loss(query, of_partner(target, draw.owners[:, column]))
        total = total + to_device(shares[:, column], part.device, part.dtype) * part
    return total.sum(dim=(1, 2)).mean()


def _adds_nothing(draw: object, shares: Tensor) -> bool:
    """Whether all shares are 0 and the loss need not be computed, where to look costs nothing.

    On another device it would wait for that, and in a compiled step split the graph in two. Of
    several processes, which draw differently, each computes it: it may wait for the others'.
    """
    if shares.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return (isinstance(draw, OneOwner) or world_size() == 1) and not bool(shares.any())


def soft_cross_entropy(logits: Tensor, draw: Shares, samples: int) -> Tensor:
    """Cross-entropy with the shares as labels over the samples of the batch: (M,).

    Args:
        logits: (M, world N + K): against every sample of all processes, then other negatives.
        draw: The mixtures, as drawn; its owners are numbers within this process's batch.
        samples: N, the number of samples in that batch.
    """
    log_p, shares = _of_owners(logits, draw, samples)
    return -(shares * log_p).sum(1)


def shared_probability(logits: Tensor, draw: Shares, samples: int) -> Tensor:
    """-log of the shares' weighted sum of the owners' probabilities: (M,); as `soft_cross_entropy`.

    It is at most that, for -log is convex.
    """
    log_p, shares = _of_owners(logits, draw, samples)
    return -(log_p + shares.log()).logsumexp(1)


def _of_owners(logits: Tensor, draw: Shares, samples: int) -> tuple[Tensor, Tensor]:
    """The log-probabilities of the owners and their shares, both (M, k)."""
    log_p = logits.float().log_softmax(dim=1)
    owners = to_device(draw.owners, logits.device) + rank() * samples
    return log_p.gather(1, owners), to_device(draw.shares, logits.device, log_p.dtype)


def on_one_device(draw: Shares) -> tuple[Tensor, Tensor]:
    """The owners and the shares of mixtures, both on the device if one of them is.

    Partners by features, and masks made from pixels, are where these are; copying them to the host
    would make it wait.
    """
    if draw.owners.device.type == "cpu":
        return to_device(draw.owners, draw.shares.device), draw.shares
    return draw.owners, to_device(draw.shares, draw.owners.device)


def of_partner(target: Target, partner: Tensor) -> Target:
    """Each mixture's partner's target: `target[partner]`, through tuples, lists and dicts."""
    n = len(partner)
    # Reading a value would split a compiled graph here.
    here = partner.device.type == "cpu" and not torch.compiler.is_compiling()
    if here and torch.equal(partner, torch.arange(n, device="cpu")):
        return per_tensor(target, lambda rows: rows if len(rows) == n else rows[:n])
    return per_tensor(target, lambda rows: rows[to_device(partner, rows.device)])


def per_tensor(rows: Target, change: Callable[[Tensor], Tensor]) -> Target:
    """Change every tensor of a tensor, tuple, list or dict, and keep the structure and any None.

    Raises:
        TypeError: for anything else.
    """

    def changed(leaf: Any) -> Any:
        if leaf is None:
            return None
        if not isinstance(leaf, Tensor):
            raise TypeError(f"queries and targets must hold tensors, not {type(leaf).__name__}")
        return change(leaf)

    found: Target = tree_map(changed, rows)
    return found
