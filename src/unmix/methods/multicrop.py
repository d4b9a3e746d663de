"""Base class of methods with multi-crop (Caron et al. 2020, SwAV)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from unmix.errors import check_number
from unmix.methods.base import Encoder, Method, Pair, Progress
from unmix.momentum import cosine_ema_momentum, ema_update, momentum_copy

__all__ = ["MultiCrop", "SelfDistillation", "encode_together"]


class MultiCrop(Method):
    """A method of two large views that accepts additional small crops (multi-crop).

    Args:
        backbone: Images to pooled features.
        head: Features to what `predict` takes.
    """

    multi_crop = True
    mixes_every_view = True

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.f = Encoder(backbone, head)

    @abstractmethod
    def predict(self, output: Tensor, number: int) -> Any:
        """The query, from the head's output (N, D) of view `number`."""

    def query(self, view: Tensor, number: int = 0) -> Any:
        """The query of one view."""
        return self.predict(self.f.head(self.f.backbone(view)), number)

    def queries(
        self,
        views: Sequence[Tensor],
        trained: Collection[int] | None = None,
        constant: Collection[int] = (),
    ) -> dict[int, Any]:
        """The queries of some views, encoded together."""
        trained = self.clean_queries(len(views)) if trained is None else trained
        asked = sorted({*trained, *constant})
        if not asked:
            return {}
        with nullcontext() if trained else torch.no_grad():
            chosen = [views[v] for v in asked]
            outputs = encode_together(self.f.backbone, self.f.head, chosen)
            return {v: self.predict(z, v) for v, z in zip(asked, outputs, strict=True)}

    def projections(self, images: Tensor) -> Tensor:
        """The head's output, before normalization."""
        return self.f.head(self.f.backbone(images))

    @property
    def backbone(self) -> nn.Module:
        """The trained encoder's backbone."""
        return self.f.backbone


class SelfDistillation(MultiCrop):
    """A student of every crop that is compared with its EMA teacher of the large views.

    Args:
        backbone: Images to pooled features.
        head: Features to what `predict` takes.
        encoder_momentum: lambda of the teacher at the start; rises to 1 by a cosine.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, encoder_momentum: float) -> None:
        super().__init__(backbone, head)
        check_number(
            "encoder_momentum", encoder_momentum, at_least=0, at_most=1, owner=type(self).__name__
        )
        self.f_t = momentum_copy(self.f)
        self.lambda_start = encoder_momentum

    def begin_step(self, progress: Progress) -> None:
        """Update the teacher."""
        ema_update(self.f_t, self.f, cosine_ema_momentum(self.lambda_start, progress.fraction))

    def pairs_of(self, count: int) -> Sequence[Pair]:
        """Every crop with the large views but itself; the mean over them."""
        share = 1 / (2 * (count - 1))
        return [Pair(v, b, share) for b in (0, 1) for v in range(count) if v != b]

    def predict(self, output: Tensor, number: int) -> Any:
        """The student's output (N, D), unchanged."""
        return output

    @torch.no_grad()
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Any]:
        """The teacher's outputs (N, D) of the large views."""
        return dict(enumerate(encode_together(self.f_t.backbone, self.f_t.head, views[:2])))

    @property
    def momentum_backbones(self) -> Sequence[nn.Module]:
        """The teacher's."""
        return (self.f_t.backbone,)


def encode_together(
    backbone: nn.Module, head: nn.Module, views: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The head's outputs of several views, (N, D) each.

    Neighbors of one size share a forward of the backbone and all views share one of the head, so
    batch norm takes its statistics over them (Caron et al. 2020 and 2021, released code).

    Args:
        backbone: Images to features.
        head: Features to (N, D).
        views: (N, C, H, W) each, where H and W may differ; those of one size side by side.
    """
    sizes = groupby(views, key=lambda view: view.shape[2:])
    features = [backbone(torch.cat(list(same))) for _, same in sizes]
    return head(torch.cat(features)).split([len(view) for view in views])
