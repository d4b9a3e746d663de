"""Encoding by all processes of a run: each has a part of the images, the first one gets all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from unmix.data import ImageSet, StreamedImages
from unmix.distributed import gather_in_first, pace, world_size
from unmix.evaluation.features import LabeledFeatures, unreadable

__all__ = ["gathered", "statistics_of_first"]


@contextmanager
def statistics_of_first(module: nn.Module) -> Iterator[None]:
    """Within this context the running statistics of batch norm are those of the first process.

    They differ between processes, since each sees its own part of a batch. All processes enter it
    together; afterwards each has its own again.
    """
    statistics = [
        each
        for layer in module.modules()
        if isinstance(layer, _NormBase)
        for each in (layer.running_mean, layer.running_var)
        if each is not None
    ]
    own = [each.clone() for each in statistics]
    _copy_of_first(statistics)
    try:
        yield
    finally:
        for each, before in zip(statistics, own, strict=True):
            each.copy_(before)


@torch.no_grad()
def _copy_of_first(tensors: list[Tensor]) -> None:
    """Overwrite tensors by those of the first process, in one exchange."""
    if not tensors:
        return
    together = torch.cat([each.flatten() for each in tensors])
    pace.tick()
    dist.broadcast(together, 0)
    for each, values in zip(
        tensors, together.split([each.numel() for each in tensors]), strict=True
    ):
        each.copy_(values.view_as(each))


def gathered(part: LabeledFeatures, images: ImageSet, device: torch.device) -> LabeledFeatures:
    """The features of all parts in the first process; in the others their own.

    All processes know afterwards which files any of them could not read.

    Args:
        part: Of this process.
        images: The whole split.
        device: What the processes exchange tensors on.
    """
    if isinstance(images, StreamedImages):
        broken: list[Any] = [None] * world_size()
        pace.tick()
        dist.all_gather_object(broken, images.skipped.errors)
        for error in chain.from_iterable(broken):
            images.skipped.add(error)
    features = gather_in_first(part.features, device)
    column = gather_in_first(part.index[:, None], device)
    if features is None or column is None:
        return part
    index = column[:, 0]
    if not len(index):
        raise unreadable(images)
    return LabeledFeatures(features, None if images.labels is None else images.labels[index], index)
