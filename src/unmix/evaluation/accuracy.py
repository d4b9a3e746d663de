"""Top-1 and top-5 accuracy, and the checks that labelled features must pass."""

from __future__ import annotations

from torch import Tensor

from unmix.errors import UserError

__all__ = ["NO_CLASS", "accuracy", "check_labelled"]

NO_CLASS = -1
"""In a ranking: there is no further prediction."""


def accuracy(ranking: Tensor, labels: Tensor) -> dict[str, float]:
    """Return how often the label is the first, and among the first five, of a ranking of classes.

    Args:
        ranking: Classes, best first, int64 `(N, K)`, `NO_CLASS` where there is no further one. With
            fewer than five columns, top-5 counts those: a ranking of all of five classes or fewer
            has a top-5 of 100.
        labels: int64 `(N,)`.

    Returns:
        "top1" and "top5" in percent.
    """
    hits = ranking[:, :5] == labels.to(ranking.device)[:, None]
    return {
        "top1": 100.0 * hits[:, 0].double().mean().item(),
        "top5": 100.0 * hits.any(dim=1).double().mean().item(),
    }


def check_labelled(split: str, features: Tensor, labels: Tensor, classes: int) -> None:
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
