"""Numbers that tell whether an encoder is collapsing, without labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unmix.errors import UserError

__all__ = ["effective_rank", "health", "spread", "uniformity"]

_BLOCK = 1024


def spread(features: Tensor) -> float:
    """Return the mean standard deviation of the L2-normalised features, times the square root of D.

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
    """Return RankMe: the exponential of the entropy of the normalised singular values.

    In [1, min(N, D)]; 1 means that all features lie on one line, and features of zero give 0. Not
    centred, as published (Garrido et al., arXiv 2210.02885, equation 1).

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


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """Return the log of the mean Gaussian potential over all pairs of different images.

    0 means collapse; the lower, the more evenly the L2-normalised features cover the sphere, down
    to about -2 t in many dimensions (Wang and Isola, arXiv 2005.10242, section 4.1).

    Args:
        features: `(N, D)`. The cost grows with N squared; 10,000 rows take a few seconds.
        t: Sharpness of the potential exp(-t d^2).

    Raises:
        UserError: if the features are not a matrix of at least two finite rows.
    """
    unit = normalize(_check(features), dim=1).float()
    n = len(unit)
    total = 0.0
    for start in range(0, n, _BLOCK):
        cosine = (unit[start : start + _BLOCK] @ unit.T).clamp(-1, 1)
        potential = (t * (2 * cosine - 2)).exp()
        own = torch.arange(len(potential), device=unit.device)
        potential[own, own + start] = 0
        total += potential.sum(dtype=torch.float64).item()
    return math.log(total / (n * (n - 1)))


def health(features: Tensor) -> dict[str, float]:
    """Return "spread", "effective_rank" and "uniformity" of features `(N, D)`.

    Raises:
        UserError: if the features are not a matrix of at least two finite rows.
    """
    return {
        "spread": spread(features),
        "effective_rank": effective_rank(features),
        "uniformity": uniformity(features),
    }


def _check(features: Tensor) -> Tensor:
    """Return the features in float64."""
    if features.ndim != 2 or len(features) < 2 or not bool(features.isfinite().all()):
        raise UserError(
            f"health: features {tuple(features.shape)} must be (N, D), all finite, N at least 2"
        )
    return features.double()
