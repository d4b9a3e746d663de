"""Features of many images, encoded once in evaluation mode."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from unmix.backbones.modes import in_evaluation_mode
from unmix.data import ImageSet
from unmix.errors import UserError
from unmix.evaluation.pixels import pixel_batches

__all__ = [
    "LabeledFeatures",
    "NotFiniteError",
    "encode_batch",
    "evaluating",
    "extract",
    "split_features",
    "unreadable",
]

Encode = Callable[[Tensor], Tensor]

# Bytes of features that are collected on a GPU before they are copied: each copy waits for it.
_MAX_HELD = 2**28


class NotFiniteError(UserError):
    """Features that are infinite or NaN."""


def extract(
    encode: Encode,
    batches: Iterable[Tensor],
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Encode batches of images in evaluation mode, without gradients.

    Args:
        encode: Maps images `(n, C, H, W)` to features `(n, D)`. If it is a module or a method of
            one, that module is set to evaluation mode meanwhile.
        batches: Image tensors `(n, C, H, W)`; they are moved to `device`.
        device: Where to encode.
        dtype: Autocast dtype, such as `torch.bfloat16`; None for the dtype of the weights.

    Returns:
        Features `(N, D)`, float32, on the CPU, in the order of the images.

    Raises:
        UserError: if there are no images.
        NotFiniteError: if a feature is not finite.
    """
    with evaluating(encode):
        parts = _fetched(encode_batch(encode, images, device, dtype) for images in batches)
    if not parts:
        raise UserError("--data: there are no images to encode; the split must have at least one")
    features = torch.cat(parts)
    bad = int((~features.isfinite()).any(dim=1).sum())
    if bad:
        raise NotFiniteError(
            f"the features of {bad} of {len(features)} images are not finite because training "
            "diverged; pretrain again, with a smaller --lr"
        )
    return features


def _fetched(batches: Iterable[Tensor]) -> list[Tensor]:
    """Copy features to the CPU; from a GPU in large chunks, so that the host need not wait."""
    parts: list[Tensor] = []
    held: list[Tensor] = []
    for features in batches:
        held.append(features)
        if features.device.type == "cpu":
            parts.append(held.pop())
        elif sum(part.nbytes for part in held) >= _MAX_HELD:
            parts.append(torch.cat(held).cpu())
            held.clear()
    return [*parts, torch.cat(held).cpu()] if held else parts


@torch.inference_mode()
def encode_batch(
    encode: Encode, images: Tensor, device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Encode one batch on `device`; returns float32 features `(n, D)` there. See `extract`."""
    device = torch.device(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        return encode(images.to(device, non_blocking=True)).float()


@contextmanager
def evaluating(encode: Encode) -> Iterator[None]:
    """Set the module of `encode` to evaluation mode, and restore the mode of every submodule.

    Args:
        encode: A module or a method of one; with any other callable nothing changes.
    """
    owner = encode.__self__ if inspect.ismethod(encode) else encode
    with in_evaluation_mode(*([owner] if isinstance(owner, nn.Module) else [])):
        yield


@dataclass(frozen=True)
class LabeledFeatures:
    """Features of one split.

    Attributes:
        features: float32 (M, D), on the CPU.
        labels: int64 (M,), or None without classes.
        index: Indices of the images in the split, int64 (M,), without those of broken files.
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
    progress: Callable[[int, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
) -> LabeledFeatures:
    """Encode a split, or a part of it, without augmentation.

    Args:
        encode: Normalized images (N, C, H, W) to features (N, D); a module or a method of one.
        images: The split.
        prepare: uint8 images to normalized ones, such as `Views.plain`.
        size: Side of the images in pixels.
        device: Where to encode.
        dtype: Autocast dtype; None for the dtype of the weights.
        batch_size: Images at a time.
        workers: Data workers that read files; by default from the number of cores.
        progress: Called after each batch with the number of images done, and of all.
        part: Number of a part, from 0, and of all parts. Each has some of the whole's batches, in
            order; one without a readable image has features (0, 0).

    Raises:
        UserError: if no image of the whole split can be read.
    """
    n, (number, parts) = len(images), part
    count = -(-n // batch_size)
    start, stop = (min(count * each // parts * batch_size, n) for each in (number, number + 1))
    kept: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        for pixels, index in pixel_batches(
            images, size, batch_size, workers=workers, device=device, start=start, stop=stop
        ):
            kept.append(index)
            yield prepare(pixels.to(device, non_blocking=True))
            if progress is not None:
                progress(sum(map(len, kept)), stop - start)

    found = batches()
    first = next(found, None)
    if first is not None:
        features = extract(encode, chain([first], found), device=device, dtype=dtype)
        index = torch.cat(kept)
    elif parts > 1:
        features, index = torch.empty(0, 0), torch.empty(0, dtype=torch.long)
    else:
        raise unreadable(images)
    return LabeledFeatures(features, None if images.labels is None else images.labels[index], index)


def unreadable(images: ImageSet) -> UserError:
    """The error of a split without a readable image."""
    return UserError(
        f"{images.name}: none of the {len(images)} images of the {images.split} split is readable."
    )
