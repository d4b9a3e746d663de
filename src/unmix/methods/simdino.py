"""SimDINO: DINO with a coding rate instead of a softmax (Wu et al. 2025, arXiv 2502.10385)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim
from unmix.distributed import gather_with_gradient, world_size
from unmix.errors import check_number
from unmix.methods.base import full_precision, l2_normalize
from unmix.methods.dino import head_mlp
from unmix.methods.multicrop import SelfDistillation
from unmix.methods.projected import check_sizes

__all__ = ["SimDINO", "coding_rate", "expansion"]


class SimDINO(SelfDistillation):
    """A student's features are near the teacher's; their coding rate keeps images apart.

    Query: the student's features z of any crop. Target: the teacher's z' of a large view. Both are
    unit vectors, compared by half the squared distance. No outputs K, temperatures or center: the
    rate of coding the large views' clean features up to an error epsilon is in the loss,

        L = mean 1/2 |z - z'|^2  -  gamma (dim + N) / (dim N)  mean_v R_epsilon(z_v).

    Args:
        backbone: Images to pooled features (N, D), a ResNet, a ViT or any module.
        dim: Length of z.
        hidden: Features of the head's two hidden layers.
        epsilon: The error that the coding rate allows.
        coding_rate: gamma, the weight of the coding rate; 0 leaves it out.
        smooth: Take the rate of the mean of student's and teacher's features, as released, instead
            of the student's.
        encoder_momentum: lambda of the teacher at the start; rises to 1 by a cosine.
        head_bn: Batch norm in the head's hidden layers.
    """

    across_samples = "samples that the coding rate is of"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 256,
        hidden: int = 2048,
        epsilon: float = 0.05,
        coding_rate: float = 1.0,
        smooth: bool = True,
        encoder_momentum: float = 0.996,
        head_bn: bool = False,
    ) -> None:
        check_sizes("SimDINO", dim=dim, hidden=hidden)
        check_number("epsilon", epsilon, above=0, owner="SimDINO")
        check_number("coding_rate", coding_rate, at_least=0, owner="SimDINO")
        head = head_mlp((feature_dim(backbone), hidden, hidden, dim), head_bn)
        super().__init__(backbone, head, encoder_momentum)
        self.epsilon, self.gamma, self.smooth = epsilon, coding_rate, smooth

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """1/2 |z - z'|^2 = 1 - cos: losses (N,) in [0, 2]."""
        with full_precision(query):
            return (l2_normalize(query) - l2_normalize(target)).square().sum(dim=1) / 2

    def regularized_views(self, count: int) -> Collection[int]:
        """The clean large views: a mixture's features are between others, which codes them less."""
        return (0, 1) if self.gamma else ()

    def regularizer(self, queries: Sequence[Tensor], targets: Mapping[int, Any]) -> Tensor:
        """- gamma times the mean over the large views of the normalized rate, a scalar."""
        with full_precision(queries[0]):
            rates = []
            for v, query in enumerate(queries):
                z = l2_normalize(query)
                z = (z + l2_normalize(targets[v])) / 2 if self.smooth else z
                rates.append(expansion(z, self.epsilon))
            return -self.gamma * torch.stack(rates).mean()


def coding_rate(z: Tensor, epsilon: float) -> Tensor:
    """R_epsilon(Z) = 1/2 log det(I + d / (N epsilon) Z'Z), over the samples of all processes.

    In nats, with epsilon for the square of the error, as released (Sec. 3; `MCRLoss` there).

    Args:
        z: Features (N, d), float32.
        epsilon: Above 0.

    Returns:
        A scalar, at least 0; with a gradient.
    """
    n, dim = z.shape
    sums = gather_with_gradient((z.T @ z).unsqueeze(0)).sum(dim=0)
    scaled = dim / (n * world_size() * epsilon) * sums
    eye = torch.eye(dim, device=z.device, dtype=z.dtype)
    # Of a positive definite matrix; log det = 2 sum of the logs of its Cholesky factor's diagonal.
    return torch.linalg.cholesky_ex(eye + scaled)[0].diagonal().log().sum()


def expansion(z: Tensor, epsilon: float) -> Tensor:
    """The coding rate times (d + N) / (d N), so that its size depends little on either.

    Args:
        z: Features (N, d), float32; N counts the samples of all processes.
        epsilon: Above 0.
    """
    n, dim = len(z) * world_size(), z.shape[1]
    return (dim + n) / (dim * n) * coding_rate(z, epsilon)
