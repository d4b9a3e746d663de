"""Mixing inside an encoder: the output of a layer is mixed instead of the images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unmix.errors import UserError
from unmix.mixtures.draws import MixtureDraw
from unmix.mixtures.sums import weighted_sum

__all__ = ["layers_named", "mixed_at"]


@contextmanager
def mixed_at(module: nn.Module, layer: str, draw: MixtureDraw) -> Iterator[None]:
    """Within this context, the output of a layer is mixed, and what comes after it sees mixtures.

    Feature maps (N, C, h, w) are mixed as images of that size, and anything else, such as tokens
    (N, L, D), by the shares. Gradients flow to the features of all owners. What `torch.compile`
    made of the module is not used within, because it knows nothing of the layer's new output.

    A module that orders its batch another way than the images, such as an encoder with split batch
    norm, says so by an attribute `batch_order`: None, or int64 (N,), the number of the image that
    is at each place (see `unmix.backbones.apart`).

    Args:
        module: A method, an encoder or a backbone.
        layer: The layer's dotted name in it, or the end of that name: "layer2" is
            "f_q.backbone.layer2", and of two half-encoders it is the layer of both.
        draw: For the batch that will be encoded.

    Raises:
        UserError: if there is no such layer, the name could be several, or its output is no
            tensor.
        RuntimeError: if the layer was not run within the context, so that nothing was mixed.
    """
    ran: list[str] = []
    hooks = []
    for name in layers_named(module, layer):
        around = _around(module, name)

        def mix(
            _: nn.Module, __: Any, output: Any, name: str = name, around: Any = around
        ) -> Tensor:
            ran.append(name)
            if not isinstance(output, Tensor):
                raise UserError(
                    f"--unmix_layer: {layer!r} gives a {type(output).__name__} and no tensor; "
                    f"choose another layer, such as {_some(module)}."
                )
            return _in_order(output, draw, _order(around))

        hooks.append(module.get_submodule(name).register_forward_hook(mix))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        raise RuntimeError(f"the layer {layer!r} was not run, so nothing was mixed")


def layers_named(module: nn.Module, layer: str) -> list[str]:
    """The full names of the layers that a name stands for; several only in parallel encoders.

    Of several layers whose names end so, the outermost count.

    Raises:
        UserError: if there is none, or several that lie one after the other.
    """
    names = [name for name, _ in module.named_modules() if name]
    found = [name for name in names if f".{name}".endswith(f".{layer}")] if layer else []
    if not found:
        raise UserError(
            f"--unmix_layer: there is no layer {layer!r}; there are {_some(module)} and others."
        )
    least = min(name.count(".") for name in found)
    found = [name for name in found if name.count(".") == least]
    patterns = {re.sub(r"(?<=\.)\d+(?=\.)|\d+", "*", name) for name in found}
    if layer[0].isdigit() or len(patterns) < len(found):
        raise UserError(
            f"--unmix_layer: {layer!r} could be {', '.join(found[:3])} or another; give one of "
            "these names."
        )
    return found


def _in_order(output: Tensor, draw: MixtureDraw, order: Tensor | None) -> Tensor:
    """Mix rows that lie in another order than the images, and give the mixtures in that order."""
    if order is None:
        return _mixed(output, draw)
    mixed = _mixed(output[order.argsort()], draw)
    if len(mixed) == len(order):
        return mixed[order]
    # The first images have a mixture each, which take their images' places among themselves.
    kept = order.argsort()[: len(mixed)].argsort()
    return mixed[kept]


def _mixed(output: Tensor, draw: MixtureDraw) -> Tensor:
    if output.ndim == 4:
        return draw.resized(*output.shape[2:]).apply(output)
    return weighted_sum(output[: len(draw.owners)], output, draw.owners, draw.shares)


def _around(module: nn.Module, name: str) -> list[nn.Module]:
    """The modules that a layer lies in, from the outermost."""
    parts = name.split(".")
    return [module.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]


def _order(around: Sequence[nn.Module]) -> Tensor | None:
    orders = [getattr(module, "batch_order", None) for module in around]
    return next((order for order in orders if order is not None), None)


def _some(module: nn.Module) -> str:
    """The names of the layers of the backbone that one would choose, in a row."""
    inner = getattr(module, "backbone", module)
    children = dict(inner.named_children())
    while 0 < len(children) <= 2:
        inner = next(iter(children.values()))
        children = dict(inner.named_children())
    names = []
    for name, child in children.items():
        count = len(list(child.children()))
        numbered = isinstance(child, nn.Sequential | nn.ModuleList) and count > 4
        names.append(f"{name}.0 to {name}.{count - 1}" if numbered else name)
    return ", ".join(names)
