"""DINO: self-distillation with no labels (Caron et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix.backbones import feature_dim, mlp
from unmix.distributed import all_reduce_sum, world_size
from unmix.errors import check_number
from unmix.methods.base import Progress, full_precision, l2_normalize
from unmix.methods.multicrop import SelfDistillation

__all__ = ["DINO", "DINOHead", "head_mlp"]


def head_mlp(sizes: Sequence[int], batch_norm: bool) -> nn.Sequential:
    """The layers of DINO's head before its last: GELU, weights of standard deviation .02."""
    layers = mlp(sizes, batch_norm=batch_norm, activation=nn.GELU)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return layers


class DINOHead(nn.Module):
    """Three layers to a bottleneck, then a weight-normalized layer to K outputs (appendix C).

    Args:
        sizes: Features of the input, of the two hidden layers, and of the bottleneck.
        outputs: K.
        batch_norm: Whether hidden layers have batch norm.
        normalize_last: Whether the last layer's rows stay unit vectors; else each has a gain.
    """

    def __init__(
        self, sizes: tuple[int, int, int, int], outputs: int, batch_norm: bool, normalize_last: bool
    ) -> None:
        super().__init__()
        self.mlp = head_mlp(sizes, batch_norm)
        self.last = nn.Linear(sizes[-1], outputs, bias=False)
        # (K, 1) as in PyTorch's weight norm, so that one that is trained has weight decay.
        self.gain = nn.Parameter(torch.ones(outputs, 1), requires_grad=not normalize_last)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, K), float32."""
        z = l2_normalize(self.mlp(features))
        with full_precision(z):
            return self.logits(z)

    def logits(self, unit: Tensor) -> Tensor:
        """The last layer alone, of unit vectors (N, bottleneck)."""
        return self.gain.T * F.linear(unit, F.normalize(self.last.weight, dim=1))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        gain = state_dict.get(f"{prefix}gain")
        if gain is not None and gain.ndim == 1:  # of earlier checkpoints
            state_dict[f"{prefix}gain"] = gain.unsqueeze(1)
        super()._load_from_state_dict(state_dict, prefix, *args, **options)


class DINO(SelfDistillation):
    """Self-distillation: a student predicts the teacher's output for another view of the image.

    Query: the student's logits f(x). Target: the teacher's f_t(x) of a large view, centered and
    sharpened in `compare`; the teacher is the momentum encoder. Memory: the center c.

    Args:
        backbone: Images to pooled features (N, D), a ResNet, a ViT or any module.
        dim: K, outputs of the head.
        hidden: Features of the head's two hidden layers.
        bottleneck: Features before the head's last layer.
        temperature: tau_s, the student's.
        teacher_temperature: tau_t, the teacher's.
        warmup_teacher_temperature: tau_t at the start, from which it goes linearly.
        warmup_teacher_epochs: Epochs of the linear warmup; tau is constant within an epoch.
        center_momentum: m of the center.
        encoder_momentum: lambda of the teacher at the start; rises to 1 by a cosine.
        freeze_last_epochs: Epochs before the head's last layer is trained.
        normalize_last: Keep the rows of the last layer unit vectors, without a gain.
        head_bn: Batch norm in the head's hidden layers.
    """

    c: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        dim: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 0,
        center_momentum: float = 0.9,
        encoder_momentum: float = 0.996,
        freeze_last_epochs: int = 1,
        normalize_last: bool = True,
        head_bn: bool = False,
    ) -> None:
        check_number("dim", dim, at_least=2, owner="DINO")
        check_number("hidden", hidden, at_least=1, owner="DINO")
        check_number("bottleneck", bottleneck, at_least=1, owner="DINO")
        check_number("temperature", temperature, above=0, owner="DINO")
        check_number("teacher_temperature", teacher_temperature, above=0, owner="DINO")
        check_number(
            "warmup_teacher_temperature", warmup_teacher_temperature, above=0, owner="DINO"
        )
        check_number("warmup_teacher_epochs", warmup_teacher_epochs, at_least=0, owner="DINO")
        check_number("center_momentum", center_momentum, at_least=0, at_most=1, owner="DINO")
        check_number("freeze_last_epochs", freeze_last_epochs, at_least=0, owner="DINO")
        sizes = (feature_dim(backbone), hidden, hidden, bottleneck)
        head = DINOHead(sizes, dim, head_bn, normalize_last)
        super().__init__(backbone, head, encoder_momentum)
        self.register_buffer("c", torch.zeros(dim))
        self.dim, self.T = dim, temperature
        self.tau_t, self.tau_end = warmup_teacher_temperature, teacher_temperature
        self.tau_start, self.tau_epochs = warmup_teacher_temperature, warmup_teacher_epochs
        self.m = center_momentum
        self.freeze_epochs, self.frozen = freeze_last_epochs, False

    def begin_step(self, progress: Progress) -> None:
        """Update the teacher and its temperature."""
        super().begin_step(progress)
        # An epoch has one temperature, evenly spaced from the first to the last, as released.
        epoch, last = int(progress.epoch), self.tau_epochs - 1
        done = 1.0 if epoch >= self.tau_epochs else epoch / max(1, last)
        self.tau_t = self.tau_start + done * (self.tau_end - self.tau_start)
        self.frozen = progress.epoch < self.freeze_epochs

    def compare(self, query: Tensor, target: Tensor) -> Tensor:
        """H(P_t, P_s): cross-entropy with the centered and sharpened teacher, (N,) (Eqs. 1, 2)."""
        p_t = ((target - self.c) / self.tau_t).softmax(dim=1)
        return F.cross_entropy(query / self.T, p_t, reduction="none")

    @torch.no_grad()
    def update_memory(
        self, queries: Mapping[int, Any], targets: Mapping[int, Tensor], index: Tensor
    ) -> None:
        """Move the center toward the mean of the teacher's logits (Eq. 4)."""
        if self.frozen:
            self.f.head.last.weight.grad = self.f.head.gain.grad = None  # type: ignore[union-attr]
        mean = torch.stack([t.mean(dim=0) for t in targets.values()]).mean(dim=0)
        self.c.lerp_(all_reduce_sum(mean) / world_size(), 1 - self.m)

    def projections(self, images: Tensor) -> Tensor:
        """The bottleneck of the student's head (N, bottleneck), before normalization."""
        return self.f.head.mlp(self.f.backbone(images))  # type: ignore[operator]

    @property
    def chance_loss(self) -> float | None:
        """ln K: a uniform output."""
        return math.log(self.dim)
