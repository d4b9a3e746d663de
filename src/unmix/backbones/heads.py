"""What stands between a backbone and a loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Normalize", "linear_head", "mlp", "mlp_head"]


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
    """Return a perceptron: Linear, batch norm, activation for each hidden layer, then Linear.

    A linear layer that batch norm follows has no bias of its own.

    Args:
        sizes: Features of the input, of each hidden layer, and of the output.
        batch_norm: Whether hidden layers have batch norm.
        last: What comes of the output: as it is, with a bias ("linear") or without ("bare"); or
            batch norm without ("norm") or with ("affine") a scale and a shift.
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


class Normalize(nn.Module):
    """L2 normalisation along dimension 1, in float32 even under autocast.

    A row of zeros stays zero. In bfloat16 the norm would be off by up to 0.4%, which a temperature
    of 0.07 turns into visible differences of the logits.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map `(N, D)` of any floating type to float32 `(N, D)` of unit rows."""
        with torch.autocast(features.device.type, enabled=False):
            return nn.functional.normalize(features.float(), dim=1)
