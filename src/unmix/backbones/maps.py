"""The feature map of a backbone, before it is pooled."""

from __future__ import annotations

from inspect import signature
from math import isqrt
from typing import Any

from torch import Tensor, nn

from unmix.errors import UserError

__all__ = ["check_feature_map", "feature_map", "patch_rows"]


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


def check_feature_map(backbone: nn.Module, owner: str) -> None:
    """Check that a backbone has a map.

    Args:
        backbone: Images to pooled features (N, D).
        owner: The method that needs the map, for the message.

    Raises:
        UserError: if it has none.
    """
    if hasattr(backbone, "forward_features") or "pooled" in signature(backbone.forward).parameters:
        return
    raise UserError(
        f"{owner} compares features at positions, and {type(backbone).__name__} gives pooled ones "
        'alone; use a ResNet, such as `backbone="resnet18"`, or one of timm\'s models.',
        parameter="backbone",
    )
