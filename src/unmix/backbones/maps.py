"""The feature map of a backbone, before it is pooled."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor, nn

from unmix.errors import UserError

__all__ = ["check_feature_map", "feature_map"]


def feature_map(backbone: nn.Module, images: Tensor) -> Tensor:
    """Features at every position, (N, D, rows, columns), of images (N, C, H, W).

    The patch tokens of a transformer are its map.

    Args:
        backbone: One of this package's ResNets, one of timm's models, or any module whose forward
            takes `pooled=False`; see `check_feature_map`.
        images: Normalized.
    """
    network: Any = backbone
    if not hasattr(network, "forward_features"):
        return network(images, pooled=False)
    found = network.forward_features(images)
    if found.ndim == 4:
        channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return found.permute(0, 3, 1, 2) if channels_last else found
    patches = found[:, int(getattr(network, "num_prefix_tokens", 0)) :]
    rows = images.shape[2] // network.patch_embed.patch_size[0]
    return patches.transpose(1, 2).unflatten(2, (rows, -1))


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
