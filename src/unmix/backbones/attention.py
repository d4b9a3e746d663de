"""Where an encoder looks: the attention of a vision transformer, the activation of other ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from unmix.backbones.build import is_vit
from unmix.backbones.half_encoders import HalfEncoders
from unmix.backbones.maps import hooks, last_map, patch_rows
from unmix.backbones.modes import in_evaluation_mode
from unmix.errors import UserError

__all__ = ["attention_map"]

_Map = Callable[[tuple[int, ...]], Tensor | None]
"""From the size (H, W) of the images to the map of the forward that was watched, if it had one."""


@torch.no_grad()
def attention_map(
    backbone: nn.Module, images: Tensor, encode: Callable[[Tensor], Any] | None = None
) -> Tensor:
    """Where a backbone looks in each image: float32 (N, rows, columns), at least 0.

    Of a transformer, the attention of the class token to the patches in the last block, or without
    one that of all patches, as the mean of the heads; of one whose last block has no attention
    between patches, the sum of its tokens' squares. Of a convolutional network, the sum over the
    channels of the squared last feature map of more than one pixel (Zagoruyko and Komodakis 2017).
    Of two half-encoders, the sum of both maps, each divided by its mean. The backbone is used as in
    evaluation, in a forward of its own without gradients; it and its batch norm are left as they
    were.

    Args:
        backbone: The encoder; also within another module that `encode` runs.
        images: (N, C, H, W), normalized.
        encode: Runs it; by default the backbone itself.

    Raises:
        UserError: if it has no such map.
    """
    parts = [backbone.l, backbone.ab] if isinstance(backbone, HalfEncoders) else [backbone]
    with (
        in_evaluation_mode(backbone),
        torch.compiler.set_stance("force_eager"),
        ExitStack() as stack,
    ):
        watched = [stack.enter_context(_watching(part)) for part in parts]
        (encode or backbone)(images)
    maps = [of_images(tuple(images.shape[2:])) for of_images in watched]
    found = [each for each in maps if each is not None]
    if len(found) < len(parts):
        raise UserError(
            f"{type(parts[0]).__name__} has no map that says where it looks: neither attention "
            "between patches nor a last feature map; use saliencymix, or another backbone.",
            parameter="mixture",
        )
    if len(found) == 1:
        return found[0]
    return torch.stack([each / each.mean(dim=(1, 2), keepdim=True) for each in found]).sum(0)


def _watching(backbone: nn.Module) -> AbstractContextManager[_Map]:
    return _tokens_of(backbone) if is_vit(backbone) else _feature_map_of(backbone)


@contextmanager
def _feature_map_of(backbone: nn.Module) -> Iterator[_Map]:
    with last_map(backbone, lambda output: output.float().square().sum(dim=1)) as found:
        yield lambda _: found[0]


@contextmanager
def _tokens_of(backbone: Any) -> Iterator[_Map]:
    """Attention to all tokens is seen where it is computed, so with the positions in it."""
    prefix = int(getattr(backbone, "num_prefix_tokens", 0))
    block = backbone.blocks[-1]
    attention = getattr(block, "attn", None) or nn.Identity()
    # CaiT adds its class token after these blocks.
    has_class = getattr(backbone, "cls_token", None) is not None and prefix > 0
    energy: list[Tensor] = []
    seen = _Attention(slice(0, 1) if has_class else slice(prefix, None))

    def keep_energy(_: nn.Module, __: Any, output: Tensor) -> None:
        tokens = output.flatten(1, -2)  # SAM's are rows and columns
        energy[:] = [tokens[:, prefix:].float().square().sum(dim=2)]

    def enter(*_: Any) -> None:
        seen.inside = True

    def leave(*_: Any) -> None:
        seen.inside = False

    def on(size: tuple[int, ...]) -> Tensor | None:
        tokens = energy[0] if energy else None
        if tokens is None:
            return None
        rows = patch_rows(backbone, size, tokens.shape[1])
        if rows is None:
            return None
        weights = seen.weights
        if weights is not None and weights.shape[1] == prefix + tokens.shape[1]:
            tokens = weights[:, prefix:]
        return tokens.unflatten(1, (rows, -1))

    dropped = getattr(attention, "attn_drop", None)
    with (
        seen,
        hooks(
            block.register_forward_hook(keep_energy),
            attention.register_forward_pre_hook(enter),
            attention.register_forward_hook(leave),
            *([dropped.register_forward_hook(seen.unfused)] if dropped is not None else []),
        ),
    ):
        yield on


class _Attention(TorchFunctionMode):
    """Keeps the attention weights of some queries, while it is `inside` of the module asked for.

    Args:
        queries: Of the tokens.

    Attributes:
        weights: The mean over heads and queries, (N, L) of L tokens.
    """

    def __init__(self, queries: slice) -> None:
        super().__init__()
        self.queries, self.inside = queries, False
        self.weights: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside and func is F.scaled_dot_product_attention:
            self._fused(*args, **kwargs)
        return func(*args, **kwargs)

    def _fused(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any,
        scale: float | None = None, **__: Any,
    ) -> None:  # fmt: skip
        some = q[..., self.queries, :].float()
        scores = some @ k.float().transpose(-2, -1) * (scale or q.shape[-1] ** -0.5)
        if attn_mask is not None:
            mask = attn_mask[..., self.queries, :] if attn_mask.shape[-2] > 1 else attn_mask
            scores = (
                scores.masked_fill(~mask, -torch.inf)
                if mask.dtype == torch.bool
                else (scores + mask)
            )
        self.weights = scores.softmax(-1).mean(dim=(1, 2))

    def unfused(self, _: nn.Module, __: Any, weights: Tensor) -> None:
        """Take the weights (N, heads, L, L) where they are computed one by one."""
        if weights.ndim == 4 and weights.shape[2] == weights.shape[3]:
            self.weights = weights[:, :, self.queries].float().mean(dim=(1, 2))
