"""Loading weights into a backbone, tensor by tensor."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import is_vit
from unmix.errors import UserError
from unmix.weights.layouts import HALVES, LAYOUTS, Found
from unmix.weights.networks import Network, has_qv_bias, network_in, network_of

__all__ = ["Loaded", "load_found"]

_ENOUGH = 0.9
_NAMED = 4
# What timm interpolates where the images or patches have another size.
_RESIZED = {
    "pos_embed": "position embeddings", "patch_embed.proj.weight": "patch embedding",
}  # fmt: skip
# Nothing depends on a step counter, and files of PyTorch before 0.4.1 have none.
_OPTIONAL = "num_batches_tracked"


@dataclass(frozen=True)
class Loaded:
    """What was loaded into a backbone.

    Attributes:
        matched: Number of the backbone's tensors that were taken from the file.
        wanted: Number of the backbone's tensors, without step counters.
        missing: Names of those that keep their initial values.
        unused: Names of the file's tensors that have no place in the backbone.
        resized: What was interpolated, in words.
        title: The layout of the file.
        note: What the encoder computes in another way than the file's network, in a clause.
    """

    matched: int
    wanted: int
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    resized: tuple[str, ...]
    title: str
    note: str = ""

    def line(self, name: str) -> str:
        """What matched and what did not, in one line.

        Args:
            name: Of the file, for people.
        """
        parts = [
            f"weights: {self.matched} of {self.wanted} tensors of the encoder from {name} "
            f"({self.title})"
        ]
        if self.missing:
            parts.append(f"not in it, so they start random: {_listed(self.missing)}")
        if self.resized:
            parts.append(f"interpolated: {', '.join(self.resized)}")
        if self.unused:
            parts.append(f"not used: {_listed(_modules(self.unused))}")
        if self.note:
            parts.append(f"note: {self.note}")
        return "; ".join(parts)

    def complete(self, name: str, title: str) -> Loaded:
        """The same, for a network that is used as it is.

        Args:
            name: Of the file, for messages.
            title: The network.

        Raises:
            UserError: if a tensor of the backbone is not in the file.
        """
        if self.missing:
            raise _error(
                name, f"lacks {len(self.missing)} of the {self.wanted} tensors of {title}, which "
                f"would be random in a network that is not trained: {', '.join(self.missing[:4])}"
            )  # fmt: skip
        return self


def load_found(backbone: nn.Module, found: Found, name: str) -> Loaded:
    """Copy the weights of a checkpoint into a backbone.

    Args:
        backbone: Changed in place. Vision transformers of timm may have patches and images of
            another size, to which embeddings are interpolated.
        found: The network in the checkpoint.
        name: Of the file, for messages.

    Raises:
        UserError: if it is another network, less than 90% of the backbone's tensors are there, one
            has another shape, the file has blocks that the backbone has not, or a value is not
            finite.
    """
    ours = backbone.state_dict()
    network = network_in(found)
    _check_network(ours, network, name)
    _check_attention(backbone, found, name)
    adapted, resized = _adapted(backbone, found.tensors)
    wanted = [key for key in ours if not key.endswith(_OPTIONAL)]
    matched = [key for key in wanted if key in adapted]
    if len(matched) < _ENOUGH * len(wanted):
        raise _too_few(name, found, wanted, matched)
    for key in ours.keys() & adapted.keys():
        if adapted[key].shape != ours[key].shape:
            raise _error(
                name, f"does not match the encoder: {key} has shape {tuple(adapted[key].shape)}, "
                f"not {tuple(ours[key].shape)}{_is_of(network)}"
            )  # fmt: skip
    unused = [key for key in adapted if key not in ours]
    _check_depth(ours, unused, name, network)
    if any(key.startswith("norm_pre.") for key in unused):
        raise _error(
            name, "has a norm before the blocks (norm_pre), as CLIP's transformers, which the "
            "encoder lacks, so that its weights give other features; give their `backbone` of timm"
        )  # fmt: skip
    for key in matched:
        if adapted[key].is_floating_point() and not adapted[key].isfinite().all():
            raise _error(name, f"has values of {key} that are not finite; it cannot be used")
    with torch.no_grad():
        for key in ours.keys() & adapted.keys():
            ours[key].copy_(adapted[key])
    missing = tuple(key for key in wanted if key not in adapted)
    return Loaded(
        len(matched), len(wanted), missing, (*unused, *found.others), resized, found.title,
        _padding_note(backbone, network, found),
    )  # fmt: skip


def _padding_note(backbone: nn.Module, network: Network | None, found: Found) -> str:
    """That the first convolutions pad differently, which no tensor shows."""
    first = getattr(backbone, "conv1", None)
    if network is None or network.stem != "padded" or not isinstance(first, nn.Conv2d):
        return ""
    if first.padding == (2, 2):
        return ""
    return (
        f"the 3x3 stem of {found.layout.name} has padding 2, and this one has 1, so that it "
        "computes other features; --stem padded is theirs"
    )


def _error(name: str, reason: str) -> UserError:
    return UserError(f"{name} {reason}.", parameter="init")


def _is_of(network: Network | None) -> str:
    return "" if network is None else f"; the file is of a {network.title}"


def _check_network(ours: Mapping[str, Tensor], network: Network | None, name: str) -> None:
    """Check that the weights are of the backbone's network, as far as both are known.

    Raises:
        UserError: with the first difference, and the settings of the weights' network.
    """
    own = network_of(ours)
    if own is None or network is None or (clause := network.difference(own)) is None:
        return
    if network.backbone is None:
        advice = "there is no such backbone here"
    elif own.halves and not network.halves:
        advice = "CMC needs weights of CMC; or give another `method`"
    elif network.halves and not own.halves:
        advice = f"give `method=cmc`, {network.advice(own)}"
    elif "first layer" in clause:
        advice = (
            "the original of CMC keeps 64 channels in the first layer whatever the width; only its "
            "width 1 (resnet50v2) can be taken over"
        )
    else:
        advice = f"give {network.advice(own)}"
    raise _error(
        name, f"has the weights of a {network.title}, and the encoder is a {own.title}: {clause}; "
        f"{advice}"
    )  # fmt: skip


def _check_attention(backbone: nn.Module, found: Found, name: str) -> None:
    """Check what the shapes do not show: the heads of attention, and biases that timm leaves out.

    Raises:
        UserError: if the backbone would compute something else with these weights.
    """
    ours: Any = backbone
    if not is_vit(backbone) or not hasattr(ours.blocks[0], "attn"):
        return
    heads, own = found.attention_heads, int(ours.blocks[0].attn.num_heads)
    if heads not in (None, own):
        raise _error(
            name, f"is of a ViT with {heads} attention heads ({found.title}), and the "
            f"encoder has {own} of the same shape, with which its weights give other features; "
            f"give `heads={heads}`"
        )  # fmt: skip
    has_bias = any(key.endswith(("q_bias", "qkv.bias")) for key in backbone.state_dict())
    if not has_bias and has_qv_bias(found.tensors):
        raise _error(
            name, "has biases of queries and values, which the encoder leaves out; give the "
            "`backbone` of timm whose name ends in _qkvb"
        )  # fmt: skip


def _adapted(
    backbone: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors as timm's own loading would give them, and what it interpolated.

    timm renames what it knows of other projects, and resizes embeddings.
    """
    module = type(backbone).__module__
    convert = getattr(import_module(module), "checkpoint_filter_fn", None)
    if not module.startswith("timm.") or convert is None:
        return dict(tensors), ()
    given = dict(tensors)
    if "register_tokens" in given:
        given.setdefault("mask_token", torch.zeros(1))  # by which timm knows DINOv2
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        try:
            adapted: dict[str, Tensor] = convert(given, backbone)
        # Not every network of timm has something to convert, or expects this one.
        except (KeyError, AttributeError, RuntimeError, TypeError, ValueError, AssertionError):
            return dict(tensors), ()
    adapted = {key: value for key, value in adapted.items() if isinstance(value, Tensor)}
    resized = tuple(
        f"{title} from {_size(key, tensors[key])} to {_size(key, adapted[key])}"
        for key, title in _RESIZED.items()
        if key in tensors and key in adapted and _changed(tensors[key], adapted[key])
    )
    return adapted, resized


def _changed(before: Tensor, after: Tensor) -> bool:
    """Whether an embedding was interpolated, and not only freed of its class token."""
    if before.dim() != 3:
        return before.shape[-2:] != after.shape[-2:]
    return abs(before.shape[1] - after.shape[1]) > 1


def _size(key: str, tensor: Tensor) -> str:
    if tensor.dim() == 4:
        return f"{tensor.shape[-1]} px"
    return f"{tensor.shape[1]} tokens"


def _check_depth(
    ours: Mapping[str, Tensor], unused: Iterable[str], name: str, network: Network | None
) -> None:
    """Check that the file has no blocks beyond the backbone's: it would be cut.

    Raises:
        UserError: with the first of them.
    """
    stages = {_stage(key) for key in ours}
    beyond = next((key for key in unused if _stage(key) in stages), None)
    if beyond is not None:
        raise _error(
            name, f"has tensors within the encoder that the encoder has not, such as {beyond}"
            f"{_is_of(network)}"
        )  # fmt: skip


def _stage(key: str) -> tuple[str, ...]:
    """The part of a network that a tensor is in: `layer3`, `blocks`, or `l.layer3` of CMC."""
    return tuple(key.split(".")[: 2 if key.startswith(HALVES) else 1])


def _too_few(name: str, found: Found, wanted: list[str], matched: list[str]) -> UserError:
    first = [key for key in found.tensors if key not in wanted][:_NAMED]
    absent = [key for key in wanted if key not in matched][:_NAMED]
    known = "; ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
    return _error(
        name, f"has {len(matched)} of the encoder's {len(wanted)} tensors, which is too few. Of "
        f"the file, {', '.join(first) or 'nothing'} found no place; the encoder lacks "
        f"{', '.join(absent)}. Known layouts: {known}"
    )  # fmt: skip


def _modules(names: Iterable[str]) -> tuple[str, ...]:
    """The outermost modules of tensors, each once."""
    return tuple(dict.fromkeys(name.split(".")[0] for name in names))


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
