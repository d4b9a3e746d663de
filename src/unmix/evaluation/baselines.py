"""What needs no training: raw pixels and an untrained encoder, measured as the trained ones are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unmix.data import ImageSet
from unmix.evaluation.features import split_features
from unmix.evaluation.registry import evaluate_features

__all__ = ["accuracies", "raw_pixels"]


def raw_pixels(images: Tensor) -> Tensor:
    """Normalised images as features (N, C H W)."""
    return images.flatten(1)


def accuracies(
    encode: Callable[[Tensor], Tensor],
    train: ImageSet,
    test: ImageSet,
    prepare: Callable[[Tensor], Tensor],
    size: int,
    *,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """kNN and linear top-1 in percent of any encoder; arguments as for `split_features`."""
    assert train.classes is not None
    splits = [
        split_features(encode, images, prepare, size, device=device, dtype=dtype)
        for images in (train, test)
    ]
    found = evaluate_features(
        splits[0], splits[1], len(train.classes), generator=generator, device=device
    )
    return {each.row["protocol"]: each.row["top1"] for each in found}
