"""Layers that draw random numbers in training: dropout and stochastic depth."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["draws_in_training", "drop_alike", "without_drop_path"]

_PLACES = ("drop_path", "drop_path1", "drop_path2")


def draws_in_training(module: nn.Module) -> bool:
    """Whether a layer of a module draws random numbers in training: dropout or stochastic depth."""
    # Asked at every step: several times as fast as `module.modules()`, which looks for repetitions.
    layers: list[nn.Module | None] = [module]
    while layers:
        layer = layers.pop()
        if layer is None:
            continue
        if (isinstance(layer, _DropoutNd) and layer.p > 0) or _drop_path(layer) > 0:
            return True
        layers.extend(layer._modules.values())
    return False


def drop_alike(module: nn.Module, rate: float) -> bool:
    """Leave out the residual branches of all blocks of one of timm's networks with one probability.

    Returns:
        Whether the network has such branches, and no others.
    """
    from timm.layers import DropPath

    for layer in list(module.modules()):
        for name in _PLACES:
            # The first block, whose probability was 0, has an identity there, or None.
            child = getattr(layer, name, False)
            if child is None or isinstance(child, (nn.Identity, DropPath)):
                setattr(layer, name, DropPath(rate))
    return {_drop_path(layer) for layer in module.modules()} - {0.0} == {rate}


def without_drop_path(module: nn.Module) -> None:
    """Switch stochastic depth off, in place: a momentum encoder keeps all of its blocks."""
    for layer in module.modules():
        if _drop_path(layer):
            layer.drop_prob = 0.0  # type: ignore[assignment]


def _drop_path(layer: nn.Module) -> float:
    """The probability of timm's `DropPath`; 0 for other layers."""
    return layer.drop_prob if type(layer).__name__ == "DropPath" else 0.0  # type: ignore[return-value]
