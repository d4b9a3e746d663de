"""Features of parts of an image, such as of a region and of the rest, pooled apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones.build import is_vit
from unmix.errors import UserError
from unmix.transfer import to_device

__all__ = ["pooled_apart", "why_not_in_parts"]

Shares = Callable[[int, int], Tensor]


def why_not_in_parts(backbone: nn.Module) -> str | None:
    """Why a backbone's features cannot be pooled over parts of an image; None if they can.

    It needs a feature map that is average-pooled to one cell, or a transformer's patch tokens.
    """
    if is_vit(backbone):
        return None if isinstance(getattr(backbone, "norm", None), nn.Module) else "no last norm"
    if _pooling(backbone) is None:
        return "no layer that averages a feature map"
    return None


@contextmanager
def pooled_apart(backbone: nn.Module, shares: Shares) -> Iterator[None]:
    """Within this context, a backbone gives features of k parts of each of its M images.

    The rows are those of the first part of every image, then those of the second: (k M, D). A
    part's features are the mean over the cells of the last feature map, or over the patch tokens,
    weighted by the part's share of each cell. A part without any share has the mean of all cells.
    What `torch.compile` made of the backbone is not used within.

    Source: Xu et al. 2022 (RegionCL), Sec. 3.2, "mask pooling"; tokens instead of cells for a
    vision transformer.

    Args:
        backbone: A convolutional network that ends in average pooling, or a vision transformer.
        shares: Gives the parts' shares of each cell of a grid, (M, k, rows, columns).

    Raises:
        UserError: if the backbone is neither.
    """
    if (why := why_not_in_parts(backbone)) is not None:
        raise UserError(
            f"{type(backbone).__name__} has {why}, so it has no features of parts of an image; use "
            "a ResNet or a ViT.",
            parameter="backbone",
        )
    hooks = _of_tokens(backbone, shares) if is_vit(backbone) else _of_map(backbone, shares)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _of_map(backbone: nn.Module, shares: Shares) -> list[Any]:
    """Replace the output of the pooling layer."""

    def pool(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = given[0]
        parts = _means(x.flatten(2).transpose(1, 2), _weights(backbone, shares, x.shape[2:], x))
        return parts.view(-1, *output.shape[1:])

    layer = _pooling(backbone)
    assert layer is not None
    return [layer.register_forward_hook(pool)]


def _of_tokens(backbone: nn.Module, shares: Shares) -> list[Any]:
    """Replace the transformer's output by means of its patch tokens after the last norm."""
    vit: Any = backbone
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, tokens: Tensor) -> None:
        kept[:] = [tokens]

    def pool(_: nn.Module, given: tuple[Tensor, ...], __: Any) -> Tensor:
        sides: Any = vit.patch_embed.patch_size
        sides = sides if isinstance(sides, (tuple, list)) else (sides, sides)
        grid = [side // patch for side, patch in zip(given[0].shape[2:], sides, strict=True)]
        patches = kept.pop()
        patches = patches[:, patches.shape[1] - grid[0] * grid[1] :]
        parts = _means(patches, _weights(vit, shares, grid, patches))
        # Models that pool before their last norm have it in `fc_norm`.
        return vit.fc_norm(parts) if isinstance(vit.norm, nn.Identity) else parts

    return [vit.norm.register_forward_hook(keep), vit.register_forward_hook(pool)]


def _weights(backbone: Any, shares: Shares, grid: Any, like: Tensor) -> Tensor:
    """The parts' weights of the cells, (M, k, cells), in the order of the batch; rows sum to 1."""
    found = shares(*grid).flatten(2)
    total = found.sum(dim=2, keepdim=True)
    found = torch.where(total > 0, found / total.clamp(min=1e-9), 1 / found.shape[2])
    found = to_device(found, like.device, like.dtype)
    order = getattr(backbone, "batch_order", None)
    return found if order is None else found[order]


def _means(cells: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of cells (M, L, D): (k M, D), part by part."""
    return (weights @ cells).transpose(0, 1).flatten(0, 1)


def _pooling(backbone: nn.Module) -> nn.Module | None:
    """The last layer that averages a feature map to one cell."""
    found = None
    for module in backbone.modules():
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            found = module
    return found
