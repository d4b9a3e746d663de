"""Base class of methods with multi-crop (Caron et al. 2020, SwAV)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from unmix.methods.base import Encoder, Method

__all__ = ["MultiCrop", "encode_together"]


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
