"""SimDINO and SimDINOv2: a coding rate instead of a softmax (Wu et al. 2025, arXiv 2502.10385)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unmix.backbones import TokenEncoder, feature_dim
from unmix.distributed import gather_with_gradient, world_size
from unmix.errors import check_number
from unmix.methods.base import Method, Pair, Progress, full_precision, l2_normalize
from unmix.methods.dino import head_mlp
from unmix.methods.masks import PatchMasks, places_of
from unmix.methods.multicrop import SelfDistillation
from unmix.methods.projected import check_sizes
from unmix.transfer import to_device

__all__ = ["SimDINO", "coding_rate", "expansion"]


class WithPatches(NamedTuple):
    """Features of a view and of its patches, of the student or the teacher.

    Attributes:
        z: Of the image, (N, dim).
        patches: The student's of its masked patches (M, dim), one after the other; the teacher's of
            every patch (N, rows, columns, dim); None for a small crop.
        masked: Which the student's are, bool (N, rows, columns).
    """

    z: Tensor
    patches: Tensor | None = None
    masked: Tensor | None = None


def _z(features: Any) -> Tensor:
    """Unit vectors (N, dim) of images."""
    return l2_normalize(features if isinstance(features, Tensor) else features.z)


class SimDINO(SelfDistillation):
    """A student's features are near the teacher's; their coding rate keeps images apart.

    Query: the student's features z of any crop. Target: the teacher's z' of a large view. Both are
    unit vectors, compared by half the squared distance. No outputs K, temperatures or center: the
    rate of coding the large views' clean features up to an error epsilon is in the loss,

        L = mean 1/2 |z - z'|^2  -  gamma (dim + N) / (dim N)  mean_v R_epsilon(z_v).

    With `patch_weight` (SimDINOv2) part of the student's patches are masked, and their features are
    compared with the teacher's of the same patches of the same view, by the same head.

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
        patch_weight: Weight of the loss of masked patches; 0 leaves it out, and masks too.
        masks: Rectangles of patches, or patches anywhere.
        mask_share: Share of the large views that are masked.
        mask_ratio_min: Smallest share of their patches.
        mask_ratio_max: Largest share of their patches.
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
        patch_weight: float = 0.0,
        masks: Literal["block", "random"] = "block",
        mask_share: float = 0.5,
        mask_ratio_min: float = 0.1,
        mask_ratio_max: float = 0.5,
    ) -> None:
        check_sizes("SimDINO", dim=dim, hidden=hidden)
        check_number("epsilon", epsilon, above=0, owner="SimDINO")
        check_number("coding_rate", coding_rate, at_least=0, owner="SimDINO")
        check_number("patch_weight", patch_weight, at_least=0, owner="SimDINO")
        drawn = PatchMasks(masks, mask_share, (mask_ratio_min, mask_ratio_max), "SimDINO")
        encoder = TokenEncoder(backbone, "SimDINOv2") if patch_weight else backbone
        head = head_mlp((feature_dim(encoder), hidden, hidden, dim), head_bn)
        super().__init__(encoder, head, encoder_momentum)
        self.epsilon, self.gamma, self.smooth = epsilon, coding_rate, smooth
        self.patch_weight, self.masks = patch_weight, drawn
        if isinstance(encoder, TokenEncoder):
            self.position_pairs = [Pair(v, v, patch_weight / 2) for v in (0, 1)]
            self.needs_whole_weights = "its masked patches are another embedding"
            self.mask_token = nn.Parameter(torch.zeros(1, encoder.feature_dim))
            self.masks.check(encoder.built_grid)

    def why_not_joint(self) -> str | None:
        """Masks are drawn for a batch."""
        if self.patch_weight:
            return "its masks are drawn for each batch, and there is no batch norm to share"
        return super().why_not_joint()

    def begin_step(self, progress: Progress) -> None:
        """Update the teacher; masks are drawn anew."""
        super().begin_step(progress)
        self.masks.begin_step(progress)

    def begin_part(self, part: int) -> None:
        """Likewise for each part of a step."""
        self.masks.begin_part(part)

    def query(self, view: Tensor, number: int = 0) -> Any:
        """The student's features: z, or with patches those of the masked ones too."""
        encoder: Any = self.f.backbone
        if not self.patch_weight:
            return super().query(view, number)
        if number > 1:
            return WithPatches(self.f.head(encoder(view).pooled))
        on_cpu = self.masks.draw(len(view), number, encoder.grid(view))
        masked, where = (to_device(x, view.device) for x in (on_cpu, places_of(on_cpu)))
        tokens = encoder(view, masked=masked.flatten(1), mask_token=self.mask_token)
        both = torch.cat([tokens.pooled, tokens.patches.flatten(0, 1)[where]])
        z, patches = self.f.head(both).split([len(view), len(where)])
        return WithPatches(z, patches, masked)

    def queries(
        self,
        views: Sequence[Tensor],
        trained: Collection[int] | None = None,
        constant: Collection[int] = (),
    ) -> dict[int, Any]:
        """The queries of some views; those with masks are encoded one by one."""
        if self.patch_weight:
            return Method.queries(self, views, trained, constant)
        return super().queries(views, trained, constant)

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Any]:
        """The teacher's features of the large views, and of all their patches."""
        if not self.patch_weight:
            return super().targets(views, queries, index, generator)
        encoder: Any = self.f_t.backbone
        found: dict[int, Any] = {}
        for v, view in enumerate(views[:2]):
            tokens, grid = encoder(view), encoder.grid(view)
            both = self.f_t.head(torch.cat([tokens.pooled, tokens.patches.flatten(0, 1)]))
            z, patches = both[: len(view)], both[len(view) :]
            found[v] = WithPatches(z, patches.unflatten(0, (len(view), *grid)))
        return found

    def compare(self, query: Any, target: Any) -> Tensor:
        """1/2 |z - z'|^2 = 1 - cos: losses (N,) in [0, 2]."""
        q, t = _z(query), _z(target)
        with full_precision(q):
            return (q - t).square().sum(dim=1) / 2

    def compare_positions(self, query: WithPatches, target: WithPatches) -> Tensor:
        """1/2 |z - z'|^2 of each masked patch over their number: (N, rows, columns)."""
        assert query.patches is not None
        assert query.masked is not None
        assert target.patches is not None
        masked = query.masked
        # As many indices as patches, which is known without waiting for the device.
        where = masked.flatten().to(torch.uint8).argsort(descending=True, stable=True)
        where = where[: len(query.patches)]
        q, t = l2_normalize(query.patches), l2_normalize(target.patches.flatten(0, 2)[where])
        with full_precision(q):
            losses = (q - t).square().sum(dim=1) / 2
            spread = losses.new_zeros(masked.numel()).index_put((where,), losses)
            return spread.reshape(masked.shape) / masked.sum(dim=(1, 2), keepdim=True).clamp(min=1)

    @property
    def cell(self) -> int | None:
        """Side of a patch, if patches are compared."""
        return self.f.backbone.side if self.patch_weight else None  # type: ignore[return-value]

    @property
    def backbone(self) -> nn.Module:
        """The student's encoder."""
        return self.f.backbone.vit if self.patch_weight else self.f.backbone  # type: ignore[return-value]

    @property
    def momentum_backbones(self) -> Sequence[nn.Module]:
        """The teacher's."""
        return (self.f_t.backbone.vit if self.patch_weight else self.f_t.backbone,)  # type: ignore[return-value]

    def embeddings(self) -> Sequence[nn.Parameter]:
        """The mask token, if patches are masked."""
        return (self.mask_token,) if self.patch_weight else ()

    def projections(self, images: Tensor) -> Tensor:
        """z, before normalization."""
        return self.f.head(self.backbone(images))

    def regularized_views(self, count: int) -> Collection[int]:
        """The clean large views: a mixture's features are between others, which codes them less."""
        return (0, 1) if self.gamma else ()

    def regularizer(self, queries: Sequence[Any], targets: Mapping[int, Any]) -> Tensor:
        """- gamma times the mean over the large views of the normalized rate, a scalar."""
        clean = [_z(query) for query in queries]
        with full_precision(clean[0]):
            rates = []
            for v, z in enumerate(clean):
                mean = (z + _z(targets[v])) / 2 if self.smooth else z
                rates.append(expansion(mean, self.epsilon))
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
