"""SimCLR: contrast with the rest of the batch (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import gather_with_gradient
from unmix.errors import check_choice, check_number
from unmix.losses import decoupled_contrast, nt_xent
from unmix.methods.base import full_precision, l2_normalize
from unmix.methods.projected import InBatchNegatives, JointHead, check_sizes

__all__ = ["SimCLR", "multi_sample_mixture"]

_SIGMA = 0.5  # of DCLW's weights, as in lightly


class SimCLR(InBatchNegatives, JointHead):
    """Contrastive learning in the batch: the negatives are the views of all other samples.

    Query: z = g(f(x1)). Target: the other view's z = g(f(x2)), with its gradient. Compared by
    NT-Xent (Eq. 1) in both directions, half each. Memory: none.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of z.
        hidden: Width of the projector's hidden layers; 0 is the backbone's own.
        layers: Layers of the projector.
        temperature: T.
        head_bn: Batch norm after every layer of the projector.
        joint_head: Project both views in one batch, as the whitening paper's code; it matters where
            the projector has batch norm.
        mmix_threshold: Below 1: M-Mix; a query is a mean of those of the batch whose cosine with it
            is above this, weighted by the softmax of these cosines (Zhang et al. 2022, KDD; 0.9 and
            0.95 in its code). 1 is without.
        decoupled: "dcl": the positive is not in NT-Xent's denominator, so that batches need not be
            large (Yeh et al. 2022, ECCV); "dclw": its weighted form, in which easy pairs count
            less. "none": NT-Xent.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 128,
        hidden: int = 0,
        layers: int = 2,
        temperature: float = 0.5,
        head_bn: bool = False,
        joint_head: bool = False,
        mmix_threshold: float = 1.0,
        decoupled: Literal["none", "dcl", "dclw"] = "none",
    ) -> None:
        check_sizes("SimCLR", dim=dim, layers=layers)
        check_number("hidden", hidden, at_least=0, owner="SimCLR")
        check_number("temperature", temperature, above=0, owner="SimCLR")
        d = feature_dim(backbone)
        sizes = (d, *[hidden or d] * (layers - 1), dim)
        g = mlp(sizes, last="affine") if head_bn else mlp(sizes, batch_norm=False)
        super().__init__(backbone, g)
        self.T, self.joint_head = temperature, joint_head
        check_number("mmix_threshold", mmix_threshold, at_least=-1, at_most=1, owner="SimCLR")
        self.mmix_threshold = mmix_threshold
        check_choice("decoupled", decoupled, ("none", "dcl", "dclw"), owner="SimCLR")
        self.decoupled = decoupled
        self.soft_labels = decoupled == "none"

    def of_output(self, z: Tensor) -> Tensor:
        """z as unit vectors (N, dim)."""
        return l2_normalize(z)

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """NT-Xent or its decoupled form, from query to target and back: losses (N,)."""
        with full_precision(query):
            query = self._of_alike(query)
            return (self._contrast(query, target) + self._contrast(target, query)) / 2

    def _of_alike(self, query: Tensor) -> Tensor:
        if self.mmix_threshold == 1:
            return query
        return multi_sample_mixture(query, self.mmix_threshold)

    def _contrast(self, anchors: Tensor, positives: Tensor) -> Tensor:
        if self.decoupled == "none":
            return nt_xent(anchors, positives, self.T)
        sigma = _SIGMA if self.decoupled == "dclw" else None
        return decoupled_contrast(anchors, positives, self.T, sigma)

    def similarities(self, query: Tensor, target: Tensor) -> tuple[Tensor]:
        """Cosines of z with every sample's target: the N-pair form of i-Mix."""
        with full_precision(query):
            return (self._of_alike(query) @ gather_with_gradient(target).T,)

    @property
    def chance_loss(self) -> float | None:
        """ln(2 N - 1); decoupled, ln(2 N - 2)."""
        if self.candidates is None:
            return None
        return math.log(2 * self.candidates - (1 if self.decoupled == "none" else 2))


def multi_sample_mixture(z: Tensor, threshold: float) -> Tensor:
    """M-Mix of unit vectors (N, D): means of those that are alike, not normalized, as released.

    The weights of row i are the softmax of its cosines above the threshold, its own with itself
    among them, and have no gradient.
    """
    cosines = (z @ z.T).detach()
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    alike = (cosines > threshold) | own
    return cosines.masked_fill(~alike, -math.inf).softmax(dim=1) @ z
