"""The output of any layer of an encoder, as features."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn

from unmix.backbones import HalfEncoders
from unmix.errors import UserError
from unmix.evaluation.features import evaluating

__all__ = ["LayerFeatures", "check_layer", "layer_names"]

_NAMED = 4


def layer_names(backbone: nn.Module) -> tuple[str, ...]:
    """Names of the layers of a backbone, such as "layer3" or "blocks.5", in its own order.

    Of half-encoders they are the names within each half; "l.layer3" is that of one half.
    """
    names = [name for name, _ in backbone.named_modules() if name]
    if isinstance(backbone, HalfEncoders):
        names = [*(name for name, _ in backbone.l.named_modules() if name), *names]
    return tuple(names)


def check_layer(backbone: nn.Module, layer: str) -> str:
    """Return the name of a layer if the backbone has it.

    Raises:
        UserError: if not, with the most similar names and the outermost ones.
    """
    names = layer_names(backbone)
    if layer in names:
        return layer
    near = difflib.get_close_matches(layer, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    outer = [name for name in names if "." not in name]
    inner = len(names) - len(outer)
    more = f", and {inner:,} within them, such as {_example(names)!r}" if inner else ""
    raise UserError(
        f"the encoder has no layer {layer!r}.{hint} Its layers: {', '.join(outer)}{more}.",
        parameter="layer",
    )


def _example(names: tuple[str, ...]) -> str:
    """The name of a block, rather than of a part of one."""
    return next((name for name in names if name.rpartition(".")[2].isdecimal()), names[-1])


class _ReachedError(Exception):
    """The forward need not go on."""


class LayerFeatures(nn.Module):
    """An encoder up to one of its layers: images (N, 3, size, size) to its features (N, D).

    Maps (N, C, H, W) are averaged over positions. Tokens (N, T, C) are pooled as the transformer
    pools its last ones: the class token, or the mean of the patches' tokens, which in its patch
    embedding are all there are. Of half-encoders the features are concatenated. What comes after
    the layer is not computed.

    Args:
        backbone: The encoder.
        layer: Name of a layer; see `layer_names`.
        size: Side of the images in pixels.
        pool: Whether to pool; else the output of the layer is returned as it is.

    Attributes:
        feature_dim: D; without `pool` the number of elements for each image.

    Raises:
        UserError: if there is no such layer, a forward does not use it, or its output cannot be
            pooled.
    """

    feature_dim: int

    def __init__(self, backbone: nn.Module, layer: str, size: int, *, pool: bool = True) -> None:
        super().__init__()
        self.layer, self.pool = check_layer(backbone, layer), pool
        self.backbone = backbone
        self._calls = 0
        self._channels_last = False
        self._parts: tuple[LayerFeatures, ...] = ()  # of both halves
        if isinstance(backbone, HalfEncoders) and _has(backbone.l, layer):
            halves = (backbone.l, backbone.ab)
            self._parts = tuple(LayerFeatures(half, layer, size, pool=pool) for half in halves)
            self.feature_dim = sum(part.feature_dim for part in self._parts)
        else:
            self.feature_dim = self._measure(size)

    def _measure(self, size: int) -> int:
        """Run the layer once, and say how long its features are."""
        weight = next(self.backbone.parameters())
        channels = _channels(self.backbone)
        images = torch.zeros(1, channels, size, size, device=weight.device, dtype=weight.dtype)
        with evaluating(self.backbone), torch.no_grad():
            found = self._outputs(images)
            self._calls = len(found)
            if not found:
                raise self._refused("is not used when images are encoded")
            if not isinstance(found[-1], Tensor) or found[-1].ndim < 2:
                raise self._refused("does not give one tensor for the images")
            if not self.pool:
                return found[-1][0].numel()
            if found[-1].ndim == 4:
                _, a, b, c = found[-1].shape
                if b != c and a != b:
                    raise self._refused(
                        f"gives {tuple(found[-1].shape)} for an image, which is no map of features"
                    )
                nhwc = getattr(self.backbone, "output_fmt", "") == "NHWC"  # timm's Swin
                self._channels_last = b != c or (a == b and nhwc)
            if found[-1].ndim > 4:
                raise self._refused(f"gives {tuple(found[-1].shape)}, which is no map of features")
            return self._pooled(found[-1]).shape[1]

    def _refused(self, why: str) -> UserError:
        return UserError(f"{self.layer!r} {why}; give another layer.", parameter="layer")

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """What the layer gave; a layer may be used several times."""
        found: list[Tensor] = []

        def keep(module: nn.Module, given: object, output: Tensor) -> None:
            found.append(output)
            # At its last use: what follows may change the output in place.
            if len(found) == self._calls:
                raise _ReachedError

        handle = self.backbone.get_submodule(self.layer).register_forward_hook(keep)
        try:
            self.backbone(images)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return found

    def _pooled(self, output: Tensor) -> Tensor:
        if output.ndim == 4:
            return output.mean(dim=(1, 2) if self._channels_last else (2, 3))
        if output.ndim == 3:
            before = self.layer.partition(".")[0] == "patch_embed"  # no other tokens yet
            prefix = 0 if before else int(getattr(self.backbone, "num_prefix_tokens", 0))
            if prefix and getattr(self.backbone, "global_pool", "token") == "token":
                return output[:, 0]
            return output[:, prefix:].mean(dim=1)
        return output

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to features (N, D), or to the layer's output."""
        if self._parts:
            parts = zip(self._parts, (images[:, :1], images[:, 1:]), strict=True)
            return torch.cat([part(channels) for part, channels in parts], dim=1)
        output = self._outputs(images)[-1]
        return self._pooled(output) if self.pool else output


def _has(backbone: nn.Module, layer: str) -> bool:
    return any(name == layer for name, _ in backbone.named_modules())


def _channels(backbone: nn.Module) -> int:
    """Channels of the images that a backbone takes."""
    if isinstance(backbone, HalfEncoders):
        return 3
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels
