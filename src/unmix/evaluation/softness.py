"""How flat an image's features are, whatever their scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmix.errors import UserError

__all__ = ["softness", "softness_summary"]


def softness(features: Tensor) -> dict[str, Tensor]:
    """Measure how flat each image's prediction curve is.

    The published comparison of curves (arXiv 2003.05438v1, figure 3) mixes flatness with the norm
    of the features; the scale-free measures keep them apart.

    Args:
        features: Pooled features after a ReLU, `(N, D)`, none negative.

    Returns:
        Measures by name, each float64 `(N,)`. Scale-free, and NaN for an image whose features are
        all zero: "entropy" of x / sum x in nats, in [0, ln D]; "relative_entropy", that over ln D
        (1 for D = 1); "participation_ratio" (sum x)^2 / sum x^2, in [1, D]; "max_share" max x /
        sum x, in [1 / D, 1]. In the features' own units: "max", "sum", "norm" (L2).

    Raises:
        UserError: if a feature is negative or not finite, or there are none.
    """
    if features.ndim != 2 or features.numel() == 0:
        raise UserError(f"softness: features {tuple(features.shape)} must be (N, D), not empty")
    x = features.double()
    if not bool(x.isfinite().all()) or bool((x < 0).any()):
        raise UserError(
            f"softness: features go from {x.min().item():g} to {x.max().item():g}; they must be "
            "finite and not negative: the pooled output after the last ReLU, not a projection"
        )
    largest = x.amax(dim=1)
    # Dividing by the largest first keeps squares of tiny features from vanishing.
    scaled = x / largest[:, None]
    total = scaled.sum(dim=1)
    share = scaled / total[:, None]
    entropy = -torch.special.xlogy(share, share).sum(dim=1)
    log_dim = math.log(x.shape[1])
    return {
        "entropy": entropy,
        "relative_entropy": entropy / log_dim if log_dim else entropy + 1,
        "participation_ratio": total.square() / scaled.square().sum(dim=1),
        "max_share": share.amax(dim=1),
        "max": largest,
        "sum": x.sum(dim=1),
        "norm": x.norm(dim=1),
    }


def softness_summary(features: Tensor) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation (over N, not N - 1) of each measure over a set of images.

    Args:
        features: As in `softness`. Images whose features are all zero count in the measures with
            units only; if there are no others, the scale-free ones are NaN.

    Raises:
        UserError: as `softness` does.
    """
    summary = {}
    for name, values in softness(features).items():
        known = values[~values.isnan()]
        std, mean = torch.std_mean(known, correction=0)
        summary[name] = (mean.item(), std.item())
    return summary
