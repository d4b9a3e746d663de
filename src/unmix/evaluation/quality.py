"""Measures of features that need no labels: RankMe, alpha-ReQ, LiDAR, alignment and uniformity.

All are computed in float64. docs/how-to/without-labels.md says what each is good for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unmix.data import ImageSet
from unmix.errors import UserError, check_number
from unmix.evaluation.features import encode_batch, evaluating
from unmix.evaluation.pixels import pixel_batches
from unmix.views import Views

__all__ = [
    "alignment",
    "alpha_req",
    "augmented_features",
    "lidar",
    "of_features",
    "of_views",
    "rankme",
    "uniformity",
]

_EPS = 1e-7
# Ranks of the eigenvalues that the power law is fitted to, and the fewest that make a fit.
_FIRST, _LAST, _FEWEST = 11, 100, 10


def rankme(features: Tensor, eps: float = _EPS) -> float:
    """RankMe: exp of the entropy of the singular values, p_k = sigma_k / |sigma|_1 + eps.

    Source: Garrido et al. 2023, arXiv 2210.02885, Sec. 3.1, Eq. 1; features are not centered. Up to
    eps it is `effective_rank`. Between 1 and min(N, D), so that only encoders of one D, on the same
    number of images, can be compared.

    Args:
        features: `(N, D)`.
        eps: As published for float32.

    Raises:
        UserError: if the features are not a matrix of at least two finite rows.
    """
    x = _checked(features, 2)
    gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    return _exp_entropy(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt(), eps)


def alpha_req(features: Tensor) -> float:
    """alpha-ReQ: the exponent of the power law lambda_j ~ j^-alpha of the covariance's eigenvalues.

    Source: Agrawal et al. 2022 (NeurIPS), Sec. 3. Close to 1 is best: larger, and few directions
    carry the variance; smaller, and it is spread over directions of noise. As in the
    authors' code the fit is by least squares of the logarithms, weighted by 1 / j, here over the
    eigenvalues 11 to 100, or to the last that is not zero.

    Args:
        features: `(N, D)`.

    Returns:
        The exponent; NaN if fewer than 10 eigenvalues are left for the fit.

    Raises:
        UserError: as `rankme` does.
    """
    x = _checked(features, 2)
    x = x - x.mean(dim=0)
    gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    values = torch.linalg.eigvalsh(gram).flip(0)
    count = int((values > 1e-10 * values[0]).sum()) if values[0] > 0 else 0
    last = min(_LAST, count)
    if last - _FIRST + 1 < _FEWEST:
        return math.nan
    rank = torch.arange(_FIRST, last + 1, dtype=torch.float64)
    y, log = values[_FIRST - 1 : _FIRST - 1 + len(rank)].log(), rank.log()
    w = 1 / rank / (1 / rank).sum()
    dx, dy = log - (w * log).sum(), y - (w * y).sum()
    return -((w * dx * dy).sum() / (w * dx.square()).sum()).item()


def lidar(views: Tensor, delta: float = 1e-4, eps: float = _EPS) -> float:
    """LiDAR: RankMe of the linear-discriminant matrix, whose classes are images.

    exp of the entropy of the eigenvalues of S_w^-1/2 S_b S_w^-1/2, with S_b the covariance of the
    images' means, S_w that of the views about them, plus delta I. Directions in which the views of
    one image differ as much as images do then count little. Source: Thilak et al. 2024, arXiv
    2312.04000, Sec. 3, Eqs. 1 to 4, which takes 1,000 images or more and 10 to 50 views of each.
    At most min(N - 1, D).

    Args:
        views: Features of the views of each image `(N, views, D)`, at least two of each.
        delta: Keeps S_w invertible.
        eps: As in `rankme`.

    Raises:
        UserError: if the features are not finite, or there are fewer than two images or views.
    """
    x = _checked(views, 3)
    n, q, d = x.shape
    means = x.mean(dim=1)
    between = (means - means.mean(dim=0)).T
    within = (x - means[:, None]).reshape(n * q, d)
    s_b = between @ between.T / (n - 1)
    s_w = within.T @ within / (n * (q - 1)) + delta * torch.eye(d, dtype=x.dtype)
    values, vectors = torch.linalg.eigh(s_w)
    whiten = vectors / values.sqrt()
    return _exp_entropy(torch.linalg.eigvalsh(whiten.T @ s_b @ whiten).clamp_min(0), eps)


def alignment(views: Tensor) -> float:
    """Alignment: mean squared distance of unit features of two views of an image; small is aligned.

    In [0, 4]. Source: Wang and Isola 2020, arXiv 2005.10242, Sec. 4.1, with exponent 2.

    Args:
        views: `(N, views, D)`, at least two of each; the mean is over all pairs.

    Raises:
        UserError: as `lidar` does.
    """
    unit = normalize(_checked(views, 3), dim=2)
    q = unit.shape[1]
    squares = unit.square().sum(dim=2)  # 1, or 0 of features that are all zero
    total = 2 * q * squares.sum(dim=1) - 2 * unit.sum(dim=1).square().sum(dim=1)
    return (total / (q * (q - 1))).mean().clamp_min(0).item()


def uniformity(features: Tensor, t: float = 2.0) -> float:
    """Uniformity: log of the mean of exp(-t d^2) over all pairs of images; small is uniform.

    d is the distance of unit features. 0 if all are equal; at least -4 t. Source: Wang and Isola
    2020, arXiv 2005.10242, Sec. 4.1.

    Args:
        features: `(N, D)`.
        t: As published.

    Raises:
        UserError: as `rankme` does.
    """
    check_number("t", t, above=0, owner="uniformity")
    unit = normalize(_checked(features, 2), dim=1)
    n, total = len(unit), torch.zeros((), dtype=unit.dtype)
    squares = unit.square().sum(dim=1)
    for start in range(0, n, 1024):
        rows = slice(start, start + 1024)
        distance = (squares[rows, None] + squares - 2 * unit[rows] @ unit.T).clamp_min(0)
        total += (-t * distance).exp().sum()
    return ((total - n) / (n * (n - 1))).log().item()  # the diagonal adds n times exp(0)


def of_features(features: Tensor) -> dict[str, float]:
    """`rankme`, `alpha_req` (if it can be fitted) and `uniformity` of features (N, D)."""
    found = {"rankme": rankme(features), "alpha_req": alpha_req(features)}
    found["uniformity"] = uniformity(features)
    return {name: value for name, value in found.items() if not math.isnan(value)}


def of_views(views: Tensor) -> dict[str, float]:
    """`lidar` and `alignment` of features of views (N, views, D)."""
    return {"lidar": lidar(views), "alignment": alignment(views)}


def augmented_features(
    encode: Callable[[Tensor], Tensor],
    images: ImageSet,
    views: Views,
    count: int,
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    workers: int | None = None,
) -> Tensor:
    """Features of several augmented views of each image `(N, count, D)`, on the CPU.

    The views are those of `views[0]`, drawn from the pixels that an evaluation takes: the centered
    square, resized. Images that cannot be read are left out.

    Args:
        encode: As for `extract`.
        images: The images.
        views: Their augmentation.
        count: Views of each image.
        generator: Source of the random numbers.
        device: Where to encode.
        dtype: Autocast dtype.
        workers: Data workers that read files.
    """
    parts = []
    with evaluating(encode):
        for pixels, _ in pixel_batches(images, views.size, 128, workers=workers, device=device):
            pixels = pixels.to(device)
            n, _, height, width = pixels.shape
            made = [
                encode_batch(
                    encode, views.apply(pixels, views.draw(n, height, width, generator)), device,
                    dtype,
                ).cpu()
                for _ in range(count)
            ]  # fmt: skip
            parts.append(torch.stack(made, dim=1))
    if not parts:
        raise UserError(f"{images.name}: none of the {len(images)} images is readable.")
    return torch.cat(parts)


def _exp_entropy(values: Tensor, eps: float) -> float:
    total = values.sum()
    if total == 0:
        return 0.0
    share = values / total + eps
    return (-share * share.log()).sum().exp().item()


def _checked(features: Tensor, dimensions: int) -> Tensor:
    """The features in float64, on the CPU."""
    shape = "(N, D)" if dimensions == 2 else "(N, views, D)"
    few = min(features.shape[: dimensions - 1], default=0) < 2
    if features.ndim != dimensions or few or not bool(features.isfinite().all()):
        least = "N" if dimensions == 2 else "N and views"
        raise UserError(
            f"features {tuple(features.shape)} must be {shape}, all finite, {least} at least 2"
        )
    return features.detach().to("cpu", torch.float64)
