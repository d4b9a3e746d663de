"""MoCo: momentum contrast with a queue of keys (He et al. 2020; v2: Chen et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from unmix.backbones import (
    convert_split_batch_norm,
    encode_in_splits,
    feature_dim,
    linear_head,
    mlp_head,
)
from unmix.distributed import gather
from unmix.errors import UserError, check_choice, check_number
from unmix.losses import init_once, nce_contrast, partition_constant, softmax_contrast
from unmix.memory import Queue
from unmix.methods.base import Encoder, InstanceDiscrimination, Pair, Progress, full_precision
from unmix.momentum import ema_update, momentum_copy
from unmix.transfer import to_device

__all__ = ["MoCo"]


class MoCo(InstanceDiscrimination):
    """Momentum contrast: a query's key is its other view's, among the last K keys.

    Query: f_q(x1). Target: k = f_k(x2), with f_k the momentum encoder. Memory: a queue of keys.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        n_data: Number of training samples (for NCE).
        dim: Length of queries and keys.
        head: "linear" (v1) or "mlp" (v2, Linear-ReLU-Linear).
        temperature: T.
        queue_size: K, the number of keys in the queue.
        encoder_momentum: m of the key encoder.
        symmetric: Compare both views' queries with the other view's keys; the losses are summed.
        contrast: "softmax" (InfoNCE) or "nce" (as in the 2020 release).
        bn_splits: Batch norm over this many sub-batches, standing in for as many devices.
        shuffle_bn: Shuffle the keys' batch, so that sub-batches of queries and keys differ.
    """

    sync_batch_norm = False
    takes_negatives = True
    mixes_every_view = True
    every_view_with = "symmetric"
    Z: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        n_data: int,
        *,
        dim: int = 128,
        head: Literal["linear", "mlp"] = "linear",
        temperature: float = 0.1,
        queue_size: int = 4096,
        encoder_momentum: float = 0.99,
        symmetric: bool = False,
        contrast: Literal["softmax", "nce"] = "softmax",
        bn_splits: int = 8,
        shuffle_bn: bool = True,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_choice("head", head, ("linear", "mlp"), owner=owner)
        check_choice("contrast", contrast, ("softmax", "nce"), owner=owner)
        check_number("temperature", temperature, above=0, owner=owner)
        check_number("encoder_momentum", encoder_momentum, at_least=0, at_most=1, owner=owner)
        check_number("bn_splits", bn_splits, at_least=1, owner=owner)
        check_number("dim", dim, at_least=1, owner=owner)
        check_number("queue_size", queue_size, at_least=1, owner=owner)
        self.f_q = self.encoder(backbone, dim, head)
        if bn_splits > 1:
            convert_split_batch_norm(self.f_q, bn_splits)
        self.f_k = momentum_copy(self.f_q)
        self.queue = Queue(queue_size, dim)
        self.register_buffer("Z", torch.tensor(-1.0))
        self.n_data, self.T, self.m = n_data, temperature, encoder_momentum
        self.contrast, self.bn_splits, self.shuffle_bn = contrast, bn_splits, shuffle_bn
        self.pairs = (Pair(0, 1), Pair(1, 0)) if symmetric else (Pair(0, 1),)
        self.mixes_every_view = symmetric

    def encoder(self, backbone: nn.Module, dim: int, head: str) -> Encoder:
        """The query encoder: a backbone and a head."""
        d = feature_dim(backbone)
        return Encoder(backbone, linear_head(d, dim) if head == "linear" else mlp_head(d, d, dim))

    def begin_step(self, progress: Progress) -> None:
        """Update the key encoder."""
        ema_update(self.f_k, self.f_q, self.m)

    def query(self, view: Tensor, number: int = 0) -> Any:
        """q = f_q(x): unit vectors (N, dim)."""
        return encode_in_splits(self.f_q, view, self.bn_splits)

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Any]:
        """k = f_k(x): unit vectors (N, dim), from clean views."""
        return {
            b: self.key(views[b], generator) for b in sorted({pair.target for pair in self.pairs})
        }

    def key(self, view: Tensor, generator: torch.Generator) -> Any:
        """Keys of one view, encoded in shuffled order and put back."""
        if not self.shuffle_bn:
            return encode_in_splits(self.f_k, view, self.bn_splits)
        order = torch.randperm(len(view), generator=generator, device=generator.device)
        order = to_device(order, view.device)
        keys = encode_in_splits(self.f_k, view[order], self.bn_splits)
        back = order.argsort()
        return tree_map(lambda rows: rows[back], keys)

    def compare(self, query: Tensor, target: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Contrast q with its key k against the queue, and negatives of its own: losses (N,)."""
        with full_precision(query):
            positive = (query * target).sum(dim=1, keepdim=True)
            scores = torch.cat([positive, query @ self.queue.keys.T], dim=1)
            if negatives is not None:
                scores = torch.cat([scores, torch.einsum("nd,nrd->nr", query, negatives)], dim=1)
        if self.contrast == "softmax":
            return softmax_contrast(scores, self.T)
        # The released code keeps Z in an integer buffer, so its fraction is cut off.
        init_once(self.Z, partition_constant(scores, self.T, self.n_data).trunc())
        return nce_contrast(scores, self.T, self.Z, self.n_data)

    def similarities(self, query: Tensor, target: Tensor) -> tuple[Tensor]:
        """Cosines of q with every sample's key, then with the queue's."""
        with full_precision(query):
            return (query @ torch.cat([gather(target), self.queue.keys]).T,)

    def update_memory(
        self,
        queries: Mapping[int, Any],
        targets: Mapping[int, Any],
        index: Tensor,
    ) -> None:
        """Put the clean keys of all processes into the queue."""
        for b in sorted(targets):
            self.queue.push(gather(targets[b]))

    def projections(self, images: Tensor) -> Tensor:
        """The query head's output, before normalization."""
        return self.f_q.head(self.f_q.backbone(images))

    @property
    def backbone(self) -> nn.Module:
        """The query encoder's backbone."""
        return self.f_q.backbone

    @property
    def momentum_backbones(self) -> Sequence[nn.Module]:
        """The key encoder's."""
        return (self.f_k.backbone,)

    @property
    def chance_loss(self) -> float | None:
        """ln(K + 1) for each pair under softmax."""
        return (
            len(self.pairs) * math.log(len(self.queue) + 1) if self.contrast == "softmax" else None
        )

    def check_batch(self, batch_size: int) -> None:
        """The queue must hold at least a batch, and a sub-batch needs two samples."""
        if len(self.queue) < batch_size:
            raise UserError(
                f"{len(self.queue)} keys are fewer than `batch_size={batch_size}`; use a queue of "
                f"at least {batch_size}.",
                parameter="queue_size",
            )
        super().check_batch(batch_size)
        if batch_size < 2 * self.bn_splits:
            raise UserError(
                f"{self.bn_splits} sub-batches of a batch of {batch_size} are too small; use at "
                f"most {max(1, batch_size // 2)}.",
                parameter="bn_splits",
            )

    def state(self) -> dict[str, float]:
        """Fill of the queue, in [0, 1]."""
        return {"queue_fill": self.queue.fill}
