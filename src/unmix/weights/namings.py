"""How projects name the tensors of a network, and the rules that give the names used here.

The names used here are torchvision's for ResNets and timm's for everything else. What timm renames
itself (`w12` of DINOv2, `storage_tokens` of DINOv3) is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NAMINGS", "Naming", "naming_of"]


@dataclass(frozen=True)
class Naming:
    """The names of one implementation of a network.

    Attributes:
        title: What it is, for people.
        marker: Regular expression of a name that only this implementation has.
        rules: Pairs of a regular expression and its replacement, applied in order to each name.
        fuse: Whether queries, keys and values are three tensors, here one.
    """

    title: str
    marker: str
    rules: tuple[tuple[str, str], ...] = ()
    fuse: bool = False

    @property
    def example(self) -> str:
        """The name that is the marker."""
        return re.sub(r"\(\?:[^)]*\)\?|\\|\$", "", self.marker)

    def marks(self, names: Mapping[str, Tensor]) -> bool:
        """Whether tensors have such names."""
        marker = re.compile(self.marker)
        return any(marker.match(name) for name in names)

    def convert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the names used here."""
        rules = [(re.compile(pattern), new) for pattern, new in self.rules]
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            for pattern, new in rules:
                name = pattern.sub(new, name)
            found[name] = tensor
        return _fused(found) if self.fuse else found


_RESNET_STAGES = tuple((rf"^{stage + 3}\.", f"layer{stage}.") for stage in range(1, 5))
_HF_BLOCKS = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(?:intermediate\.dense|mlp\.intermediate\.dense)\.", ".mlp.fc1."),
    (r"\.(?:mlp\.)?output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)  # fmt: skip

NAMINGS: dict[str, Naming] = {
    "cmc-alexnet": Naming(
        "CMC's AlexNet", r"conv_block_1\.0\.weight$", ((r"^conv_block_(\d)\.", r"conv\1."),),
    ),
    "hf-resnet": Naming(
        "HF transformers ResNet", r"embedder\.embedder\.convolution\.weight$",
        (
            (r"^embedder\.embedder\.convolution\.", "conv1."),
            (r"^embedder\.embedder\.normalization\.", "bn1."),
            (r"^encoder\.stages\.(\d)\.layers\.(\d+)\.",
             r"stage\1.\2."),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
            *((rf"\.layer\.{n}\.convolution\.", f".conv{n + 1}.") for n in range(3)),
            *((rf"\.layer\.{n}\.normalization\.", f".bn{n + 1}.") for n in range(3)),
            *((rf"^stage{n}\.", f"layer{n + 1}.") for n in range(4)),
        ),
    ),
    "hf-dinov3": Naming(
        "HF transformers DINOv3 ViT", r"embeddings\.patch_embeddings\.weight$",
        (
            (r"^embeddings\.register_tokens$", "storage_tokens"),
            *_HF_BLOCKS,
            (r"\.mlp\.gate_proj\.", ".mlp.w1."),
            (r"\.mlp\.up_proj\.", ".mlp.w2."),
            (r"\.mlp\.down_proj\.", ".mlp.w3."),
        ),
        fuse=True,
    ),
    "hf-vit": Naming(
        "HF transformers ViT, ViTMAE, DINOv2, I-JEPA",
        r"embeddings\.patch_embeddings\.projection\.weight$",
        ((r"^embeddings\.register_tokens$", "register_tokens"), *_HF_BLOCKS),
        fuse=True,
    ),
    "torchvision-vit": Naming(
        "torchvision ViT", r"conv_proj\.weight$",
        (
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^class_token$", "cls_token"),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
            (r"^encoder\.ln\.", "norm."),
        ),
    ),
    "mmpretrain-vit": Naming(
        "mmpretrain ViT", r"patch_embed\.projection\.weight$",
        (
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.(\d+)\.", r"blocks.\1."),
            (r"^(blocks\.\d+)\.(?:ln|norm)(\d)\.", r"\1.norm\2."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            (r"\.(?:attn|ffn)\.gamma(\d)\.weight$", r".ls\1.gamma"),
            (r"^(?:ln1|norm1)\.", "norm."),
        ),
    ),
    "vit": Naming(
        "timm ViT, as DINO, iBOT, DINOv2, DINOv3, MoCo v3, MAE and I-JEPA",
        r"(?:vit\.)?patch_embed\.proj\.weight$",
        (
            (r"^vit\.", ""),
            (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 trains in chunks of blocks
        ),
    ),
    "resnet-sequence-cifar": Naming(
        "lightly ResNet for CIFAR as a sequence of its parts", r"2\.0\.conv1\.weight$",
        (
            (r"^0\.", "conv1."),
            (r"^1\.", "bn1."),
            *((rf"^{stage + 1}\.", f"layer{stage}.") for stage in range(1, 5)),
            (r"\.shortcut\.", ".downsample."),
        ),
    ),
    "resnet-sequence": Naming(
        "torchvision ResNet as a sequence of its parts", r"4\.0\.conv1\.weight$",
        ((r"^0\.", "conv1."), (r"^1\.", "bn1."), *_RESNET_STAGES),
    ),
    "resnet": Naming(
        "torchvision ResNet", r"layer1\.0\.conv1\.weight$",
        ((r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample."),),
    ),
}  # fmt: skip
"""The namings by name; the first whose marker is among a checkpoint's names applies."""


def naming_of(tensors: Mapping[str, Tensor]) -> Naming | None:
    """The naming of tensors; None if no marker is among their names."""
    return next((naming for naming in NAMINGS.values() if naming.marks(tensors)), None)


def _fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values as one tensor; a bias that is missing is zero."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.attn)\.([qkv])\.(weight|bias)", name)
        if match is None:
            found[name] = tensor
            continue
        stem, _, kind = match.groups()
        if f"{stem}.qkv.{kind}" not in found:
            parts = (tensors.get(f"{stem}.{part}.{kind}") for part in "qkv")
            whole = [torch.zeros_like(tensor) if part is None else part for part in parts]
            found[f"{stem}.qkv.{kind}"] = torch.cat(whole)
    if "storage_tokens" in found and not any(".mlp.w1." in name for name in found):
        # Without a gate the two layers have the names of a plain MLP.
        plain = {".mlp.w2.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
        for old, new in plain.items():
            found = {name.replace(old, new): tensor for name, tensor in found.items()}
    return found
