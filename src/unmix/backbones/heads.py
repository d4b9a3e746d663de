"""What stands between a backbone and a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Normalize", "linear_head", "mlp_head"]


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


class Normalize(nn.Module):
    """L2 normalisation along dimension 1, in float32 even under autocast.

    A row of zeros stays zero. In bfloat16 the norm would be off by up to 0.4%, which a temperature
    of 0.07 turns into visible differences of the logits.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map `(N, D)` of any floating type to float32 `(N, D)` of unit rows."""
        with torch.autocast(features.device.type, enabled=False):
            return nn.functional.normalize(features.float(), dim=1)
