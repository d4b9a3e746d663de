"""DenseCL: contrast at every position of the feature map (Wang et al. 2021, arXiv 2011.09157)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unmix.backbones import check_feature_map, feature_dim, feature_map, mlp_head
from unmix.distributed import gather
from unmix.errors import check_number
from unmix.losses import softmax_contrast
from unmix.memory import Queue
from unmix.methods.base import Encoder, Pair, full_precision, l2_normalize
from unmix.methods.moco import MoCo

__all__ = ["DenseCL", "DenseEncoder", "DenseOutput"]


class DenseOutput(NamedTuple):
    """What an encoder says of images, as unit vectors along dimension 1.

    Attributes:
        pooled: The global head's output (N, dim).
        dense: The dense head's output at every position (N, dim, rows, columns).
        mean: The mean of the dense head's output over positions (N, dim).
        features: The backbone's features (N, D, rows, columns), without a gradient.
    """

    pooled: Tensor
    dense: Tensor
    mean: Tensor
    features: Tensor


class DenseEncoder(Encoder):
    """A backbone with a global and a dense head, which is two 1x1 convolutions.

    Args:
        backbone: Images to pooled features; it has a feature map (`unmix.backbones.feature_map`).
        dim: Length of both heads' output.
    """

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        d = feature_dim(backbone)
        super().__init__(backbone, mlp_head(d, d, dim))
        self.dense_head = nn.Sequential(
            nn.Conv2d(d, d, 1), nn.ReLU(inplace=True), nn.Conv2d(d, dim, 1)
        )

    def forward(self, images: Tensor) -> DenseOutput:  # type: ignore[override]
        """Encode images (N, C, H, W)."""
        features = feature_map(self.backbone, images)
        dense = self.dense_head(features)
        return DenseOutput(
            l2_normalize(self.head(features.mean(dim=(2, 3)))),
            l2_normalize(dense),
            l2_normalize(dense.mean(dim=(2, 3))),
            l2_normalize(features.detach()),
        )


class DenseCL(MoCo):
    """MoCo of the pooled features, and of the features at every position of the map.

    Query: the global head's q, and the dense head's q_u at each position u, of x1. Target: k and
    k_v of the other view, from the momentum encoder. A position is matched with the one whose
    backbone features are the most similar (Eq. 4),

        L = (1 - lambda) l(q, k)  +  lambda mean_u l(q_u, k_v(u)),

    each against a queue of its own (Eqs. 1 to 3). Memory: a queue of k, and one of the dense
    keys' means over positions.

    Args:
        backbone: Images to pooled features (N, D), with a feature map: a ResNet, or of timm.
        dim: Length of queries and keys.
        temperature: T.
        queue_size: K, the number of keys in each queue.
        encoder_momentum: m of the key encoder.
        dense: lambda, the weight of the dense loss, between 0 and 1.
        bn_splits: Batch norm over this many sub-batches, standing in for as many devices.
        shuffle_bn: Shuffle the keys' batch, so that sub-batches of queries and keys differ.
    """

    position_pairs: Sequence[Pair] = (Pair(0, 1, 0.5),)
    mixes_every_view = False
    needs_whole_weights = "it takes a feature map from within its backbone"
    every_view_with = ""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 128,
        temperature: float = 0.2,
        queue_size: int = 65536,
        encoder_momentum: float = 0.999,
        dense: float = 0.5,
        bn_splits: int = 8,
        shuffle_bn: bool = True,
    ) -> None:
        check_number("dense", dense, above=0, below=1, owner="DenseCL")
        check_feature_map(backbone, "DenseCL")
        super().__init__(
            backbone, 0, dim=dim, head="mlp", temperature=temperature, queue_size=queue_size,
            encoder_momentum=encoder_momentum, bn_splits=bn_splits, shuffle_bn=shuffle_bn,
        )  # fmt: skip
        self.dense_queue = Queue(queue_size, dim)
        self.pairs, self.position_pairs = (Pair(0, 1, 1 - dense),), (Pair(0, 1, dense),)

    def encoder(self, backbone: nn.Module, dim: int, head: str) -> DenseEncoder:
        """The query encoder: a backbone and two heads."""
        return DenseEncoder(backbone, dim)

    def compare(self, query: DenseOutput, target: DenseOutput) -> Tensor:  # type: ignore[override]
        """Contrast q with its key k against the queue: losses (N,)."""
        return super().compare(query.pooled, target.pooled)

    def compare_positions(self, query: DenseOutput, target: DenseOutput) -> Tensor:
        """Contrast q_u with k_v(u) against the dense queue, over the number of positions."""
        rows, columns = query.dense.shape[2:]
        with full_precision(query.dense):
            q, k = (x.dense.flatten(2).transpose(1, 2) for x in (query, target))
            v = matches(query.features, target.features)
            positive = (q * k.gather(1, v[:, :, None].expand_as(q))).sum(dim=2, keepdim=True)
            scores = torch.cat([positive, q @ self.dense_queue.keys.T], dim=2)
            losses = softmax_contrast(scores.flatten(0, 1), self.T)
            return losses.unflatten(0, (-1, rows, columns)) / (rows * columns)

    def similarities(self, query: DenseOutput, target: DenseOutput) -> tuple[Tensor]:  # type: ignore[override]
        """Cosines of q with every sample's key, then with the queue's."""
        return super().similarities(query.pooled, target.pooled)

    def update_memory(
        self, queries: Mapping[int, Any], targets: Mapping[int, DenseOutput], index: Tensor
    ) -> None:
        """Put the clean keys of all processes into the queues."""
        super().update_memory(queries, {b: t.pooled for b, t in targets.items()}, index)
        for b in sorted(targets):
            self.dense_queue.push(gather(targets[b].mean))


def matches(features: Tensor, others: Tensor) -> Tensor:
    """The position of others whose features are the most similar, for each position of a map.

    Args:
        features: Unit vectors (N, D, rows, columns).
        others: Likewise; of the same images, or of those that they are compared with.

    Returns:
        Numbers of positions, row by row, int64 (N, rows * columns).
    """
    return (features.flatten(2).transpose(1, 2) @ others.flatten(2)).argmax(dim=2)
