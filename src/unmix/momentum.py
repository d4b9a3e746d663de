"""Momentum encoders: exponential moving averages (EMA) of trained ones."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unmix.backbones import without_drop_path
from unmix.errors import check_number

__all__ = ["cosine_ema_momentum", "ema_update", "momentum_copy"]

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """A full copy of a module, parameters and buffers, that takes no gradient.

    It has no stochastic depth, as the teachers of DINO (Caron et al. 2021, released code).
    """
    copied = copy.deepcopy(module).requires_grad_(False)
    without_drop_path(copied)
    return copied


def ema_update(module: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move every parameter of `module` to momentum * its own + (1 - momentum) * the source's.

    Buffers are not updated: a key encoder's batch norm has statistics of its own inputs (He et al.
    2020, released code).

    Args:
        module: The momentum copy; changed in place.
        source: The trained module.
        momentum: In [0, 1].
    """
    check_number("momentum", momentum, at_least=0, at_most=1)
    average = get_ema_multi_avg_fn(momentum)
    average(list(module.parameters()), list(source.parameters()), 0)


def cosine_ema_momentum(momentum: float, fraction: float) -> float:
    """A momentum that rises to 1 by half a cosine: 1 - (1 - m) (cos(pi fraction) + 1) / 2.

    Source: Grill et al. 2020 (BYOL), Sec. 3.3.

    Args:
        momentum: m at the start.
        fraction: Fraction of the run that is done, in [0, 1].
    """
    return 1 - (1 - momentum) * (math.cos(math.pi * fraction) + 1) / 2
