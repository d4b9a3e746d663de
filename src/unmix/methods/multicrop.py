"""Encoding views of several sizes: two large ones and small crops (Caron et al. 2020, SwAV)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

__all__ = ["encode_together"]


def encode_together(
    backbone: nn.Module, head: nn.Module, views: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The head's outputs of several views, (N, D) each.

    Neighbours of one size share a forward of the backbone and all views share one of the head, so
    batch norm takes its statistics over them (Caron et al. 2020 and 2021, released code).

    Args:
        backbone: Images to features.
        head: Features to (N, D).
        views: (N, C, H, W) each, where H and W may differ; those of one size side by side.
    """
    sizes = groupby(views, key=lambda view: view.shape[2:])
    features = [backbone(torch.cat(list(same))) for _, same in sizes]
    return head(torch.cat(features)).split([len(view) for view in views])
