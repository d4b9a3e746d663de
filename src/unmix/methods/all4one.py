"""All4One: neighbor, centroid and features (Estepa et al. 2023, arXiv 2303.09417)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import gather, gather_with_gradient
from unmix.errors import UserError, check_number
from unmix.losses import in_batch_contrast
from unmix.memory import Queue
from unmix.methods.base import Pair, full_precision, l2_normalize
from unmix.methods.projected import MomentumTargets, check_sizes

__all__ = ["All4One", "All4OneOutput", "All4OneTarget", "redundancy", "token_positions"]


_TINY = 1e-12  # a square root of 0 has no gradient


class All4OneOutput(NamedTuple):
    """Online-branch output (query) of a view.

    Attributes:
        p: The first predictor's output, unit vectors (N, dim).
        first: The second predictor's output, a token of the transformer (N, dim).
        z: The projector's output (N, dim).
    """

    p: Tensor
    first: Tensor
    z: Tensor


class All4OneTarget(NamedTuple):
    """What queries are compared with, of a view.

    Attributes:
        neighbor: The nearest neighbor in the queue, unit vectors (N, dim).
        centroid: The transformer's output for the nearest neighbors, unit vectors (N, dim).
        context: The nearest neighbors of the other view, but the last (N, neighbors - 1, dim).
        z: z', unit vectors (N, dim).
    """

    neighbor: Tensor
    centroid: Tensor
    context: Tensor
    z: Tensor


class All4One(MomentumTargets):
    """Neighbor contrast, centroid contrast through a transformer, and redundancy of features.

    Query: p = h(z) and a token h'(z), z = g(f(x)). Target: of z' of the other view, from momentum
    copies of f and g, the nearest neighbor in the queue, and the centroid of the K nearest: the
    first output of a transformer over them. InfoNCE of the neighbor with the batch's p, and of the
    centroid with that of the sequence whose first token is h'(z) and whose others are the nearest
    neighbors of the query's own view (shifted by one), in both directions. Features of the clean
    views are decorrelated in a term of their own. Memory: a queue of the first view's z'.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        dim: Length of z and p; a multiple of `transformer_heads`.
        hidden: Width of the projector's two hidden layers.
        predictor_hidden: Width of the hidden layer of both predictors.
        temperature: T of the neighbor contrast.
        centroid_temperature: T of the centroid contrast.
        centroid_neighbors: K, how many neighbors the transformer sees.
        transformer_heads: Attention heads of the transformer.
        transformer_layers: Its layers.
        dropout: Its dropout, in [0, 1).
        neighbor: sigma, the weight of the neighbor contrast.
        centroid: kappa, the weight of the centroid contrast.
        redundancy: eta, the weight of the features' term; 0 leaves it out.
        queue_size: Number of z' in the queue.
        encoder_momentum: m of the momentum encoder at the start; it rises to 1 by a cosine.
    """

    across_samples = "negatives"
    pairs: Sequence[Pair] = (Pair(0, 1, 0.5), Pair(1, 0, 0.5))
    unit_targets = True
    positions: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 256,
        hidden: int = 2048,
        predictor_hidden: int = 4096,
        temperature: float = 0.2,
        centroid_temperature: float = 0.1,
        centroid_neighbors: int = 5,
        transformer_heads: int = 8,
        transformer_layers: int = 3,
        dropout: float = 0.1,
        neighbor: float = 0.5,
        centroid: float = 0.5,
        redundancy: float = 5.0,
        queue_size: int = 98304,
        encoder_momentum: float = 0.99,
    ) -> None:
        check_sizes("All4One", dim=dim, hidden=hidden, predictor_hidden=predictor_hidden)
        shape = {"transformer_heads": transformer_heads, "transformer_layers": transformer_layers}
        check_sizes("All4One", **shape)
        check_number("centroid_neighbors", centroid_neighbors, at_least=2, owner="All4One")
        check_number("queue_size", queue_size, at_least=centroid_neighbors, owner="All4One")
        check_number("temperature", temperature, above=0, owner="All4One")
        check_number("centroid_temperature", centroid_temperature, above=0, owner="All4One")
        check_number("dropout", dropout, at_least=0, below=1, owner="All4One")
        weights = {"neighbor": neighbor, "centroid": centroid, "redundancy": redundancy}
        for parameter, weight in weights.items():
            check_number(parameter, weight, at_least=0, owner="All4One")
        if dim % transformer_heads:
            raise UserError(
                f"{transformer_heads} heads do not divide `dim={dim}`; use a divisor, such as "
                f"{math.gcd(transformer_heads, dim)}.",
                parameter="transformer_heads",
            )
        projector = mlp((feature_dim(backbone), hidden, hidden, dim), last="affine")
        super().__init__(backbone, projector, encoder_momentum)
        self.h = mlp((dim, predictor_hidden, dim))
        self.h_first = mlp((dim, predictor_hidden, dim))
        layer = nn.TransformerEncoderLayer(
            dim, transformer_heads, 2 * dim, dropout, batch_first=True
        )
        self.transformer = nn.TransformerEncoder(
            layer, transformer_layers, enable_nested_tensor=False
        )
        self.register_buffer(
            "positions", token_positions(centroid_neighbors, dim), persistent=False
        )
        self.Q, self.K = Queue(queue_size, dim), centroid_neighbors
        self.T, self.T_centroid = temperature, centroid_temperature
        self.sigma, self.kappa, self.eta = neighbor, centroid, redundancy

    def query(self, view: Tensor, number: int = 0) -> All4OneOutput:
        """p, the token h'(z), and z = g(f(x))."""
        z = self.projections(view)
        return All4OneOutput(l2_normalize(self.h(z)), self.h_first(z), z)

    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, All4OneTarget]:
        """Of both views; the centroids have a gradient for the transformer."""
        keys = super().targets(views, queries, index, generator)
        near = {b: self.Q.nearest(z, self.K) for b, z in keys.items()}
        return {
            b: All4OneTarget(near[b][:, 0], self.summary(near[b]), near[1 - b][:, :-1], keys[b])
            for b in keys
        }

    def summary(self, tokens: Tensor) -> Tensor:
        """The transformer's first output for tokens (N, K, dim): unit vectors (N, dim)."""
        with full_precision(tokens):
            return l2_normalize(self.transformer(tokens.to(self.positions) + self.positions)[:, 0])

    def compare(self, query: All4OneOutput, target: All4OneTarget) -> Tensor:
        """Neighbor and centroid contrast of a sample among those of the batch: losses (N,)."""
        shifted = self.summary(torch.cat([query.first[:, None], target.context], dim=1))
        with full_precision(query.p):
            of_neighbor = in_batch_contrast(target.neighbor, gather_with_gradient(query.p), self.T)
            of_centroid = in_batch_contrast(
                target.centroid, gather_with_gradient(shifted), self.T_centroid
            )
            return self.sigma * of_neighbor + self.kappa * of_centroid

    def regularized_views(self, count: int) -> Collection[int]:
        """Both clean views: features are decorrelated over images, and mixtures are none."""
        return (0, 1) if self.eta else ()

    def regularizer(
        self, queries: Sequence[All4OneOutput], targets: Mapping[int, All4OneTarget]
    ) -> Tensor:
        """eta times the redundancy of each view's z and the other's z', a scalar."""
        with full_precision(queries[0].z):
            pairs = [(targets[1 - a].z, queries[a].z) for a in (1, 0)]
            return self.eta * redundancy(pairs)

    def update_memory(
        self, queries: Mapping[int, Any], targets: Mapping[int, All4OneTarget], index: Tensor
    ) -> None:
        """Put the first view's z' of all processes into the queue."""
        self.Q.push(gather(targets[0].z))

    def state(self) -> dict[str, float]:
        """Fill of the queue, in [0, 1]."""
        return {"queue_fill": self.Q.fill}


def redundancy(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """How far the features' correlations over all processes' batches are from the identity.

    (d + o) / 2, with d and o the root mean squares of 1 - C_ii and of C_ij, over the pairs together
    (released code).

    Args:
        pairs: (N, dim) each, the first without a gradient.
    """
    on, off = [], []
    for key, z in pairs:
        columns = [nn.functional.normalize(x, dim=0) for x in (gather(key), gathered(z))]
        C = columns[0].T @ columns[1]
        diagonal = C.diagonal()
        on.append((1 - diagonal).square().mean())
        off.append((C - diagonal.diag()).square().sum() / max(1, C.numel() - len(C)))
    d, o = (torch.stack(part).mean() + _TINY for part in (on, off))
    return (d.sqrt() + o.sqrt()) / 2


def gathered(z: Tensor) -> Tensor:
    """The rows of all processes, float32, with their gradient."""
    return gather_with_gradient(z if z.dtype == torch.float64 else z.float())


def token_positions(tokens: int, dim: int) -> Tensor:
    """What tells the tokens of a sequence apart, (tokens, dim).

    As released, sines and cosines run along the features, and their frequency falls with the token:
    feature i of token k has sin(i r) for even k and cos(i r) for odd, r = 10000^(-2 (k // 2) / c),
    where c is the number of tokens, rounded up to an even one.
    """
    k = torch.arange(tokens)
    rates = 10000 ** (-2 * (k // 2) / (2 * math.ceil(tokens / 2)))
    angles = rates[:, None] * torch.arange(dim)
    return torch.where(k[:, None] % 2 == 0, angles.sin(), angles.cos())
