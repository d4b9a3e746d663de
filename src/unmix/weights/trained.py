"""Trained networks, built from their weights: what `teacher` names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unmix import backbones
from unmix.errors import UserError
from unmix.weights.facts import settings_of
from unmix.weights.layouts import Found
from unmix.weights.matching import Loaded, load_found
from unmix.weights.names import TIMM, TORCHVISION
from unmix.weights.networks import Network, network_in
from unmix.weights.sources import Preparation, Weights, usual_preparation

__all__ = ["Trained", "trained_network"]

# The first convolutions of the networks that are known, and of most of timm's and torchvision's.
_FIRST = (
    "conv1.weight", "conv1.0.weight", "patch_embed.proj.weight", "conv_stem.weight",
    "stem.0.weight", "stem.conv.weight", "features.0.weight", "features.0.0.weight",
)  # fmt: skip
_RGB = 3
_DENSE = re.compile(
    r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"
)


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        network: Images to pooled features (N, D); all of its tensors are from the weights.
        title: What it is, for people, such as "resnet18 of width 0.5".
        preparation: How its images are prepared.
        size: Side of its images in pixels.
        feature_dim: D.
        loaded: What was taken from where, in words.
    """

    network: nn.Module
    title: str
    preparation: Preparation
    size: int
    feature_dim: int
    loaded: str


def trained_network(
    weights: Weights, *, backbone: str | None = None, size: int | None = None
) -> Trained:
    """Build the network that weights are of, and load them, all of them.

    Args:
        weights: Opened.
        backbone: Its name, such as timm:NAME; by default as the source says, else by the shapes.
        size: Side of the images in pixels that it will see; by default its own.

    Raises:
        UserError: if it is not known which network it is, it is not for RGB images, takes no images
            of this size, gives no features, or a tensor of it is not in the file.
    """
    own = weights.facts
    found = weights.found()
    network = network_in(found)
    _check_rgb(weights, found, network, own)
    preparation = weights.preparation or usual_preparation(network)
    side = size or preparation.size or usual_preparation(network).size
    assert side is not None
    with torch.random.fork_rng(devices=[]):
        words = _words(weights, network, own, backbone)
        if words is None:
            title = weights.name
            built, loaded = _of_torchvision(weights)
        else:
            name = words.pop("backbone")
            title = name if words.get("width", 1.0) == 1 else f"{name} of width {words['width']:g}"
            _check_patch(name, words, side)
            built = backbones.build(name, size=side, **words)
            loaded = load_found(built, weights.found(built), weights.name)
    loaded.complete(weights.name, title)
    dim = _dim(built, side, title)
    told = f"{loaded.matched} of {loaded.wanted} tensors from {weights.name} ({loaded.title})"
    told += "".join(f", {each}" for each in loaded.resized)
    return Trained(built.eval().requires_grad_(False), title, preparation, side, dim, told)


def _check_rgb(
    weights: Weights, found: Found, network: Network | None, own: Mapping[str, Any]
) -> None:
    """Check that the network sees RGB images.

    Raises:
        UserError: if it does not.
    """
    space = own.get("color_space", "RGB")
    if space != "RGB" or (network is not None and network.halves):
        space = "CMC's color spaces" if space == "RGB" else space
        raise UserError(
            f"{weights.name} is an encoder of CMC for images in {space}, and the views are RGB; "
            "give a network for RGB images.",
            parameter="init",
        )
    first = next((found.tensors[name] for name in _FIRST if name in found.tensors), None)
    if first is not None and first.dim() == 4 and first.shape[1] != _RGB:
        count = first.shape[1]
        raise UserError(
            f"{weights.name} is for images of {count} channel{'s' * (count > 1)}, and the views "
            f"have {_RGB} (RGB); give a network for RGB images.",
            parameter="init",
        )


def _words(
    weights: Weights, network: Network | None, own: Mapping[str, Any], backbone: str | None
) -> dict[str, Any] | None:
    """What to build with `backbones.build`; None for a classifier of torchvision by its name.

    Raises:
        UserError: if it is not known.
    """
    words: dict[str, Any]
    if backbone is not None:
        words = {"backbone": backbone}
        if network is not None and network.backbone == backbone:
            words = network.settings()
    elif own:
        words = settings_of(own)
    elif weights.backbone is not None:
        words = {"backbone": weights.backbone}
    elif network is not None and network.backbone is not None:
        words = network.settings()
    elif weights.name.startswith(TORCHVISION):
        return None
    else:
        of = "a network that is not known here" if network is None else f"a {network.title}"
        raise UserError(
            f"{weights.name} is of {of}; give its name too, such as {TIMM}NAME.",
            parameter="backbone",
        )
    if (heads := weights.found().attention_heads) is not None and "heads" not in words:
        words["heads"] = heads
    return words


def _of_torchvision(weights: Weights) -> tuple[nn.Module, Loaded]:
    """A classifier of torchvision, without its last linear layer, and what was loaded.

    Raises:
        UserError: if it has no such layer.
    """
    from torchvision import models

    name = weights.name.removeprefix(TORCHVISION).partition(".")[0]
    model: Any = models.get_model(name, weights=None)
    if hasattr(model, "transform_input"):
        model.transform_input = True  # as its trained weights expect
    linear = [key for key, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UserError(
            f"{weights.name} has no linear classifier, before which features would be.",
            parameter="init",
        )
    parent, _, last = linear[-1].rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    # Files of DenseNets have the names of an earlier version.
    given = {
        _DENSE.sub(r"\1\2", str(key)): value for key, value in weights.checkpoint.content.items()
    }
    ours = model.state_dict()
    missing = tuple(key for key in ours if key not in given)
    model.load_state_dict({key: given.get(key, value) for key, value in ours.items()})
    found = len(ours) - len(missing)
    return model, Loaded(found, len(ours), missing, (), (), "torchvision")


def _check_patch(name: str, words: Mapping[str, Any], side: int) -> None:
    """Check that patches fill the images, before a network is built that would say it otherwise."""
    named = re.search(r"_patch(\d+)", name)
    patch = words.get("patch") or (int(named[1]) if named else None)
    if patch is None or side % patch == 0:
        return
    near = max(patch, side // patch * patch)
    raise UserError(
        f"{side} px are not filled by the patches of {patch} px of {name}; use a multiple, such "
        f"as {near}.",
        parameter="size",
    )


def _dim(network: nn.Module, side: int, title: str) -> int:
    """D, of a forward of two blank images."""
    network.eval()
    try:
        with torch.no_grad():
            features = network(torch.zeros(2, _RGB, side, side))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{title} takes no images of {side} px ({reason}); give another.", parameter="size"
        ) from None
    if not isinstance(features, torch.Tensor) or features.dim() != 2:
        raise UserError(
            f"{title} gives no features (N, D); give another network.", parameter="backbone"
        )
    return int(features.shape[1])
