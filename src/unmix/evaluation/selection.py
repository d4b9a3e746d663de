"""Choice of hyperparameters on held-out training images; test images are never used for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from unmix.errors import UserError

__all__ = ["DECAYS", "NEIGHBORS", "RATES", "TEMPERATURES", "best", "held_out"]

RATES = (1.0, 0.1, 0.3, 3.0, 10.0)
"""Multiples of the published learning rate that are tried, the published one first."""

DECAYS = (0.0, 1e-6, 1e-5, 1e-4)
"""Weight decays that are tried beside the published one, at the rate chosen."""

NEIGHBORS = (1, 5, 10, 20, 50, 100, 200)
"""Numbers of neighbors that are tried."""

TEMPERATURES = (0.03, 0.05, 0.07, 0.1, 0.2, 0.5)
"""Temperatures of the kNN's weights that are tried."""

_HELD_OUT = 0.1

Candidate = TypeVar("Candidate")


def held_out(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a mask of a tenth of each class, at least one image of a class with two or more.

    Args:
        labels: int64 `(N,)`.
        generator: CPU generator that draws them.

    Raises:
        UserError: if no class has two images.
    """
    mask = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=generator)
    for label in labels.unique():
        members = order[labels[order] == label]
        if len(members) > 1:
            mask[members[: max(1, round(_HELD_OUT * len(members)))]] = True
    if not mask.any():
        raise UserError(
            "train split: no class has two images; some class must, so that hyperparameters can "
            "be chosen on held-out images"
        )
    return mask


def best(
    candidates: Sequence[Candidate],
    score: Callable[[Candidate], float],
    known: float | None = None,
) -> tuple[Candidate, float]:
    """Return the candidate with the highest score, the first of equal ones, and its score.

    Args:
        candidates: At least one, the preferred ones first.
        score: Higher is better.
        known: Score of the first candidate, if it is known.
    """
    scores = [known if i == 0 and known is not None else score(c) for i, c in enumerate(candidates)]
    place = max(range(len(scores)), key=lambda i: (scores[i], -i))
    return candidates[place], scores[place]
