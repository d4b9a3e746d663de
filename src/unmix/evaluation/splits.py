"""An encoder measured on two image sets: features once, then every protocol on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmix.data import ImageSet
from unmix.errors import UserError, check_choice
from unmix.evaluation.features import extract
from unmix.evaluation.knn import knn_accuracy
from unmix.evaluation.linear import linear_probe
from unmix.evaluation.pixels import pixel_batches

__all__ = ["Measured", "measure", "split_features"]


@dataclass(frozen=True)
class Measured:
    """The features of one split.

    Attributes:
        features: float32 (M, D), on the CPU.
        labels: int64 (M,), or None without classes.
        index: Which images they are of, int64 (M,); broken files are not among them.
    """

    features: Tensor
    labels: Tensor | None
    index: Tensor


def split_features(
    encode: Callable[[Tensor], Tensor],
    images: ImageSet,
    prepare: Callable[[Tensor], Tensor],
    size: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    batch_size: int = 256,
    workers: int | None = None,
) -> Measured:
    """Encode a split, without augmentation.

    Args:
        encode: Normalised images (N, C, H, W) to features (N, D); a module or a method of one.
        images: The split.
        prepare: uint8 images to normalised ones, as `Views.plain`.
        size: Side of the images in pixels.
        device: Where to encode.
        dtype: Of autocast; None computes as the weights are.
        batch_size: Images at a time.
        workers: Processes that read files ahead; by default from the number of cores.

    Raises:
        UserError: if no image can be read.
    """
    n = len(images)
    kept: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        for pixels, index in pixel_batches(
            images, size, batch_size, workers=workers, device=device
        ):
            kept.append(index)
            yield prepare(pixels.to(device, non_blocking=True))

    features = extract(encode, batches(), device=device, dtype=dtype) if n else torch.empty(0, 0)
    if not kept:
        raise UserError(
            f"{images.name}: none of the {n} images of the {images.split} split is readable."
        )
    index = torch.cat(kept)
    return Measured(features, None if images.labels is None else images.labels[index], index)


def measure(
    train: Measured,
    test: Measured,
    classes: int,
    protocols: Sequence[str] = ("knn", "linear"),
    *,
    k: int = 200,
    temperature: float = 0.1,
    generator: torch.Generator,
    device: torch.device | str | None = None,
) -> list[dict[str, Any]]:
    """Measure features by the protocols that need nothing but features.

    Args:
        train: Features and labels that may be learnt from.
        test: Features and labels to predict.
        classes: Number of classes.
        protocols: Of "knn" and "linear".
        k: Neighbours that vote.
        temperature: T of the kNN's weights.
        generator: For the linear probe's split of the training features.
        device: Where to compute; by default the CPU.

    Returns:
        A row of `results.json` for each protocol, without its epoch.
    """
    assert train.labels is not None
    assert test.labels is not None
    if device is not None and torch.device(device).type == "mps":
        device = None  # it has no float64, which the probes' statistics use
    counts = {"train_images": len(train.features), "test_images": len(test.features)}
    rows: list[dict[str, Any]] = []
    for protocol in protocols:
        check_choice("protocol", protocol, ("knn", "linear"))
        if protocol == "knn":
            used = min(k, len(train.features))
            scores = knn_accuracy(
                train.features, train.labels, test.features, test.labels,
                classes=classes, k=used, temperature=temperature, device=device,
            )  # fmt: skip
            rows.append(
                {"protocol": "knn", **scores, "k": used, "temperature": temperature, **counts}
            )
        else:
            scores = linear_probe(
                train.features, train.labels, test.features, test.labels,
                classes=classes, generator=generator, device=device,
            )  # fmt: skip
            rows.append({"protocol": "linear", **scores, **counts})
    return rows
