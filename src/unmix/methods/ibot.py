"""iBOT and DINOv2: self-distillation of images and of masked patches (Zhou 2021; Oquab 2023)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix.backbones import TokenEncoder
from unmix.distributed import all_reduce_sum, gather, world_size
from unmix.errors import UserError, check_choice, check_number
from unmix.losses import koleo
from unmix.methods.base import Method, Pair, Progress, full_precision, l2_normalize
from unmix.methods.dino import DINO, DINOHead
from unmix.methods.masks import PatchMasks, places_of
from unmix.momentum import momentum_copy
from unmix.transfer import to_device

__all__ = ["IBOT", "koleo", "sinkhorn_center"]


class Query(NamedTuple):
    """The student's output for one view.

    Attributes:
        pooled: Class tokens (N, D).
        logits: Their logits (N, K).
        patches: Logits of the masked patches (M, K), one after the other; None for a small crop.
        masked: Which these are, bool (N, rows, columns); None for a small crop.
    """

    pooled: Tensor
    logits: Tensor
    patches: Tensor | None
    masked: Tensor | None


class Target(NamedTuple):
    """The teacher's output for one view, each by sample.

    Attributes:
        logits: Of class tokens (N, K).
        center: What they are centered by, (N, K): the same row for all.
        patches: Of every patch the unit vectors before the head's last layer, (N, rows, columns,
            bottleneck).
        patch_center: What patches' logits are centered by, (N, K): the same row for all.
    """

    logits: Tensor
    center: Tensor
    patches: Tensor
    patch_center: Tensor


class Heads(nn.Module):
    """DINO's heads of class and patch tokens, and the token in the place of masked patches.

    Args:
        image: Features to logits.
        patch: Likewise for patches; None: the same head.
        dim: Length of a token.
    """

    def __init__(self, image: nn.Module, patch: nn.Module | None, dim: int) -> None:
        super().__init__()
        self.image, self.own = image, patch
        self.mask_token = nn.Parameter(torch.zeros(1, dim))

    @property
    def patch(self) -> Any:
        """The head of patches."""
        return self.image if self.own is None else self.own

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K) of class tokens."""
        return self.image(features)


class IBOT(DINO):
    """DINO's loss of images beside that of patches: a student predicts the teacher's masked ones.

    Query: the student's logits, of the class token and of masked patches. Target: the teacher's of
    another large view for class tokens, and of the same view, not masked, for patches. Both are
    centered and sharpened. DINOv2 adds KoLeo, which spreads the class tokens of large views.

    Args:
        backbone: One of timm's vision transformers.
        dim: K, outputs of each head.
        hidden: Features of a head's two hidden layers.
        bottleneck: Features before a head's last layer.
        temperature: tau_s, the student's.
        teacher_temperature: tau_t, the teacher's.
        warmup_teacher_temperature: tau_t at the start, from which it goes linearly.
        warmup_teacher_epochs: Epochs of the linear warmup; tau is constant within an epoch.
        center_momentum: m of the centers.
        encoder_momentum: lambda of the teacher at the start; rises to 1 by a cosine.
        freeze_last_epochs: Epochs before the heads' last layers are trained.
        normalize_last: Keep the rows of the last layers unit vectors, without a gain.
        head_bn: Batch norm in the heads' hidden layers.
        separate_heads: A head of its own for patches.
        centering: What the teacher's logits are centered by: a moving average, or the batch's own
            prototypes by three iterations of Sinkhorn-Knopp.
        patch_weight: Weight of the loss of patches.
        koleo: Weight of KoLeo; 0 leaves it out.
        masks: Rectangles of patches, or patches anywhere.
        mask_share: Share of the large views that are masked.
        mask_ratio_min: Smallest share of their patches.
        mask_ratio_max: Largest share of their patches.
    """

    position_pairs: Sequence[Pair] = (Pair(0, 0), Pair(1, 1))
    needs_whole_weights = "its heads are computed for masked patches alone"
    c_patch: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 8192,
        hidden: int = 2048,
        bottleneck: int = 256,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 30,
        center_momentum: float = 0.9,
        encoder_momentum: float = 0.996,
        freeze_last_epochs: int = 1,
        normalize_last: bool = True,
        head_bn: bool = False,
        separate_heads: bool = False,
        centering: Literal["mean", "sinkhorn"] = "mean",
        patch_weight: float = 1.0,
        koleo: float = 0.0,
        masks: Literal["block", "random"] = "block",
        mask_share: float = 0.5,
        mask_ratio_min: float = 0.1,
        mask_ratio_max: float = 0.5,
    ) -> None:
        encoder = TokenEncoder(backbone, "iBOT")
        check_choice("centering", centering, ("mean", "sinkhorn"))
        check_number("patch_weight", patch_weight, above=0, owner="iBOT")
        check_number("koleo", koleo, at_least=0, owner="iBOT")
        drawn = PatchMasks(masks, mask_share, (mask_ratio_min, mask_ratio_max), "iBOT")
        super().__init__(
            encoder, dim=dim, hidden=hidden, bottleneck=bottleneck, temperature=temperature,
            teacher_temperature=teacher_temperature, center_momentum=center_momentum,
            warmup_teacher_temperature=warmup_teacher_temperature,
            warmup_teacher_epochs=warmup_teacher_epochs, encoder_momentum=encoder_momentum,
            freeze_last_epochs=freeze_last_epochs, normalize_last=normalize_last, head_bn=head_bn,
        )  # fmt: skip
        sizes = (encoder.feature_dim, hidden, hidden, bottleneck)
        own = DINOHead(sizes, dim, head_bn, normalize_last) if separate_heads else None
        self.f.head = Heads(self.f.head, own, encoder.feature_dim)
        self.f_t = momentum_copy(self.f)
        self.register_buffer("c_patch", torch.zeros(dim))
        self.centering, self.patch_weight, self.koleo_weight = centering, patch_weight, koleo
        self.masks, self.mask_share = drawn, mask_share
        if koleo:
            self.across_samples = "nearest neighbors that KoLeo keeps away"
        if centering == "sinkhorn":
            self.across_samples = "codes, which spread images over the prototypes"
        self.masks.check(encoder.built_grid)

    def why_not_joint(self) -> str | None:
        """Masks are drawn for a batch."""
        return "its masks are drawn for each batch, and there is no batch norm to share"

    def begin_step(self, progress: Progress) -> None:
        """Update the teacher and its temperature; masks are drawn anew, for each process."""
        super().begin_step(progress)
        self.masks.begin_step(progress)

    def begin_part(self, part: int) -> None:
        """Likewise for each part of a step."""
        self.masks.begin_part(part)

    def masked(self, n: int, number: int, grid: tuple[int, int]) -> Tensor:
        """The masks of n images of a large view, bool (n, rows, columns), on the CPU.

        The same for all calls of a step, so a mixture of the first view is masked as that is.
        """
        return self.masks.draw(n, number, grid)

    def position_pairs_of(self, count: int) -> Sequence[Pair]:
        """The patches of each large view with the teacher's of the same."""
        return [Pair(v, v, self.patch_weight / 2) for v in (0, 1)]

    def query(self, view: Tensor, number: int = 0) -> Query:
        """Logits of the class tokens and, for a large view, of the masked patches."""
        encoder: Any = self.f.backbone
        heads: Any = self.f.head
        if number > 1:
            pooled = encoder(view).pooled
            return Query(pooled, heads(pooled), None, None)
        on_cpu = self.masked(len(view), number, encoder.grid(view))
        masked = to_device(on_cpu, view.device)
        tokens = encoder(view, masked=masked.flatten(1), mask_token=heads.mask_token)
        where = to_device(places_of(on_cpu), view.device)
        patches = heads.patch(tokens.patches.flatten(0, 1)[where])
        return Query(tokens.pooled, heads(tokens.pooled), patches, masked)

    def queries(
        self,
        views: Sequence[Tensor],
        trained: Collection[int] | None = None,
        constant: Collection[int] = (),
    ) -> dict[int, Any]:
        """The queries of some views, each encoded by itself: large ones have masks."""
        return Method.queries(self, views, trained, constant)

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Any]:
        """The teacher's outputs for the large views, of clean images, and their centers."""
        encoder: Any = self.f_t.backbone
        heads: Any = self.f_t.head
        logits, patches, clean = [], [], []
        for number, view in enumerate(views[:2]):
            tokens, grid = encoder(view), encoder.grid(view)
            logits.append(heads(tokens.pooled))
            unit = l2_normalize(heads.patch.mlp(tokens.patches.flatten(0, 1)))
            patches.append(unit.unflatten(0, (len(view), *grid)))
            if self.centering == "sinkhorn":
                masked = self.masked(len(view), number, grid)
                clean.append(unit[to_device(places_of(masked), unit.device)])
        c, c_patch = self.c, self.c_patch
        if self.centering == "sinkhorn":
            c = sinkhorn_center(torch.cat(logits), self.tau_t)
            c_patch = sinkhorn_center(self.last_of(torch.cat(clean)), self.tau_t)
        n = len(views[0])
        return {
            v: Target(logits[v], c.expand(n, -1), patches[v], c_patch.expand(n, -1)) for v in (0, 1)
        }

    def last_of(self, unit: Tensor) -> Tensor:
        """The teacher's logits of patches (M, K), of unit vectors (M, bottleneck)."""
        head: Any = self.f_t.head
        with full_precision(unit):
            return head.patch.logits(unit)

    def compare(self, query: Any, target: Any) -> Tensor:
        """H(P_t, P_s) of class tokens: (N,)."""
        p_t = ((target.logits - target.center) / self.tau_t).softmax(dim=1)
        return F.cross_entropy(query.logits / self.T, p_t, reduction="none")

    def compare_positions(self, query: Query, target: Target) -> Tensor:
        """H(P_t, P_s) of each masked patch over their number in the image: (N, rows, columns)."""
        assert query.patches is not None
        assert query.masked is not None
        masked = query.masked
        # As many indices as patches, which is known without waiting for the device.
        m = len(query.patches)
        where = masked.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:m]
        with torch.no_grad():
            logits = self.last_of(target.patches.flatten(0, 2)[where])
            p_t = ((logits - target.patch_center[0]) / self.tau_t).softmax(dim=1)
        losses = F.cross_entropy(query.patches / self.T, p_t, reduction="none")
        number = masked.sum(dim=(1, 2), keepdim=True).clamp(min=1)
        spread = torch.zeros(masked.numel(), device=losses.device, dtype=losses.dtype)
        return spread.index_put((where,), losses).reshape(masked.shape) / number

    def embeddings(self) -> Sequence[nn.Parameter]:
        """The token of masked patches, which is part of the backbone in DINOv2's code."""
        return (self.f.head.mask_token,)  # type: ignore[return-value]

    def regularized_views(self, count: int) -> Collection[int]:
        """The clean large views, if KoLeo has a weight."""
        return (0, 1) if self.koleo_weight else ()

    def regularizer(self, queries: Sequence[Query], targets: Mapping[int, Any]) -> Tensor:
        """KoLeo of the class tokens before the head, summed over the large views; a scalar."""
        return self.koleo_weight * torch.stack([koleo(q.pooled) for q in queries]).sum()

    @torch.no_grad()
    def update_memory(
        self, queries: Mapping[int, Any], targets: Mapping[int, Any], index: Tensor
    ) -> None:
        """Move the centers toward the means of the teacher's logits of clean images."""
        heads: Any = self.f.head
        if self.frozen:
            for head in (heads.image, heads.patch):
                head.last.weight.grad = head.gain.grad = None
        if self.centering == "sinkhorn":
            return
        both = list(targets.values())
        mean = torch.stack([t.logits.mean(dim=0) for t in both]).mean(dim=0)
        self.c.lerp_(all_reduce_sum(mean) / world_size(), 1 - self.m)
        # The last layer is linear: the mean of logits is the logits of the mean.
        unit = torch.stack([t.patches.mean(dim=(0, 1, 2)) for t in both]).mean(dim=0)
        mean = self.last_of(all_reduce_sum(unit)[None] / world_size())[0]
        self.c_patch.lerp_(mean, 1 - self.m)

    @property
    def cell(self) -> int:
        """Side of a patch."""
        return self.f.backbone.side  # type: ignore[return-value]

    @property
    def backbone(self) -> nn.Module:
        """The student's transformer."""
        return self.f.backbone.vit  # type: ignore[return-value]

    @property
    def momentum_backbones(self) -> Sequence[nn.Module]:
        """The teacher's."""
        return (self.f_t.backbone.vit,)  # type: ignore[return-value]

    def check_batch(self, batch_size: int) -> None:
        """KoLeo needs two images: one has no neighbor."""
        if self.koleo_weight and batch_size < 2:
            raise UserError(
                f"{batch_size} is too small; KoLeo needs 2 images.", parameter="batch_size"
            )
        super().check_batch(batch_size)

    def projections(self, images: Tensor) -> Tensor:
        """The bottleneck of the student's head (N, bottleneck), before normalization."""
        return self.f.head.image.mlp(self.backbone(images))  # type: ignore[operator, union-attr]

    @property
    def chance_loss(self) -> float | None:
        """ln K of class tokens, and of the patches of the views that are masked."""
        of_both = math.log(self.dim) * (1 + self.patch_weight * self.mask_share)
        return None if self.koleo_weight else of_both


@torch.no_grad()
def sinkhorn_center(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """c with which softmax((logits - c) / tau) is what Sinkhorn-Knopp gives, (K,).

    So patches that were not among the logits, such as a mixture's, are assigned by the same
    prototypes.

    Args:
        logits: (M, K) of this process; M may differ between processes.
        temperature: tau.
        iterations: Of making rows and columns sums alike.
    """
    scaled = logits.float() / temperature
    b = scaled.new_zeros(len(scaled), 1)
    a = scaled.new_zeros(scaled.shape[1])
    for _ in range(iterations):
        a = -gather((scaled + b).logsumexp(dim=0)[None]).logsumexp(dim=0)
        b = -(scaled + a).logsumexp(dim=1, keepdim=True)
    return -temperature * a
