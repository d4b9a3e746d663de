"""The dimension of a backbone's features: its attribute, or measured by a forward."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones.modes import in_evaluation_mode
from unmix.errors import UserError

__all__ = ["feature_dim"]

# In pixels: small images first, for they are quick; the others are what transformers are built for.
_SIDES = (32, 64, 224, 96, 128, 256, 384, 448, 512)
_HEADS = ("fc", "classifier", "head", "heads")


def feature_dim(backbone: nn.Module, channels: int = 3) -> int:
    """The dimension D of a backbone's features.

    The attribute `feature_dim` is taken where there is one. Otherwise D is measured by a
    forward in evaluation mode, which changes neither batch norm's statistics nor the random
    numbers to come; the attribute is then set.

    Args:
        backbone: Maps images (N, channels, H, W) to features (N, D).
        channels: Of the images.

    Raises:
        UserError: if it is not a module, takes no image of any usual size, or returns anything
            else.
    """
    if not isinstance(backbone, nn.Module):
        hint = "; build it: unmix.backbones.build(NAME, size=32)" * isinstance(backbone, str)
        raise UserError(
            f"{backbone!r} is not a torch.nn.Module{hint or '; give one that gives (N, D)'}.",
            parameter="backbone",
        )
    known = getattr(backbone, "feature_dim", None)
    if known is not None:
        if isinstance(known, bool) or not isinstance(known, int) or known < 1:
            raise UserError(
                f"its feature_dim is {known!r}; it must be the length D of its features.",
                parameter="backbone",
            )
        return known
    name = type(backbone).__name__
    if getattr(backbone, "aux_logits", False):
        raise UserError(
            f"{name} gives several outputs while it is trained; build it with aux_logits=False.",
            parameter="backbone",
        )
    found = _measured(backbone, channels)
    if len(set(found.values())) > 1:
        each = ", ".join(f"{dim} at {side} px" for side, dim in found.items())
        raise UserError(
            f"the features of {name} depend on the images' size ({each}); set its "
            "attribute feature_dim to that of yours, or pool before you flatten.",
            parameter="backbone",
        )
    dim = next(iter(found.values()))
    _warn_of_head(backbone, dim)
    backbone.feature_dim = dim  # type: ignore[assignment]
    return dim


def _measured(backbone: nn.Module, channels: int) -> dict[int, int]:
    """D by the side of the images: at the one that the backbone names, or at two that it takes."""
    name = type(backbone).__name__
    own = _own_side(backbone)
    first: Exception | None = None
    found: dict[int, int] = {}
    for side in (own,) if own else _SIDES:
        try:
            output = _forward(backbone, channels, side)
        except Exception as error:  # whatever a foreign network says of a size that it cannot take
            first = first or error
            continue
        found[side] = _dim_of(output, name)
        if len(found) == 2:
            break
    if not found:
        assert first is not None
        text = str(first).splitlines()
        sides = f"{own} px" if own else "any usual size"
        raise UserError(
            f"{name} takes no images of {channels} channel{'s' * (channels > 1)} and "
            f"{sides} ({text[0] if text else type(first).__name__}); give a module that maps "
            f"(N, {channels}, H, W) to (N, D), or set its attribute feature_dim.",
            parameter="backbone",
        )
    return found


def _own_side(backbone: nn.Module) -> int | None:
    """The side that torchvision's and timm's transformers are built for; None of other networks."""
    for owner, word in (
        (backbone, "image_size"), (getattr(backbone, "patch_embed", None), "img_size")
    ):  # fmt: skip
        side: Any = getattr(owner, word, None)
        if isinstance(side, (tuple, list)) and side:
            side = side[0]
        if isinstance(side, int) and side > 0:
            return side
    return None


@torch.no_grad()
def _forward(backbone: nn.Module, channels: int, side: int) -> Any:
    """The output of two images, in evaluation mode; modes and random numbers stay."""
    like = next((p for p in backbone.parameters() if p.is_floating_point()), torch.zeros(()))
    if nn.parameter.is_lazy(like):  # a size is what it waits for
        like = torch.zeros(())
    devices = [like.device] if like.device.type == "cuda" else []
    with in_evaluation_mode(backbone), torch.random.fork_rng(devices=devices):
        return backbone(torch.zeros(2, channels, side, side, device=like.device).to(like.dtype))


def _dim_of(output: Any, name: str) -> int:
    """D of features (2, D).

    Raises:
        UserError: for any other output, with what to do.
    """
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == 2:
        return output.shape[1]
    if isinstance(output, Tensor):
        shape = tuple(output.shape)
        what = f"a tensor of shape {shape}"
        todo = "give a module whose output is (N, D)"
        if output.ndim == 4:
            what = f"a map (N, C, H, W), {shape}"
            todo = "pool it: torch.nn.Sequential(net, torch.nn.AdaptiveAvgPool2d(1), "
            todo += "torch.nn.Flatten())"
        elif output.ndim == 3:
            what = f"a sequence (N, L, D), {shape}"
            todo = "take its class token or the mean over L"
    else:
        what = f"a {type(output).__name__}"
        if isinstance(output, Mapping):
            what += f" with {', '.join(map(str, output))}"
        todo = "wrap it in a module that takes the features (N, D) out of it"
    raise UserError(
        f"{name} gives {what}, and features (N, D) are needed; {todo}.", parameter="backbone"
    )


def _warn_of_head(backbone: nn.Module, dim: int) -> None:
    """Say so where the features seem to be a classifier's outputs."""
    for word in _HEADS:
        head = getattr(backbone, word, None)
        layers = [m for m in head.modules() if isinstance(m, nn.Linear)] if head is not None else []
        if layers and layers[-1].out_features == dim:
            warnings.warn(
                f"backbone: the {dim} outputs of the classification head `{word}` of "
                f"{type(backbone).__name__} are taken for its features; to pretrain the "
                f"{layers[0].in_features} features before it, set net.{word} = torch.nn.Identity() "
                "first.",
                stacklevel=4,
            )
            return
