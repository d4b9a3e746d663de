"""Where an encoder looks: the attention of a vision transformer, the activation of other ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones.build import is_vit, patch_side
from unmix.errors import UserError

__all__ = ["attention_map"]


@torch.no_grad()
def attention_map(
    backbone: nn.Module, images: Tensor, encode: Callable[[Tensor], Any] | None = None
) -> Tensor:
    """Where a backbone looks in each image: float32 (N, rows, columns), at least 0.

    Of a transformer, the attention of the class token to the patches in the last block, or without
    one that of all patches, as the mean of the heads. Of a convolutional network, the sum over the
    channels of the squared last feature map of more than one pixel (Zagoruyko and Komodakis 2017).
    The backbone is used as in evaluation, in a forward of its own without gradients; it and its
    batch norm are left as they were.

    Args:
        backbone: The encoder; also within another module that `encode` runs.
        images: (N, C, H, W), normalized.
        encode: Runs it; by default the backbone itself.

    Raises:
        UserError: if it has no feature map.
    """
    training = [(module, module.training) for module in backbone.modules()]
    watch = _last_attention(backbone) if is_vit(backbone) else _last_feature_map(backbone)
    maps, hooks = watch
    backbone.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            (encode or backbone)(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, before in training:
            module.training = before
    if not maps:
        raise UserError(
            f"{type(backbone).__name__} has no feature map that says where it looks; use another "
            "mixture, such as saliencymix.",
            parameter="mixture",
        )
    found = maps[-1]
    if is_vit(backbone):
        side = patch_side(backbone)
        rows = images.shape[2] // side
        return found.unflatten(1, (rows, -1))
    return found


_Watch = tuple[list[Tensor], list[Any]]


def _last_feature_map(backbone: nn.Module) -> _Watch:
    maps: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if (
            isinstance(output, Tensor)
            and output.ndim == 4
            and output.shape[2] * output.shape[3] > 1
        ):
            maps[:] = [output.float().square().sum(dim=1)]

    return maps, [module.register_forward_hook(keep) for module in backbone.modules()]


def _last_attention(backbone: Any) -> _Watch:
    """Queries and keys are computed again: fused attention does not give its weights."""
    maps: list[Tensor] = []
    attention = getattr(backbone.blocks[-1], "attn", None)
    prefix = int(getattr(backbone, "num_prefix_tokens", 0))

    def from_tokens(_: nn.Module, __: Any, output: Any) -> None:
        maps.append(output[:, prefix:].float().square().sum(dim=2))

    if attention is None or not hasattr(attention, "qkv"):
        return maps, [backbone.blocks[-1].register_forward_hook(from_tokens)]

    def from_queries(_: nn.Module, __: Any, output: Tensor) -> None:
        n, length, _width = output.shape
        heads = attention.num_heads
        q, k, _v = output.view(n, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (
            getattr(attention, name, nn.Identity())(x) for name, x in (("q_norm", q), ("k_norm", k))
        )
        first = (
            q[:, :, :1] if getattr(backbone, "cls_token", None) is not None else q[:, :, prefix:]
        )
        scores = first.float() @ k.float().transpose(2, 3) / q.shape[-1] ** 0.5
        maps.append(scores.softmax(dim=3)[..., prefix:].mean(dim=(1, 2)))

    return maps, [attention.qkv.register_forward_hook(from_queries)]
