"""Baselines without training: raw pixels and untrained encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unmix.data import ImageSet
from unmix.evaluation.features import split_features
from unmix.evaluation.registry import evaluate_features

__all__ = ["accuracies", "raw_pixels"]


def raw_pixels(images: Tensor) -> Tensor:
    """Normalized images as features (N, C H W)."""
    return images.flatten(1)


def accuracies(
    encode: Callable[[Tensor], Tensor],
    train: ImageSet,
    test: ImageSet,
    prepare: Callable[[Tensor], Tensor],
    size: int,
    protocols: Sequence[str] = ("knn", "linear"),
    *,
    k: int = 200,
    temperature: float = 0.1,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Top-1 in percent of any encoder by protocol.

    Arguments are those of `split_features` and of `evaluate_features`.
    """
    assert train.classes is not None
    splits = [
        split_features(encode, images, prepare, size, device=device, dtype=dtype)
        for images in (train, test)
    ]
    evaluations = evaluate_features(
        splits[0], splits[1], len(train.classes), protocols,
        k=k, temperature=temperature, generator=generator, device=device,
    )  # fmt: skip
    return {each.row["protocol"]: each.row["top1"] for each in evaluations}
