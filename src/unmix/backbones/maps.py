"""The feature map of a backbone, before it is pooled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from unmix.errors import UserError

__all__ = [
    "check_feature_map",
    "dense_features",
    "feature_map",
    "hooks",
    "last_map",
    "patch_rows",
]


def feature_map(backbone: nn.Module, images: Tensor) -> Tensor:
    """Features at every position, (N, D, rows, columns), of images (N, C, H, W).

    The patch tokens of a transformer are its map.

    Args:
        backbone: One of this package's ResNets, one of timm's models, or any module whose forward
            takes `pooled=False`; see `check_feature_map`.
        images: Normalized.

    Raises:
        UserError: if its tokens are not those of a grid of patches.
    """
    network: Any = backbone
    if not hasattr(network, "forward_features"):
        return network(images, pooled=False)
    found = network.forward_features(images)
    if found.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return found.permute(0, 3, 1, 2) if channels_last else found
    patches = found[:, int(getattr(network, "num_prefix_tokens", 0)) :]
    rows = patch_rows(network, tuple(images.shape[2:]), patches.shape[1])
    if rows is None:
        raise UserError(
            f"the {patches.shape[1]} tokens of {type(network).__name__} are no grid of patches of "
            f"{images.shape[2]} x {images.shape[3]} pixels, so there are no features at positions; "
            'use a ResNet, such as `backbone="resnet18"`, or a vision transformer.',
            parameter="backbone",
        )
    return patches.transpose(1, 2).unflatten(2, (rows, -1))


def dense_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Features at several positions, (N, D, rows, columns), of any backbone that has them.

    Those of `feature_map`; where that is one pixel or the network has none, the last feature map
    of more than one pixel.

    Args:
        backbone: The network, in evaluation mode.
        images: (N, C, H, W), normalized.

    Raises:
        UserError: if it has no features at several positions.
    """
    if _has_feature_map(backbone):
        found = feature_map(backbone, images)
        if found.shape[2] * found.shape[3] > 1:
            return found
    with last_map(backbone, torch.clone) as last:
        backbone(images)
    if last[0] is None:
        raise UserError(
            f"{type(backbone).__name__} has no features at several positions of images of "
            f"{images.shape[2]} x {images.shape[3]} pixels; use larger ones, or another backbone.",
            parameter="backbone",
        )
    return last[0]


def patch_rows(backbone: nn.Module, size: tuple[int, ...], tokens: int) -> int | None:
    """How many rows of patches the tokens of a network are; None if they are no grid.

    Args:
        backbone: A network of tokens.
        size: Height and width of its images.
        tokens: Their number, without class and register tokens.
    """
    if size[0] == size[1] and isqrt(tokens) ** 2 == tokens:
        return isqrt(tokens)
    side: Any = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    height, width = side if isinstance(side, (tuple, list)) else (side, side)
    if not height or not width:
        return None
    rows, columns = size[0] // height, size[1] // width
    return rows if rows * columns == tokens else None


@contextmanager
def last_map(
    backbone: nn.Module, take: Callable[[Tensor], Tensor]
) -> Iterator[list[Tensor | None]]:
    """Watch a forward that is run within for the last feature map of more than one pixel.

    Args:
        backbone: The network.
        take: From a map (N, D, rows, columns) to what is kept of it, before an operation in place
            can change it.

    Yields:
        A list of one: what is kept of the last map, or None. Of tokens after the last feature map,
        as of a transformer, the places are not known.
    """
    last: list[Tensor | None] = [None]
    width = getattr(backbone, "num_features", None)  # of timm's networks

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return
        if output.ndim == 3:
            last[0] = None if output.shape[1] > 1 else last[0]
            return
        if output.shape[1] != width and output.shape[3] == width:
            output = output.permute(0, 3, 1, 2)
        if output.shape[2] * output.shape[3] > 1:
            last[0] = take(output)

    with hooks(*(module.register_forward_hook(keep) for module in backbone.modules())):
        yield last


@contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    """Remove hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_feature_map(backbone: nn.Module, owner: str) -> None:
    """Check that a backbone has a map.

    Args:
        backbone: Images to pooled features (N, D).
        owner: The method that needs the map, for the message.

    Raises:
        UserError: if it has none.
    """
    if _has_feature_map(backbone):
        return
    raise UserError(
        f"{owner} compares features at positions, and {type(backbone).__name__} gives pooled ones "
        'alone; use a ResNet, such as `backbone="resnet18"`, or one of timm\'s models.',
        parameter="backbone",
    )


def _has_feature_map(backbone: nn.Module) -> bool:
    own = signature(backbone.forward).parameters
    return hasattr(backbone, "forward_features") or "pooled" in own
