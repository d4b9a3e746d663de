"""Checkpoints as their projects write them: the containers and names of the originals."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

State = dict[str, Tensor]


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module with random values in every tensor, also those that start at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.05 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else tensor + noise)
    return module.eval()


def resnet(name: str = "resnet18", seed: int = 0) -> nn.Module:
    """torchvision's ResNet without its classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = getattr(torchvision.models, name)()
    made.fc = nn.Identity()
    return randomized(made, seed)


def vit(name: str = "vit_tiny_patch16_224", seed: int = 0, **options: Any) -> nn.Module:
    """timm's vision transformer without its classifier."""
    return randomized(timm.create_model(name, num_classes=0, **options), seed)


def under(prefix: str, state: State) -> State:
    """A state dict with a prefix before every name."""
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    """A second network, whose values are not those that are wanted."""
    return {name: torch.full_like(tensor, 7) for name, tensor in state.items()}


def fc(prefix: str, dim: int = 512, *parts: str) -> State:
    """A head's two layers."""
    names = parts or ("fc.0", "fc.2")
    return {
        f"{prefix}{name}.{kind}": torch.ones(shape)
        for name in names
        for kind, shape in (("weight", (dim, dim)), ("bias", (dim,)))
    }


def sequence(state: State) -> State:
    """A torchvision ResNet as `nn.Sequential(*list(resnet.children())[:-1])` names it."""
    places = {"conv1": "0", "bn1": "1", **{f"layer{n}": str(n + 3) for n in range(1, 5)}}
    found = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        found[f"{places[part]}.{rest}"] = tensor
    return found


def mmpretrain_vit(state: State) -> State:
    """timm's names as mmpretrain's."""
    renamed = (
        ("blocks.", "layers."), ("patch_embed.proj.", "patch_embed.projection."),
        (".norm1.", ".ln1."), (".norm2.", ".ln2."), (".mlp.fc1.", ".ffn.layers.0.0."),
        (".mlp.fc2.", ".ffn.layers.1."),
    )  # fmt: skip
    found = {}
    for name, tensor in state.items():
        for old, new in renamed:
            name = name.replace(old, new)
        found["ln1" + name.removeprefix("norm") if name.startswith("norm.") else name] = tensor
    return found


def torchvision_vit(state: State) -> State:
    """timm's names as torchvision's."""
    renamed = (
        ("patch_embed.proj.", "conv_proj."), ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"), ("blocks.", "encoder.layers.encoder_layer_"),
        (".norm1.", ".ln_1."), (".norm2.", ".ln_2."), (".attn.qkv.", ".self_attention.in_proj_"),
        (".attn.proj.", ".self_attention.out_proj."), (".mlp.fc1.", ".mlp.0."),
        (".mlp.fc2.", ".mlp.3."),
    )  # fmt: skip
    found = {}
    for name, tensor in state.items():
        for old, new in renamed:
            name = name.replace(old, new)
        found["encoder.ln." + name[5:] if name.startswith("norm.") else name] = tensor
    return found


def in_chunks(state: State, size: int = 3) -> State:
    """The blocks of a transformer in chunks, as DINOv2 trains them."""
    found = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if part == "blocks":
            name = f"blocks.{int(number) // size}.{rest}"
        found[name] = tensor
    return found


Write = Callable[[State], Any]

RESNETS: dict[str, Write] = {
    "torchvision": lambda s: {**s, **fc("", 512, "fc")},
    "MoCo": lambda s: {
        "epoch": 200, "arch": "resnet18",
        "state_dict": {
            **under("module.encoder_q.", s), **fc("module.encoder_q."),
            **under("module.encoder_k.", other(s)), **fc("module.encoder_k."),
            "module.queue": torch.ones(128, 64), "module.queue_ptr": torch.zeros(1),
        },
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.03}]},
    },
    "MoCo v3": lambda s: {
        "epoch": 100, "arch": "resnet50",
        "state_dict": {
            **under("module.base_encoder.", s), **fc("module.base_encoder.", 512, "fc.0", "fc.3"),
            **under("module.momentum_encoder.", other(s)), **fc("module.predictor.", 256, "0", "3"),
        },
        "optimizer": {}, "scaler": {},
    },
    "SimSiam": lambda s: {
        "epoch": 100, "arch": "resnet50",
        "state_dict": {
            **under("module.encoder.", s), **fc("module.encoder.", 512, "fc.0", "fc.3", "fc.6"),
            **fc("module.predictor.", 512, "0", "3"),
        },
        "optimizer": {},
    },
    "SwAV": lambda s: {
        **under("module.", s), **fc("module.projection_head.", 512, "0", "3"),
        "module.prototypes.weight": torch.ones(3000, 128),
    },
    "SwAV, whole": lambda s: {
        "epoch": 400,
        "state_dict": {**under("module.", s), "module.prototypes.weight": torch.ones(30, 128)},
        "optimizer": {}, "amp": None,
    },
    "DINO": lambda s: {
        "student": {**under("module.backbone.", other(s)), **fc("module.head.mlp.", 512, "0")},
        "teacher": {**under("backbone.", s), **fc("head.mlp.", 512, "0")},
        "optimizer": {}, "epoch": 100, "args": argparse.Namespace(arch="resnet50"),
        "dino_loss": {"center": torch.ones(1, 8)},
    },
    "DINO student": lambda s: {"student": under("module.backbone.", s)},
    "Barlow Twins": lambda s: {
        "epoch": 1000,
        "model": {
            **under("module.backbone.", s), **fc("module.projector.", 512, "0", "3"),
            "module.bn.running_mean": torch.ones(8),
        },
        "optimizer": {},
    },
    "VICReg": lambda s: {
        "epoch": 1000, "optimizer": {},
        "model": {**under("module.backbone.", s), **fc("module.projector.", 512, "0", "3")},
    },
    "InsDis of CMC": lambda s: {
        "opt": argparse.Namespace(model="resnet50"), "epoch": 200,
        "contrast": {"memory": torch.ones(2)},
        "model": {**under("encoder.module.", s), **fc("encoder.module.", 512, "fc")},
    },
    "PIRL of PyContrast": lambda s: {
        "opt": argparse.Namespace(), "epoch": 200,
        "model": {**under("module.encoder.", s), **fc("module.head.", 512, "0"),
                  **fc("module.head_jig.", 512, "fc1")},
    },
    "VISSL": lambda s: {
        "phase_idx": 99, "iteration": 1, "loss": 0.1,
        "classy_state_dict": {
            "base_model": {"model": {"trunk": under("_feature_blocks.", s), "heads": fc("0.clf.")}},
        },
    },
    "VISSL, converted": lambda s: {"model_state_dict": under("_feature_blocks.", s)},
    "solo-learn": lambda s: {
        "epoch": 399, "pytorch-lightning_version": "1.7.7", "hyper_parameters": {},
        "state_dict": {
            **under("backbone.", s), **fc("classifier.", 512, "0"), **fc("projector.", 512, "0"),
            **under("momentum_backbone.", other(s)),
        },
    },
    "solo-learn of 2021": lambda s: {
        "pytorch-lightning_version": "1.5.0",
        "state_dict": {**under("encoder.", s), **fc("classifier.", 512, "0")},
    },
    "lightly": lambda s: {
        "pytorch-lightning_version": "2.0.0", "epoch": 99,
        "state_dict": {
            **under("backbone.", sequence(s)), **under("backbone_momentum.", sequence(other(s))),
            **fc("projection_head.layers.", 512, "0"),
        },
    },
    "lightly DINO": lambda s: {
        "pytorch-lightning_version": "2.0.0",
        "state_dict": {
            **under("teacher_backbone.", s), **under("student_backbone.", other(s)),
        },
    },
    "lightly student": lambda s: {"state_dict": under("student_backbone.", s)},
    "lightly module": lambda s: under("backbone.", sequence(s)),
    "mmpretrain": lambda s: {
        "meta": {"epoch": 200}, "message_hub": {},
        "state_dict": {**under("backbone.", s), **fc("neck.", 512, "fc0"),
                       **fc("head.", 512, "fc")},
    },
    "SimCLR of sthalles": lambda s: {
        "epoch": 200, "arch": "resnet18", "optimizer": {},
        "state_dict": {**under("backbone.", s), **fc("backbone.")},
    },
    "SimCLR of Spijkervet": lambda s: {**under("encoder.", s), **fc("projector.", 512, "0", "2")},
    "SimCLR with convnet": lambda s: {"state_dict": under("convnet.", s)},
    "BYOL of sthalles": lambda s: {
        "online_network_state_dict": {
            **under("encoder.", sequence(s)), **fc("projetion.net.", 512, "0"),
        },
        "target_network_state_dict": under("encoder.", sequence(other(s))),
        "predictor_network_state_dict": fc("net.", 512, "0"), "optimizer_state_dict": {},
    },
    "BYOL of lucidrains": lambda s: {
        **under("online_encoder.net.", s), **fc("online_encoder.projector.", 512, "0"),
        **under("target_encoder.net.", other(s)),
    },
    "an encoder in a state_dict": lambda s: {"state_dict": under("module.encoder.", s)},
    "compiled, in data parallel": lambda s: {"state_dict": under("_orig_mod.module.", s)},
    "model": lambda s: {"model": s},
    "averaged by timm": lambda s: {"state_dict": other(s), "state_dict_ema": s},
    "averaged by others": lambda s: {"model": other(s), "model_ema": under("module.", s)},
    "weights of a converted VISSL": lambda s: {"model_state_dict": s},
}  # fmt: skip
"""Writers of a ResNet, each with the state dict of torchvision's; the name tells the project."""

VITS: dict[str, Write] = {
    "timm": lambda s: {**s, **fc("", 192, "head")},
    "torchvision": torchvision_vit,
    "mmpretrain": lambda s: {
        "meta": {}, "state_dict": {**under("backbone.", mmpretrain_vit(s))},
    },
    "DINO": lambda s: {"teacher": under("backbone.", s), "student": under("module.", other(s))},
    "iBOT": lambda s: {"state_dict": {**s, "masked_embed": torch.ones(1, 192)}},
    "iBOT, whole": lambda s: {
        "teacher": under("backbone.", {**s, "masked_embed": torch.ones(1, 192)}),
        "student": under("module.backbone.", {**other(s), "masked_embed": torch.ones(1, 192)}),
    },
    "iBOT, student": lambda s: {
        "student": under("module.backbone.", {**s, "masked_embed": torch.ones(1, 192)}),
    },
    "DINO, one network": lambda s: {"teacher": s},
    "DINOv2 in chunks": lambda s: {
        "teacher": {**under("backbone.", in_chunks(s)), **fc("dino_head.mlp.", 192, "0")},
    },
    "MoCo v3": lambda s: {
        "state_dict": {
            **under("module.base_encoder.", s), **fc("module.base_encoder.head.", 8, "0"),
            **under("module.momentum_encoder.", other(s)),
        },
    },
    "MAE": lambda s: {
        "model": {
            **s, "mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 5, 8),
            **fc("", 8, "decoder_embed", "decoder_pred", "decoder_norm"),
            **fc("decoder_blocks.0.attn.", 8, "proj"),
        },
        "args": argparse.Namespace(),
    },
    "lightly MAE": lambda s: {
        "pytorch-lightning_version": "2.0.0", "state_dict": under("backbone.vit.", s),
    },
}  # fmt: skip
"""Writers of a vision transformer, each with the state dict of timm's."""
