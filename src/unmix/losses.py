"""Contrastive losses per sample as pure functions, KoLeo, and SwAV's balanced assignment."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unmix.distributed import all_reduce_sum, gather_with_gradient, rank, world_size
from unmix.errors import UserError

__all__ = [
    "decoupled_contrast",
    "in_batch_contrast",
    "init_once",
    "koleo",
    "nce_contrast",
    "nt_xent",
    "partition_constant",
    "sinkhorn",
    "softmax_contrast",
]

_EPS = 1e-7


def softmax_contrast(scores: Tensor, temperature: float) -> Tensor:
    """InfoNCE: cross-entropy of the first candidate among all (van den Oord et al. 2018, Eq. 4).

    Args:
        scores: Cosine similarities, (N, 1 + K); column 0 is the positive.
        temperature: T, above 0.

    Returns:
        Losses (N,).
    """
    logits = scores.float() / temperature
    return logits.logsumexp(dim=1) - logits[:, 0]


def nce_contrast(scores: Tensor, temperature: float, constant: Tensor, n_data: int) -> Tensor:
    """Noise-contrastive estimation against uniform noise (Wu et al. 2018, Eqs. 4 to 7).

    Args:
        scores: Cosine similarities, (N, 1 + K); column 0 is the positive.
        temperature: T, above 0.
        constant: Z, by which exp(scores / T) is divided; see `partition_constant`.
        n_data: Number of samples; the noise distribution is 1 / n_data.

    Returns:
        Losses (N,), summed over the positive and its K negatives.
    """
    # In logarithms: exp(scores / T) would leave float32's range at small temperatures.
    log_p = scores.float() / temperature - constant.log()
    noise = (scores.shape[1] - 1) / n_data
    log_all = torch.logaddexp(log_p, torch.full_like(log_p[:, :1], math.log(noise + _EPS)))
    positive = log_p[:, 0] - log_all[:, 0]
    negatives = math.log(noise) - log_all[:, 1:]
    return -(positive + negatives.sum(dim=1))


def partition_constant(scores: Tensor, temperature: float, n: int) -> Tensor:
    """The Monte Carlo estimate of NCE's constant Z from one batch: n * mean(exp(scores / T)).

    The mean is that of all processes, so that all have one Z.

    Args:
        scores: Cosine similarities, (N, 1 + K).
        temperature: T, above 0.
        n: Number of samples (memory bank) or of keys (queue).
    """
    mean = torch.exp(scores.detach().float() / temperature).mean()
    return all_reduce_sum(mean) / world_size() * n


@torch.no_grad()
def init_once(constant: Tensor, estimate: Tensor) -> None:
    """Initialize NCE's constant Z once, from the first estimate.

    The check runs on the device, without a host synchronization.

    Args:
        constant: Z, a scalar; negative while it has no value. Changed in place.
        estimate: Of this batch, a scalar.
    """
    constant.copy_(torch.where(constant < 0, estimate, constant))


def in_batch_contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE with the keys of the other samples as negatives (van den Oord et al. 2018, Eq. 4).

    Args:
        queries: Unit vectors (N, D) of this process's samples.
        keys: Unit vectors (world N, D) of the samples of all processes, in their order.
        temperature: T, above 0.

    Returns:
        Losses (N,).
    """
    return F.cross_entropy(queries @ keys.T / temperature, own_rows(queries), reduction="none")


def nt_xent(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """NT-Xent in one direction: anchors find their positives (Chen et al. 2020, SimCLR, Eq. 1).

    The negatives are the anchors and positives of all other samples, of all processes.

    Args:
        anchors: Unit vectors (N, D) of this process's samples.
        positives: Of the same samples' other views, unit vectors (N, D).
        temperature: T, above 0.

    Returns:
        Losses (N,). The published loss is the mean of both directions' means.
    """
    own = own_rows(anchors)
    positive = anchors @ gather_with_gradient(positives).T / temperature
    among = anchors @ gather_with_gradient(anchors).T / temperature
    among = among.scatter(1, own[:, None], -math.inf)
    return F.cross_entropy(torch.cat([positive, among], dim=1), own, reduction="none")


def decoupled_contrast(
    anchors: Tensor, positives: Tensor, temperature: float, sigma: float | None = None
) -> Tensor:
    """DCL in one direction: NT-Xent without the positive in the denominator (Yeh et al. 2022).

    With sigma it is DCLW: the positive's term is weighted by 2 - exp(s / sigma) / mean(exp(s /
    sigma)), where s are the cosines of all processes' positive pairs, without a gradient. Easy
    pairs count less.

    Args:
        anchors: Unit vectors (N, D) of this process's samples.
        positives: Of the same samples' other views, unit vectors (N, D).
        temperature: T, above 0.
        sigma: Of DCLW's weights, above 0; None for DCL.

    Returns:
        Losses (N,). They may be below 0.
    """
    own = own_rows(anchors)[:, None]
    across = anchors @ gather_with_gradient(positives).T
    among = anchors @ gather_with_gradient(anchors).T
    pull = across.gather(1, own).squeeze(1)
    others = torch.cat([each.scatter(1, own, -math.inf) for each in (across, among)], dim=1)
    weight: Tensor | float = 1.0
    if sigma is not None:
        # Less the largest cosine, which cancels: small sigmas do not overflow.
        closeness = ((pull.detach() - 1) / sigma).exp()
        weight = 2 - closeness / (all_reduce_sum(closeness.mean()) / world_size())
    return (others / temperature).logsumexp(dim=1) - weight * pull / temperature


def own_rows(rows: Tensor) -> Tensor:
    """Indices of this process's rows among the gathered ones of all processes: int64 (N,)."""
    return torch.arange(len(rows), device=rows.device) + rank() * len(rows)


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign samples to prototypes, with equal mass for every prototype (Caron et al. 2020, Eq. 4).

    Rows and columns of exp(scores / epsilon) are scaled in turn, in logarithms: the exponential
    itself leaves float32's range where epsilon is small.

    Args:
        scores: (N, K).
        epsilon: Smoothness, above 0.
        iterations: Rounds, at least 1.

    Returns:
        (N, K), float32; each row sums to 1, and nearly so N / K each column.
    """
    log_q = scores.float() / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


def koleo(x: Tensor) -> Tensor:
    """KoLeo: minus the mean log distance of unit features to their nearest neighbors, a scalar.

    Source: Sablayrolles et al. 2019; `KoLeoLoss` of DINOv2's released code, within a process.

    Args:
        x: (N, D), N at least 2.

    Raises:
        UserError: for one image.
    """
    if len(x) < 2:
        raise UserError(
            "1 image has no neighbor, which KoLeo needs; use at least 2.", parameter="batch_size"
        )
    with torch.autocast(x.device.type, enabled=False):
        z = F.normalize(x.float(), dim=1, eps=1e-8)
        with torch.no_grad():
            nearest = (z @ z.T).fill_diagonal_(-2).argmax(dim=1)
        return -(F.pairwise_distance(z, z[nearest], eps=1e-8) + 1e-8).log().mean()
