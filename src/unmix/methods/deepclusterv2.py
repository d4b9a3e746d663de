"""DeepCluster-v2: predicting the clusters of the epoch before (Caron et al. 2020, SwAV)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.clustering import spherical_kmeans
from unmix.distributed import gather
from unmix.errors import UserError, check_number
from unmix.methods.base import Pair, Progress, full_precision, l2_normalize
from unmix.methods.multicrop import MultiCrop
from unmix.randomness import generator_for

__all__ = ["DeepClusterOutput", "DeepClusterV2"]


class DeepClusterOutput(NamedTuple):
    """Online-branch output (query) of a view.

    Attributes:
        embedding: z, unit vectors (N, dim).
        scores: Cosines with each head's prototypes, (N, K) a head.
    """

    embedding: Tensor
    scores: tuple[Tensor, ...]


class DeepClusterV2(MultiCrop):
    """Clustering: every view predicts the cluster of its image (appendix of SwAV's paper).

    Query: z and its scores with the prototypes. Target: the clusters of the sample, one a head,
    found by k-means at the start of the epoch; their centroids are the prototypes. Memory: a memory
    of the large views' embeddings.

    The released code fills the memory in a pass over the data before the first epoch. Here the
    first epoch is that pass: it has no clusters to predict, its loss is 0 and nothing is trained.
    Images that no batch has contained yet, such as those of a dropped last batch, are not
    clustered; their loss is 0.

    Args:
        backbone: Images to pooled features (N, D); any module, see `unmix.backbones.feature_dim`.
        n_data: Number of training samples; the memory takes 8 n_data dim bytes.
        dim: Length of embeddings and prototypes.
        hidden: Features of the projection head's hidden layer.
        prototypes: K, the clusters of each head; 2 to n_data.
        temperature: T.
        kmeans_iterations: How often the centroids move in a clustering.
        freeze_prototypes_steps: Steps before the prototypes are trained between clusterings.
    """

    per_image = True
    needs_whole_weights = "its prototypes are set to the clusters of its whole memory"
    memory_queries = (0, 1)
    memory: Tensor
    assignments: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        n_data: int,
        *,
        dim: int = 128,
        hidden: int = 2048,
        prototypes: tuple[int, ...] = (3000, 3000, 3000),
        temperature: float = 0.1,
        kmeans_iterations: int = 10,
        freeze_prototypes_steps: int = 300000,
    ) -> None:
        check_number("dim", dim, at_least=1, owner="DeepClusterV2")
        check_number("hidden", hidden, at_least=1, owner="DeepClusterV2")
        check_number("temperature", temperature, above=0, owner="DeepClusterV2")
        check_number("kmeans_iterations", kmeans_iterations, at_least=1, owner="DeepClusterV2")
        check_number(
            "freeze_prototypes_steps", freeze_prototypes_steps, at_least=0, owner="DeepClusterV2"
        )
        if not prototypes:
            raise UserError(
                "no number was given; give one per head, such as 30 30 30.", parameter="prototypes"
            )
        for k in prototypes:
            check_number("prototypes", k, at_least=2, owner="DeepClusterV2")
            if k > n_data:
                raise UserError(
                    f"{k} clusters are more than the {n_data} images of the data; use at most "
                    f"{n_data}.",
                    parameter="prototypes",
                )
        super().__init__(backbone, mlp((feature_dim(backbone), hidden, dim)))
        self.C = nn.ModuleList(nn.Linear(dim, k, bias=False) for k in prototypes)
        self.register_buffer("memory", torch.zeros(2, n_data, dim))
        self.register_buffer("assignments", torch.full((len(prototypes), n_data), -1))
        self.K, self.T, self.kmeans_iterations = prototypes, temperature, kmeans_iterations
        self.freeze_steps, self.frozen, self.filling = freeze_prototypes_steps, False, False
        self.clustered = -1

    def begin_step(self, progress: Progress) -> None:
        """From the second epoch on, the first step that an epoch makes clusters the memory."""
        if (progress.run_steps or progress.total_steps) <= progress.steps_per_epoch:
            raise UserError(
                "1 trains nothing with deepclusterv2, whose first epoch fills the memory that is "
                "clustered; use 2 or more.",
                parameter="epochs",
            )
        self.filling = progress.epoch < 1
        self.frozen = progress.step < self.freeze_steps
        epoch = int(progress.epoch)
        # Not tied to the epoch's first batch, of which no image may be readable.
        if epoch > self.clustered and not self.filling:
            self.clustered = epoch
            first = epoch * progress.steps_per_epoch
            self.cluster(generator_for(progress.seed, "kmeans", first))

    def get_extra_state(self) -> Tensor:
        """The epoch of the last clustering, for a run that is resumed within it."""
        return torch.tensor(self.clustered)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the epoch of the last clustering."""
        self.clustered = int(state)

    @torch.no_grad()
    def cluster(self, generator: torch.Generator) -> None:
        """Cluster the memory for each head, heads in turn that of view 0 and that of view 1."""
        known = self.memory[0].any(dim=1).nonzero().squeeze(1)  # features are unit vectors
        if len(known) < max(self.K):
            raise UserError(
                f"{max(self.K)} clusters are more than the {len(known)} images that an epoch's "
                f"batches had; use at most {len(known)}.",
                parameter="prototypes",
            )
        for head, layer in enumerate(self.C):
            centroids, assigned = spherical_kmeans(
                self.memory[head % 2, known], self.K[head], self.kmeans_iterations, generator
            )
            layer.weight.copy_(centroids)  # type: ignore[operator, union-attr]
            self.assignments[head, known] = assigned

    def pairs_of(self, count: int) -> Sequence[Pair]:
        """Every view with the sample's clusters; the mean over views."""
        return [Pair(v, 0, 1 / count) for v in range(count)]

    def predict(self, output: Tensor, number: int) -> DeepClusterOutput:
        """The embedding and scores, from the head's output (N, dim)."""
        z = l2_normalize(output)
        with full_precision(z):
            return DeepClusterOutput(z, tuple(layer(z) for layer in self.C))

    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Tensor]:
        """The clusters of the samples, int64 (N, heads); -1 before the first clustering."""
        return {0: self.assignments[:, index].T}

    def compare(self, query: DeepClusterOutput, target: Tensor) -> Tensor:
        """Cross-entropy with the clusters (N,), the mean over heads; 0 where there is none."""
        losses = [
            F.cross_entropy(scores / self.T, k, ignore_index=-1, reduction="none")
            for scores, k in zip(query.scores, target.unbind(1), strict=True)
        ]
        return torch.stack(losses).mean(dim=0)

    @torch.no_grad()
    def update_memory(
        self, queries: Mapping[int, DeepClusterOutput], targets: Mapping[int, Any], index: Tensor
    ) -> None:
        """Put the clean embeddings of all processes into the memory; drop what is not trained."""
        for v in (0, 1):
            self.memory[v, gather(index)] = gather(queries[v].embedding)
        # A gradient of 0 would still let weight decay act. The prototypes, which the clustering
        # replaces, keep theirs in the first epoch: float16's gradient scaler has to find one.
        still: nn.Module | None = self.f if self.filling else self.C if self.frozen else None
        for parameter in still.parameters() if still is not None else ():
            parameter.grad = None

    @property
    def kept_images(self) -> int:
        """The rows of the memory."""
        return self.memory.shape[1]

    @property
    def chance_loss(self) -> float:
        """The mean of the heads' ln K."""
        return sum(math.log(k) for k in self.K) / len(self.K)
