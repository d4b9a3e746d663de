"""Manifold mixup: the output of a layer is mixed instead of pixels."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from unmix.errors import UserError
from unmix.mixtures.draws import MixtureDraw, PairDraw, whole_image
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.sampling import PAIRINGS, Pairing, Weight, checked_shape
from unmix.mixtures.sums import weighted_sum

__all__ = ["FeatureDraw", "ManifoldMixture", "layers_named", "mixed_at"]


@dataclass(frozen=True)
class FeatureDraw(PairDraw):
    """Mixtures of pairs of the output of a layer.

    Attributes:
        layer: Its name; see `unmix.mixtures.mixed_at`.
    """

    mixes_pixels: ClassVar[bool] = False
    mixes_regions: ClassVar[bool] = False  # type: ignore[misc]

    layer: str = ""

    def query(self, method: Any, images: Tensor, others: Sequence[Tensor] = ()) -> Any:
        """A method's query of its first view, whose features are mixed on the way."""
        with mixed_at(method, self.layer, self):
            return method.query(images, 0)


@dataclass(frozen=True)
class ManifoldMixture(PairOperator):
    """A global mixture of the output of a layer; see `unmix.mixtures.mixed_at`.

    Source: Verma et al. 2019 (ICML, Manifold Mixup), Sec. 2, with a layer that is chosen instead of
    one drawn at random at each step.

    Args:
        layer: Name of the layer in the backbone: "layer2" of a ResNet, "blocks.5" of a ViT.
        weight: The distribution of lambda.
        per: One weight per `batch`, or per `sample`.
        pairing: See `unmix.mixtures.sampling.partners`; not "second_view".

    Raises:
        UserError: if a string is none of its choices.
    """

    one_draw = "one weight"
    mixes_pixels: ClassVar[bool] = False

    layer: str = parameter(setting="unmix_layer")
    weight: Weight = Weight()  # noqa: RUF009 - frozen
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairing == "second_view":
            raise UserError(
                "second_view mixes pixels of two views, and manifold the features of one; use "
                "reverse, permutation, halves or neighbor.",
                parameter="pairing",
                owner="ManifoldMixture",
            )

    def describe_mixing(self) -> str:
        """Which features are mixed, and the distribution of lambda."""
        return f"global, of the output of {self.layer}; {self.weight}"

    def for_encoder(self, encoder: nn.Module, name: str, patch: int | None) -> ManifoldMixture:
        """The same operator, if the encoder has the layer.

        Raises:
            UserError: if it has none of that name, or several, or its output is computed again in
                the backward pass.
        """
        for found in layers_named(encoder, self.layer):
            if any(map(_computes_again, _around(encoder, found))):
                raise _again(self.layer)
        return self

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> FeatureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for nearest neighbors."""
        n, height, width = checked_shape(shape)
        ratio = self.weight.draw(self._times(n), generator)
        partner = self._partner(n, generator, features)
        m = len(partner)
        return FeatureDraw(
            partner,
            whole_image(m, height, width),
            ratio.expand(m),
            (height, width),
            per_sample=self.per == "sample",
            batch=n,
            layer=self.layer,
        )


@contextmanager
def mixed_at(module: nn.Module, layer: str, draw: MixtureDraw) -> Iterator[None]:
    """Within this context, the output of a layer is mixed, and what comes after it sees mixtures.

    Feature maps (N, C, h, w) are mixed as images of that size, and anything else, such as tokens
    (N, L, D), by the shares. Gradients flow to the features of all owners. What `torch.compile`
    made of the module is not used within, because it knows nothing of the layer's new output. With
    activation checkpointing the layer must lie outside of the checkpointed blocks, whose output the
    backward pass computes again, when this context has ended.

    A module that orders its batch another way than the images, such as an encoder with split batch
    norm, says so by an attribute `batch_order`: None, or int64 (N,), the number of the image that
    is at each place (see `unmix.backbones.apart`).

    Args:
        module: A method, an encoder or a backbone.
        layer: The layer's dotted name in it, or the end of that name: "layer2" is
            "f_q.backbone.layer2", and of two half-encoders it is the layer of both.
        draw: For the batch that will be encoded. Boxes and masks are scaled to whole cells of a
            feature map (h, w), so the loss is shared by `draw.resized(h, w)`.

    Raises:
        UserError: if there is no such layer, the name could be several, its output is no tensor,
            or it lies in a checkpointed block.
        RuntimeError: if the layer was not run within the context, so that nothing was mixed.
    """
    ran: list[str] = []
    hooks = []
    trained, outside = torch.is_grad_enabled(), sys._getframe(2)
    for name in layers_named(module, layer):
        around = _around(module, name)

        def mix(
            _: nn.Module, __: Any, output: Any, name: str = name, around: Any = around
        ) -> Tensor:
            ran.append(name)
            if trained and _in_checkpoint(sys._getframe(1), outside):
                raise _again(layer)
            if not isinstance(output, Tensor):
                raise UserError(
                    f"{layer!r} gives a {type(output).__name__} and no tensor; choose another "
                    f"layer, such as {_some(module)}.",
                    parameter="layer",
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


def _computes_again(module: nn.Module) -> bool:
    """Whether a module's blocks are checkpointed, by `checkpoint_activations` or by timm."""
    forward = vars(module).get("forward")
    ours = getattr(forward, "__name__", "") == "_checkpointed"
    return ours or bool(getattr(module, "grad_checkpointing", False))


def _in_checkpoint(frame: FrameType | None, outside: FrameType) -> bool:
    """Whether a call from within the function `outside` went through PyTorch's checkpointing."""
    while frame is not None and frame is not outside:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def _again(layer: str) -> UserError:
    return UserError(
        f"{layer!r} lies in blocks whose activations are computed again in the backward pass, "
        "without the mixture; leave activation checkpointing (`checkpoint_activations`) out, or "
        "mix the output of a whole stage.",
        parameter="layer",
    )


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
            f"there is no layer {layer!r}; there are {_some(module)} and others.",
            parameter="layer",
        )
    least = min(name.count(".") for name in found)
    found = [name for name in found if name.count(".") == least]
    patterns = {re.sub(r"(?<=\.)\d+(?=\.)|\d+", "*", name) for name in found}
    if layer[0].isdigit() or len(patterns) < len(found):
        raise UserError(
            f"{layer!r} could be {', '.join(found[:3])} or another; give one of these names.",
            parameter="layer",
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
    batch = getattr(draw, "batch", None)
    if batch not in (None, len(output)):
        raise UserError(
            f"draw: is for {batch} images, and {len(output)} were encoded; draw for each batch."
        )
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
