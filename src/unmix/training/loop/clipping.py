"""`--clip_grad`: gradients that are longer than a limit are scaled down to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from unmix.distributed import all_reduce_sum, local
from unmix.methods import Method
from unmix.methods.base import Encoder
from unmix.transfer import to_device

__all__ = ["clip_gradients", "clipped_together", "parts_of"]


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The modules of a method that are called as one: backbones, heads, prototypes."""
    found = []
    for child in module.children():
        # Lists, and decoders without a `forward`, whose parts are called by themselves.
        in_pieces = type(child).forward is nn.Module.forward
        if in_pieces or isinstance(child, Encoder):
            found += parts_of(child)
        elif next(child.parameters(), None) is not None:
            found.append(child)
    return found


def clipped_together(method: Method, by: str) -> list[list[nn.Parameter]]:
    """The trained parameters of a method in groups, whose gradients have one norm each.

    Args:
        method: The method; its momentum copies are not trained.
        by: "all": one group. "network": one for each backbone, head or other part, and one of
            what is in none. "parameter": one for each parameter.
    """
    everything = [p for p in method.parameters() if p.requires_grad]
    if by == "parameter":
        return [[p] for p in everything]
    if by == "all":
        return [everything]
    rest = dict.fromkeys(everything)
    groups = []
    for part in parts_of(method):
        own = [p for p in part.parameters() if p in rest]
        for p in own:
            del rest[p]
        groups.append(own)
    return [group for group in (*groups, list(rest)) if group]


@torch.no_grad()
def clip_gradients(groups: Sequence[Sequence[nn.Parameter]], limit: float) -> None:
    """Scale the gradients of each group, in place, so that their joint norm is at most a limit.

    As `torch.nn.utils.clip_grad_norm_` of each group, in a few kernels for all of them, and also of
    weights of which each process holds a part.

    Args:
        groups: Parameters; those without a gradient are left out.
        limit: Largest L2 norm.
    """
    held = [(n, p.grad) for n, group in enumerate(groups) for p in group if p.grad is not None]
    if not held:
        return
    own = [local(gradient) for _, gradient in held]
    squares = torch.stack(torch._foreach_norm(own)).square()  # type: ignore[arg-type]
    sharded = [isinstance(gradient, DTensor) for _, gradient in held]
    if any(sharded):
        in_parts = to_device(torch.tensor(sharded), squares.device)
        squares = torch.where(in_parts, all_reduce_sum(squares), squares)
    group = to_device(torch.tensor([n for n, _ in held]), squares.device)
    norms = squares.new_zeros(len(groups)).index_add_(0, group, squares).sqrt()
    factors = (limit / (norms + 1e-6)).clamp(max=1)
    if len(groups) == 1:
        torch._foreach_mul_(own, factors[0])
    else:
        torch._foreach_mul_(own, list(factors[group].unbind()))
