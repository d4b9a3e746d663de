"""Features of many images, encoded once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unmix.errors import UserError

__all__ = ["NotFiniteError", "encode_batch", "evaluating", "extract"]

Encode = Callable[[Tensor], Tensor]

# Bytes of features that stay on a GPU before they are fetched: each fetch waits for it.
_MOST_HELD = 2**28


class NotFiniteError(UserError):
    """Features that are infinite or no numbers."""


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
            one, that module is put in evaluation mode and back again.
        batches: Image tensors `(n, C, H, W)`; they are moved to `device`.
        device: Where to encode.
        dtype: Type for autocast, as `torch.bfloat16`; None computes as the weights are.

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
    """Bring features to the CPU: from a GPU in large pieces, so that the host runs ahead of it."""
    parts: list[Tensor] = []
    held: list[Tensor] = []
    for features in batches:
        held.append(features)
        if features.device.type == "cpu":
            parts.append(held.pop())
        elif sum(part.nbytes for part in held) >= _MOST_HELD:
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
    """Keep the module behind `encode` in evaluation mode, then give every part its own mode back.

    Args:
        encode: A module or a method of one; of any other callable nothing is changed.
    """
    owner = encode.__self__ if inspect.ismethod(encode) else encode
    parts = list(owner.modules()) if isinstance(owner, nn.Module) else []
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
