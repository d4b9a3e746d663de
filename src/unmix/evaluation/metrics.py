"""Metrics of predictions and features: accuracy, spread, effective rank, softness."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unmix.errors import UserError

__all__ = [
    "NO_CLASS",
    "accuracy",
    "check_labeled",
    "effective_rank",
    "softness",
    "softness_summary",
    "spread",
]

NO_CLASS = -1
"""Entry of a ranking without a further prediction."""


def accuracy(ranking: Tensor, labels: Tensor) -> dict[str, float]:
    """Return how often the label is the first, and among the first five, of a ranking of classes.

    Args:
        ranking: Classes, best first, int64 `(N, K)`, `NO_CLASS` where there is no further one. With
            fewer than five columns, top-5 counts those: a ranking of all of five classes or fewer
            has a top-5 of 100.
        labels: int64 `(N,)`.

    Returns:
        "top1" and "top5" in percent; and of labels that are not equally many of each class that is
        there, "mean_per_class": the mean over these classes of top-1 within each, as is usual for
        Flowers, Pets, Caltech-101 and Aircraft (Kornblith et al. 2019).
    """
    hits = ranking[:, :5] == labels.to(ranking.device)[:, None]
    first = hits[:, 0].double().cpu()
    found = {
        "top1": 100.0 * first.mean().item(),
        "top5": 100.0 * hits.any(1).double().mean().item(),
    }
    classes, place, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
    if len(counts.unique()) > 1:
        right = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, place, first)
        found["mean_per_class"] = 100.0 * (right / counts).mean().item()
    return found


def check_labeled(split: str, features: Tensor, labels: Tensor, classes: int) -> None:
    """Check that a split has features and as many labels, all of them known classes.

    Args:
        split: "train" or "test", for the message.
        features: `(N, D)`.
        labels: int64 `(N,)`, in [0, classes).
        classes: Number of classes.

    Raises:
        UserError: otherwise.
    """
    if features.ndim != 2 or len(features) == 0 or len(features) != len(labels):
        raise UserError(
            f"{split} split: features {tuple(features.shape)} and labels {tuple(labels.shape)} do "
            "not match; they must be (N, D) and (N,) with N at least 1"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{split} split: labels go from {low} to {high}; they must go from 0 to {classes - 1}"
        )


def spread(features: Tensor) -> float:
    """Return the mean standard deviation of the L2-normalized features, times the square root of D.

    0 means that all images have the same feature (collapse); about 1 that directions are
    isotropic, as in SimSiam's figure 2 (arXiv 2011.10566). Features after a ReLU share a positive
    part and lie lower.

    Args:
        features: `(N, D)`.

    Raises:
        UserError: if the features are not a matrix of at least two finite rows.
    """
    unit = normalize(_check(features), dim=1)
    return unit.std(dim=0, correction=0).mean().item() * math.sqrt(unit.shape[1])


def effective_rank(features: Tensor) -> float:
    """Return RankMe: the exponential of the entropy of the normalized singular values.

    In [1, min(N, D)]; 1 means that all features lie on one line, and features of zero give 0. Not
    centered, as published (Garrido et al., arXiv 2210.02885, equation 1).

    Args:
        features: `(N, D)`.

    Raises:
        UserError: if the features are not a matrix of at least two finite rows.
    """
    x = _check(features)
    # The Gram matrix of the shorter side has the squared singular values, at a fraction of the
    # cost.
    gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = singular.sum()
    if total == 0:
        return 0.0
    share = singular / total
    return torch.special.xlogy(share, share).sum().neg().exp().item()


def _check(features: Tensor) -> Tensor:
    """Return the features in float64."""
    if features.ndim != 2 or len(features) < 2 or not bool(features.isfinite().all()):
        raise UserError(
            f"features {tuple(features.shape)} must be (N, D), all finite, N at least 2"
        )
    return features.double()


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
