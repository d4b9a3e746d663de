"""The layers of a backbone in order, and learning rates that decrease from last to first."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from unmix.backbones.alexnet import AlexNet
from unmix.backbones.build import is_vit
from unmix.backbones.half_encoders import HalfEncoders
from unmix.errors import UserError, check_number

__all__ = ["layer_numbers", "layer_scales", "parameter_groups"]

_RESNET = re.compile(r"layer(\d+)\.")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
# What precedes a transformer's blocks: patches, tokens, positions.
_EMBEDDING = re.compile(r"(patch_embed|\w+_token|\w*pos_embed|rope|rel_pos_bias|norm_pre)\b")


def layer_scales(
    backbone: nn.Module,
    decay: float,
    patch_embedding: float = 1.0,
    embeddings: Collection[nn.Parameter] = (),
) -> dict[nn.Parameter, float]:
    """The factor of each parameter's learning rate: decay^(L + 1 - l) in layer l of 0 to L.

    As in the fine-tuning code of BEiT (arXiv 2106.08254) and MAE (arXiv 2111.06377, table 9): a
    vision transformer's embedding is layer 0, its L blocks are layers 1 to L, and what follows
    them (the last norm) has factor 1, as has whatever is not in the backbone, such as a head. A
    ResNet's layers are its stem and its four stages, AlexNet's its convolutions and fully
    connected layers; each of CMC's half-encoders is counted by itself.

    Args:
        backbone: A backbone of this package or of timm.
        decay: In (0, 1]; 1 for the same rate everywhere.
        patch_embedding: Further factor of a transformer's patch embedding, as in DINOv2's code.
        embeddings: Parameters outside of the backbone that belong to layer 0, such as a mask token.

    Raises:
        UserError: if a factor is out of range, the backbone's layers are not known, or it has no
            patches.
    """
    check_number("lr_decay", decay, above=0, at_most=1)
    check_number("patch_embed_lr_mult", patch_embedding, above=0)
    if patch_embedding != 1 and not is_vit(backbone):
        raise UserError(
            f"{patch_embedding:g} applies to vision transformers alone, and "
            f"{type(backbone).__name__} has no patches; leave it out.",
            parameter="patch_embed_lr_mult",
        )
    scales: dict[nn.Parameter, float] = {}
    for part in _parts(backbone):
        numbers, last = layer_numbers(part)
        for name, parameter in part.named_parameters():
            further = patch_embedding if name.startswith("patch_embed.") else 1.0
            scales[parameter] = decay ** (last + 1 - numbers[name]) * further
        scales.update(dict.fromkeys(embeddings, decay ** (last + 1)))
    return scales


def layer_numbers(backbone: nn.Module) -> tuple[dict[str, int], int]:
    """The layer of each parameter of one backbone, by name, and L, the number of the last layer.

    L + 1 is the number of parameters that follow the last layer; see `layer_scales`.

    Raises:
        UserError: if the layers are not known.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if is_vit(backbone):
        last = len(backbone.blocks)  # type: ignore[arg-type]
        return {name: _of_transformer(name, last) for name in names}, last
    if isinstance(backbone, AlexNet):  # conv1 to conv5, fc6, fc7
        found = {n: int(n.partition(".")[0][-1]) - 1 for n in names}
        return found, max(found.values())
    if any(_RESNET.match(name) for name in names):
        found = {n: int(m[1]) if (m := _RESNET.match(n)) else 0 for n in names}
        return found, max(found.values())
    if hasattr(backbone, "group_matcher"):
        return _of_timm(backbone)
    raise UserError(
        f"the layers of {type(backbone).__name__} are not known, so their learning rates cannot "
        "differ; leave it out.",
        parameter="lr_decay",
    )


def parameter_groups(
    parameters: Iterable[nn.Parameter],
    lr: float,
    scales: Mapping[nn.Parameter, float],
    facts: Callable[[nn.Parameter], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Group parameters for an optimizer by their learning rate and other facts.

    Args:
        parameters: The parameters; those that need no gradient are left out.
        lr: Learning rate of a factor of 1.
        scales: Factors, as of `layer_scales`; 1 for other parameters. If there are any, each group
            says its learning rate as `lr` and its factor as `lr_scale`.
        facts: What else a parameter's group says, such as its weight decay.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        said = dict(facts(parameter))
        if scales:
            scale = scales.get(parameter, 1.0)
            said |= {"lr": lr * scale, "lr_scale": scale}
        key = tuple(sorted(said.items()))
        groups.setdefault(key, {"params": [], **said})["params"].append(parameter)
    return list(groups.values())


def _parts(backbone: nn.Module) -> Iterator[nn.Module]:
    if isinstance(backbone, HalfEncoders):
        yield backbone.l
        yield backbone.ab
    else:
        yield backbone


def _of_transformer(name: str, blocks: int) -> int:
    if block := _BLOCK.match(name):
        return int(block[1]) + 1
    return 0 if _EMBEDDING.match(name) else blocks + 1


def _of_timm(backbone: Any) -> tuple[dict[str, int], int]:
    """By timm's own stages; what stands after them is a layer too."""
    from timm.models import group_parameters

    found = group_parameters(backbone, backbone.group_matcher(coarse=True), reverse=True)
    return dict(found), max(found.values())
