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
    has_batch_norm,
    linear_head,
    mlp_head,
)
from unmix.distributed import from_first, gather, rank, world_size
from unmix.errors import UserError, check_choice, check_number, renamed
from unmix.losses import init_once, nce_contrast, partition_constant, softmax_contrast
from unmix.memory import Queue
from unmix.methods.base import Encoder, InstanceDiscrimination, Pair, Progress, full_precision
from unmix.momentum import ema_update, momentum_copy
from unmix.negatives import Synthesis
from unmix.randomness import generator_for
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
        synthetic_negatives: Negatives made of each query's nearest keys beside the queue's: "mochi"
            (Kalantidis et al. 2020), "synco" (Giakoumoglou and Stathaki 2024) or "none"; see
            `unmix.negatives.Synthesis`.
        hard_negatives: N, how many of the nearest keys they are made of; by default 1024.
        synthetic_counts: How many a query has: s' and s of MoCHi, six numbers of SynCo; by default
            128 and 1024, and as published 256 256 256 64 64 64.
        synthetic_from_epoch: Epochs without them at the start; by default 10.
    """

    sync_batch_norm = False
    takes_negatives = True
    mixes_every_view = True
    every_view_with = "symmetric"
    soft_labels_with = "`contrast=softmax`"
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
        synthetic_negatives: Literal["none", "mochi", "synco"] = "none",
        hard_negatives: int | None = None,
        synthetic_counts: tuple[int, ...] = (),
        synthetic_from_epoch: int | None = None,
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
            with renamed({"splits": "bn_splits"}):
                convert_split_batch_norm(self.f_q, bn_splits)
        self.f_k = momentum_copy(self.f_q)
        self.queue = Queue(queue_size, dim)
        self.register_buffer("Z", torch.tensor(-1.0))
        self.n_data, self.T, self.m = n_data, temperature, encoder_momentum
        self.contrast, self.bn_splits, self.shuffle_bn = contrast, bn_splits, shuffle_bn
        self.processes, self.splits = 1, bn_splits
        self.soft_labels = contrast == "softmax"
        self.pairs = (Pair(0, 1), Pair(1, 0)) if symmetric else (Pair(0, 1),)
        self.mixes_every_view = symmetric
        given = {
            "hard_negatives": hard_negatives,
            "synthetic_counts": synthetic_counts or None,
            "synthetic_from_epoch": synthetic_from_epoch,
        }
        self.synthesis = _synthesis(synthetic_negatives, given)
        if self.synthesis is not None and contrast == "nce":
            raise UserError(
                f"{synthetic_negatives} does not apply to `contrast=nce`, whose negatives are "
                "noise; use softmax.",
                parameter="synthetic_negatives",
            )
        if self.synthesis is not None and self.synthesis.hard > queue_size:
            raise UserError(
                f"{self.synthesis.hard} are more than the {queue_size} keys of the queue; use at "
                f"most {queue_size}.",
                parameter="hard_negatives",
            )
        self.synthetic_from = 10 if synthetic_from_epoch is None else synthetic_from_epoch
        check_number("synthetic_from_epoch", self.synthetic_from, at_least=0, owner="MoCo")
        self.draws: torch.Generator | None = None

    def encoder(self, backbone: nn.Module, dim: int, head: str) -> Encoder:
        """The query encoder: a backbone and a head."""
        d = feature_dim(backbone)
        return Encoder(backbone, linear_head(d, dim) if head == "linear" else mlp_head(d, d, dim))

    def share_among(self, processes: int) -> None:
        """Divide the sub-batches among the processes: as few more as give each equally many."""
        self.processes, self.splits = processes, -(-self.bn_splits // processes)
        if self.bn_splits > 1:
            for encoder in (self.f_q, self.f_k):
                convert_split_batch_norm(encoder, self.splits)

    def begin_step(self, progress: Progress) -> None:
        """Update the key encoder."""
        if world_size() > 1 and self.processes != world_size():
            self.share_among(world_size())
        ema_update(self.f_k, self.f_q, self.m)
        if self.synthesis is not None:
            late = progress.epoch >= self.synthetic_from
            place = (progress.step, rank())
            self.draws = generator_for(progress.seed, "negatives", *place) if late else None

    def query(self, view: Tensor, number: int = 0) -> Any:
        """q = f_q(x): unit vectors (N, dim)."""
        return encode_in_splits(self.f_q, view, self.splits)

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
        """Keys of one view, encoded in shuffled order and put back.

        Of several processes the batches are shuffled together, as in MoCo's code: within one of
        them alone a key would be normalized with the images of its query.
        """
        if not self.shuffle_bn:
            return encode_in_splits(self.f_k, view, self.splits)
        several = world_size() > 1 and has_batch_norm(self.f_k)
        count = len(view) * (world_size() if several else 1)
        order = torch.randperm(count, generator=generator, device=generator.device)
        order = to_device(order, view.device)
        if several:
            return self._key_of_all(view, from_first(order))
        keys = encode_in_splits(self.f_k, view[order], self.splits)
        back = order.argsort()
        return tree_map(lambda rows: rows[back], keys)

    def _key_of_all(self, view: Tensor, order: Tensor) -> Any:
        """Keys of a view, of images that all processes have exchanged and exchange back.

        Args:
            view: This process's.
            order: Of the images of all, alike in each.
        """
        own = slice(rank() * len(view), (rank() + 1) * len(view))
        images = gather(view)[order[own]]
        if view.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous(memory_format=torch.channels_last)
        keys = encode_in_splits(self.f_k, images, self.splits)
        back = order.argsort()[own]
        return tree_map(lambda rows: gather(rows)[back], keys)

    def compare(self, query: Tensor, target: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Contrast q with its key k against the queue, and negatives of its own: losses (N,)."""
        with full_precision(query):
            positive = (query * target).sum(dim=1, keepdim=True)
            scores = torch.cat([positive, query @ self.queue.keys.T], dim=1)
            scores = self.with_synthetic(query, scores)
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
            scores = query @ torch.cat([gather(target), self.queue.keys]).T
            return (self.with_synthetic(query, scores),)

    def with_synthetic(self, query: Tensor, scores: Tensor) -> Tensor:
        """Scores (N, C) with those of the query's synthetic negatives, if there are any yet."""
        if self.synthesis is None or self.draws is None:
            return scores
        negatives = self.synthesis(query, self.queue.keys, self.draws)
        return torch.cat([scores, torch.einsum("nd,nrd->nr", query, negatives)], dim=1)

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
        """ln(K + 1) for each pair under softmax; with synthetic negatives it is unknown."""
        if self.contrast != "softmax" or self.synthesis is not None:
            return None
        return len(self.pairs) * math.log(len(self.queue) + 1)

    def check_batch(self, batch_size: int) -> None:
        """The queue must hold at least a batch, and a sub-batch needs two samples."""
        self.check_queue(batch_size)
        super().check_batch(batch_size)
        if batch_size < 2 * self.splits:
            whole, most = batch_size * self.processes, max(1, batch_size // 2) * self.processes
            raise UserError(
                f"{self.bn_splits} sub-batches of a batch of {whole} are too small; use at most "
                f"{most}.",
                parameter="bn_splits",
            )

    def state(self) -> dict[str, float]:
        """Fill of the queue, in [0, 1]."""
        return {"queue_fill": self.queue.fill}


_PUBLISHED = {"mochi": (128, 1024), "synco": (256, 256, 256, 64, 64, 64)}


def _synthesis(name: str, options: Mapping[str, Any]) -> Synthesis | None:
    """What makes the synthetic negatives; None for none.

    Args:
        name: "none", "mochi" or "synco".
        options: What was given of them, by its name; None if it was not.

    Raises:
        UserError: if the numbers are not those of the kind.
    """
    check_choice("synthetic_negatives", name, ("none", *_PUBLISHED), owner="MoCo")
    if name == "none":
        for option, value in options.items():
            if value is not None:
                raise UserError(
                    "applies to synthetic negatives; give `synthetic_negatives` too, mochi or "
                    "synco.",
                    parameter=option,
                )
        return None
    hard = 1024 if options["hard_negatives"] is None else options["hard_negatives"]
    check_number("hard_negatives", hard, at_least=1, owner="MoCo")
    usual = _PUBLISHED[name]
    given = tuple(options["synthetic_counts"] or usual)
    if len(given) != len(usual) or min(given) < 0 or not sum(given):
        raise UserError(
            f"{' '.join(map(str, given))} is not {len(usual)} numbers of {name}, at least 0; the "
            f"published ones are {' '.join(map(str, usual))}.",
            parameter="synthetic_counts",
        )
    if name == "mochi":
        return Synthesis((given[0], 0, given[1], 0, 0, 0), hard)
    n1, n2, n3, n4, n5, n6 = given
    return Synthesis((n1, n2, n3, n4, n5, n6), hard)
