"""Projection and prediction heads: the layers between a backbone and a loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

__all__ = ["linear_head", "mlp", "mlp_head"]


def linear_head(in_features: int, out_features: int) -> nn.Linear:
    """Return the one-layer projection of InsDis, CMC and MoCo v1 (arXiv 1911.05722)."""
    return nn.Linear(in_features, out_features)


def mlp_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """Return the two-layer projection of MoCo v2 (arXiv 2003.04297): Linear, ReLU, Linear."""
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features),
    )


def mlp(
    sizes: Sequence[int],
    *,
    batch_norm: bool = True,
    last: Literal["linear", "bare", "norm", "affine"] = "linear",
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Return an MLP: Linear, batch norm, activation for each hidden layer, then Linear.

    A linear layer that batch norm follows has no bias of its own.

    Args:
        sizes: Features of the input, of each hidden layer, and of the output.
        batch_norm: Whether hidden layers have batch norm.
        last: The last layer: linear with a bias ("linear") or without ("bare"), or linear without a
            bias and batch norm without ("norm") or with ("affine") scale and shift.
        activation: Of the hidden layers.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes[:-1]):
        layers.append(nn.Linear(n_in, n_out, bias=not batch_norm))
        layers += [nn.BatchNorm1d(n_out)] * batch_norm
        layers.append(activation())
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=last == "linear"))
    if last in ("norm", "affine"):
        layers.append(nn.BatchNorm1d(sizes[-1], affine=last == "affine"))
    return nn.Sequential(*layers)
