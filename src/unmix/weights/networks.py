"""Which network weights are of: by the shapes of their tensors, under the names used here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from unmix.backbones import RESNETS
from unmix.synonyms import timm_models
from unmix.weights.layouts import HALVES, Found

__all__ = ["Network", "has_qv_bias", "network_in", "network_of"]

_VIT_SIZES = {
    192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1408: "giant",
    1536: "giant", 4096: "7b",
}  # fmt: skip
_VIT_DEPTHS = {"large": 24, "huge": 32, "giant": 40, "7b": 40}  # of the others 12
_OF_VIT = {"depth": "number of blocks", "registers": "number of registers"}
_CIFAR_KERNEL = 3
_DEEP = ("resnet50", "resnet101", "resnet152")
_REGISTERS = ("register_tokens", "storage_tokens", "reg_token")


@dataclass(frozen=True)
class Network:
    """A network, as the settings of a run name it.

    Attributes:
        backbone: Its name; None if there is none that is known here.
        title: What it is, for people.
        facts: What two networks must have in common for one to take the other's weights.
        width: Factor on the channels.
        stem: "large", "small" (or medium: their tensors are the same), "padded" if the project's
            is (the same again), or "auto" of timm's models.
        patch: Side of the patches, if it is not that of the model `backbone`.
        depth: Number of blocks, likewise.
        registers: Number of register tokens, likewise.
        class_token: False if the model `backbone` has one, and the tensors have none.
        halves: Whether these are CMC's two half-encoders.
    """

    backbone: str | None
    title: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    width: float = 1.0
    stem: str = "auto"
    patch: int | None = None
    depth: int | None = None
    registers: int | None = None
    class_token: bool | None = None
    halves: bool = False

    def settings(self) -> dict[str, Any]:
        """The settings that build it."""
        if self.backbone is None:
            return {}
        found: dict[str, Any] = {"backbone": self.backbone}
        if not self.backbone.startswith("timm:"):
            found |= {"width": self.width, "stem": self.stem}
        for name in ("patch", "depth", "registers", "class_token"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        return found

    def advice(self, instead_of: Network) -> str:
        """The settings in backticks, as an error names them, to have this network and no other."""
        words = self.settings()
        if instead_of.width != self.width:
            words.setdefault("width", self.width)
        for name, fact in _OF_VIT.items():
            mine, its = self.facts.get(fact), instead_of.facts.get(fact)
            if mine is not None and its is not None and mine != its:
                words.setdefault(name, mine)
        return ", ".join(
            f"`{name}={value:g}`" if isinstance(value, float) else f"`{name}={value}`"
            for name, value in words.items()
        )

    def difference(self, other: Network) -> str | None:
        """What of this network the other does not have in common, in a clause; None if nothing."""
        for name in dict.fromkeys([*self.facts, *other.facts]):
            mine, its = self.facts.get(name), other.facts.get(name)
            if mine != its:
                shown = ("none" if value is None else value for value in (mine, its))
                return "its {} is {}, not {}".format(name, *shown)
        return None


def network_of(tensors: Mapping[str, Tensor]) -> Network | None:
    """Which network tensors are of; None if it is none of the known kinds."""
    half = {n.removeprefix(HALVES[0]): t for n, t in tensors.items() if n.startswith(HALVES[0])}
    of_halves = bool(half) and any(name.startswith(HALVES[1]) for name in tensors)
    return _one(half, halves=True) if of_halves else _one(tensors, halves=False)


def network_in(found: Found) -> Network | None:
    """As `network_of`, with what only the checkpoint's project tells."""
    network, stem = network_of(found.tensors), found.layout.stem
    if network is None or network.stem != "small" or stem is None:
        return network
    return replace(network, stem=stem)


def has_qv_bias(tensors: Mapping[str, Tensor]) -> bool:
    """Whether DINOv3's queries or values have a bias other than 0; that of the keys is unused."""
    for name, tensor in tensors.items():
        if name.endswith("attn.q_bias") and bool(tensor.any()):
            return True
        if name.endswith("attn.qkv.bias"):
            q, _, v = tensor.chunk(3)
            if bool(q.any()) or bool(v.any()):
                return True
    return False


def _one(tensors: Mapping[str, Tensor], *, halves: bool) -> Network | None:
    if "layer1.0.conv1.weight" in tensors:
        return _resnet(tensors, halves)
    if "conv1.0.weight" in tensors and "fc7.0.weight" in tensors:
        return _alexnet(tensors, halves)
    if "patch_embed.proj.weight" in tensors and _blocks(tensors):
        return _vit(tensors)
    return None


def _encoders(halves: bool, first: Tensor) -> str:
    if halves:
        return "CMC's two half-encoders"
    return f"one encoder of {first.shape[1]} channels"


def _stem(first: Tensor) -> tuple[str, str]:
    """The stem's name in the settings, and its title."""
    if first.shape[-1] > _CIFAR_KERNEL:
        return "large", "an ImageNet stem (large)"
    return "small", "a CIFAR stem (3x3 convolution: small or medium)"


def _alexnet(tensors: Mapping[str, Tensor], halves: bool) -> Network:
    first, width = tensors["conv1.0.weight"], tensors["fc7.0.weight"].shape[0] / 4096
    stem, stem_title = _stem(first)
    facts = {
        "kind": _encoders(halves, first), "network": "AlexNet", "width": width, "stem": stem_title,
    }  # fmt: skip
    title = f"AlexNet of width {width:g} with {stem_title}"
    return Network("alexnet", title, facts, width, stem, halves=halves)


def _resnet(tensors: Mapping[str, Tensor], halves: bool) -> Network:
    deep = "layer1.0.conv3.weight" in tensors
    depths = tuple(_count(tensors, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
    kinds = {(name in _DEEP, sizes): name for name, (_, sizes) in RESNETS.items()}
    name = kinds.get((deep, depths))  # type: ignore[arg-type]
    title = name or f"ResNet of {'-'.join(map(str, depths))} blocks"
    if "conv1.weight" not in tensors:
        return Network(None, f"{title} with a stem of several convolutions", {"network": title})
    first, inner = tensors["conv1.weight"], tensors["layer1.0.conv2.weight"]
    base = tensors["layer1.0.conv3.weight"].shape[0] // 4 if deep else inner.shape[0]
    stem, stem_title = _stem(first)
    known = name
    if inner.shape[1] != inner.shape[0]:
        known, title = None, f"ResNeXt of {'-'.join(map(str, depths))} blocks"
    elif inner.shape[0] != base:
        factor = inner.shape[0] // base
        known, title = (f"timm:wide_{name}_{factor}" if name else None), f"wide {title}, {factor}x"
    facts = {
        "kind": _encoders(halves, first), "network": title, "width": base / 64, "stem": stem_title,
        "number of channels of the first layer": first.shape[0],
    }  # fmt: skip
    title = f"{title} of width {base / 64:g} with {stem_title}"
    return Network(known, title, facts, base / 64, stem, halves=halves)


def _vit(tensors: Mapping[str, Tensor]) -> Network:
    patches = tensors["patch_embed.proj.weight"]
    dim, side = patches.shape[0], patches.shape[-1]
    size, depth = _VIT_SIZES.get(dim, str(dim)), _blocks(tensors)
    tokens = next((tensors[name].shape[1] for name in _REGISTERS if name in tensors), 0)
    scaled = any(name.endswith(("ls1.gamma", "gamma_1")) for name in tensors)
    gated = any(re.search(r"\.mlp\.(?:w12?|fc1_g)\.", name) for name in tensors)
    if "pos_embed" not in tensors:
        names = _dinov3_names(tensors, size)
    elif scaled:
        reg = f"_reg{tokens}" if tokens else ""
        names = [f"vit_{size}_patch{side}{reg}_dinov2", f"vit_{size}_patch14{reg}_dinov2"]
    elif "cls_token" not in tensors:
        names = [f"vit_{size}_patch{side}_gap_224", f"vit_{size}_patch{side}_gap_448"]
    else:
        names = [f"vit_{size}_patch{side}_224", f"vit_{size}_patch16_224"]
    facts = {
        "kind": "vision transformer",
        "number of dimensions": dim,
        "number of blocks": depth,
        "class token": "there" if "cls_token" in tensors else None,
        "number of registers": tokens,
        "layer scale": "there" if scaled else None,
        "position embedding": "learned" if "pos_embed" in tensors else "rotary",
    }
    title = f"ViT of {depth} blocks, {dim} dimensions and patches of {side} px"
    title += f", {tokens} registers" if tokens else ""
    title += ", gated MLPs" if gated else ""
    known = next((name for name in names if name in timm_models()), None)
    without = known is None and "cls_token" not in tensors and not scaled
    if without:
        names = [f"vit_{size}_patch{side}_224", f"vit_{size}_patch16_224"]
        known = next((name for name in names if name in timm_models()), None)
    if known is None:
        return Network(None, title, facts)
    usual = _usual_registers(known)
    return Network(
        f"timm:{known}", title, facts,
        patch=None if f"patch{side}_" in known else int(side),
        depth=None if depth == _VIT_DEPTHS.get(size, 12) else depth,
        registers=None if tokens == usual else int(tokens),
        class_token=False if without else None,
    )  # fmt: skip


def _usual_registers(name: str) -> int:
    """Register tokens of timm's model of a name."""
    named = re.search(r"_reg(\d+)_", name)
    return int(named[1]) if named else 4 * ("_dinov3" in name)


def _dinov3_names(tensors: Mapping[str, Tensor], size: str) -> list[str]:
    gated = any(".mlp.w1." in name or ".mlp.fc1_g." in name for name in tensors)
    plus = "_plus" if gated and size in ("small", "huge") else ""
    return [f"vit_{size}{plus}_patch16_dinov3{'_qkvb' if has_qv_bias(tensors) else ''}"]


def _blocks(tensors: Mapping[str, Tensor]) -> int:
    return _count(tensors, r"blocks\.(\d+)\.")


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers a pattern finds at the start of names."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
