"""Weights in files: for torchvision, timm, lightly, and any reader of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from unmix.backbones import RESNETS
from unmix.checksums import safetensors_bytes
from unmix.export.base import Source, Target, differs, refusal

__all__ = [
    "Lightly",
    "Safetensors",
    "Timm",
    "Torchvision",
    "save_safetensors",
    "timm_arguments",
    "torchvision_model",
]


def save_safetensors(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file."""
    # Not save_file: its files are readable by their owner alone.
    path.write_bytes(safetensors_bytes(weights, metadata))


def _quoted(path: Path) -> str:
    return repr(str(path))


def torchvision_model(source: Source, to: str) -> tuple[nn.Module, list[str]]:
    """torchvision's ResNet without its classifier, untrained, and the lines that build it.

    Raises:
        UserError: if there is none with these weights.
    """
    name, width = source.backbone, float(source.facts["width"])
    if source.halves:
        raise refusal(to, "has networks for RGB images, and this encoder is two half-encoders")
    if name not in RESNETS:
        what = f"has no {source.facts['backbone']} with these layers"
        raise refusal(to, what, "timm or hub" if source.of_timm else "safetensors or onnx")
    if width != 1:
        raise refusal(
            to, f"has ResNets of width 1 only, and this encoder has width {width:g} (wide_resnet "
            "widens the middle of its blocks alone)",
        )  # fmt: skip
    block, depths = RESNETS[name]
    model = resnet.ResNet(block, list(depths))
    model.fc = nn.Identity()
    if name == "resnet10":  # torchvision has the class, and no function
        lines = [
            "from torchvision.models.resnet import BasicBlock, ResNet",
            "model = ResNet(BasicBlock, [1, 1, 1, 1])",
        ]
    else:
        lines = [f"from torchvision.models import {name}", f"model = {name}()"]
    lines.append("model.fc = torch.nn.Identity()")
    _replace_stem(model, source)
    return model, [*lines, *_stem_lines(source)]


def _replace_stem(model: Any, source: Source) -> None:
    """Replace the stem by that for small images."""
    if source.stem != "large":
        padding = 2 if source.stem == "padded" else 1
        model.conv1 = nn.Conv2d(3, 64, 3, padding=padding, bias=False)
    if source.stem in ("small", "padded"):
        model.maxpool = nn.Identity()


def _stem_lines(source: Source) -> list[str]:
    """The lines that do so."""
    padding = 2 if source.stem == "padded" else 1
    lines = [
        f"model.conv1 = torch.nn.Conv2d(3, 64, 3, padding={padding}, bias=False)",
        "model.maxpool = torch.nn.Identity()",
    ]
    return lines[: {"large": 0, "medium": 1}.get(source.stem, 2)]


class Safetensors(Target):
    """The encoder's file by itself: torchvision's or timm's names, and facts as metadata."""

    default = "model.safetensors"
    endings = (".safetensors",)

    def write(self, folder: Path, out: Path) -> None:
        """Write the file."""
        save_safetensors(folder / out.name, self.source.weights(), self.source.metadata())

    def usage(self, out: Path) -> list[str]:
        """Lines that load it."""
        return [
            "from safetensors.torch import load_file",
            f"weights = load_file({_quoted(out)})",
            f"# or: encoder = unmix.load_encoder({_quoted(out)})",
        ]


class Torchvision(Target):
    """A state dict for a ResNet of torchvision."""

    default = "torchvision.pth"
    endings = (".pth", ".pt", ".bin")

    def write(self, folder: Path, out: Path) -> None:
        """Write the file, which holds tensors alone."""
        model, _ = torchvision_model(self.source, "torchvision")
        model.load_state_dict(self.source.weights())
        assert not differs(self.source, model)
        torch.save(self.source.weights(), folder / out.name)

    def usage(self, out: Path) -> list[str]:
        """Lines that load it."""
        _, lines = torchvision_model(self.source, "torchvision")
        load = f"model.load_state_dict(torch.load({_quoted(out)}, weights_only=True))"
        return ["import torch", *lines, load, "model.eval()"]


class Lightly(Target):
    """A state dict for the backbone of a lightly model.

    A ResNet is `nn.Sequential` of all children but the classifier, as in lightly's examples; a
    vision transformer is wrapped in `MaskedVisionTransformerTIMM`.
    """

    default = "lightly.pth"
    endings = (".pth", ".pt", ".bin")
    _PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")

    @property
    def _vit(self) -> bool:
        return self.source.of_timm and hasattr(self.source.encoder.backbone, "blocks")

    def write(self, folder: Path, out: Path) -> None:
        """Write the file, which holds tensors alone."""
        weights = self.source.weights()
        if self._vit:
            named = {f"vit.{name}": value for name, value in weights.items()}
            # lightly's wrapper has a token for masked patches, which no other model has.
            named["mask_token"] = torch.zeros(1, 1, self.source.encoder.feature_dim)
            torch.save(named, folder / out.name)
            return
        model, _ = torchvision_model(self.source, "lightly")
        model.load_state_dict(weights)
        numbered = {
            f"{self._PARTS.index(name.partition('.')[0])}.{name.partition('.')[2]}": value
            for name, value in weights.items()
        }
        backbone = nn.Sequential(*list(model.children())[:-1])
        backbone.load_state_dict(numbered)
        assert not differs(self.source, nn.Sequential(backbone, nn.Flatten()))
        torch.save(numbered, folder / out.name)

    def usage(self, out: Path) -> list[str]:
        """Lines that load it."""
        load = f"backbone.load_state_dict(torch.load({_quoted(out)}, weights_only=True))"
        if self._vit:
            name, arguments = timm_arguments(self.source, "lightly")
            return [
                "import timm, torch",
                "from lightly.models.modules import MaskedVisionTransformerTIMM",
                f"vit = timm.create_model({_call(name, arguments)})",
                "backbone = MaskedVisionTransformerTIMM(vit)", load,
            ]  # fmt: skip
        _, lines = torchvision_model(self.source, "lightly")
        cut = "backbone = torch.nn.Sequential(*list(model.children())[:-1])"
        return ["import torch", *lines, cut, load]


def timm_arguments(source: Source, to: str) -> tuple[str, dict[str, Any]]:
    """The name of timm's model, and arguments of `timm.create_model` that build it.

    Raises:
        UserError: if there is none with these weights.
    """
    import timm

    name, facts = source.backbone, source.facts
    if source.of_timm:
        known = {
            "patch_size": facts.get("patch"), "num_heads": facts.get("heads"),
            "depth": facts.get("depth"), "reg_tokens": facts.get("registers"),
            "class_token": facts.get("class_token"), **_pooling(source),
        }  # fmt: skip
        own = {key: value for key, value in known.items() if value is not None}
        size = facts["size"]
        choices: list[dict[str, Any]] = [
            {**own, "img_size": size, "dynamic_img_size": True}, {**own, "img_size": size}, own,
        ]  # fmt: skip
        for arguments in choices:
            try:
                model = timm.create_model(name, num_classes=0, **arguments)
                model.load_state_dict(source.weights())
            except (TypeError, RuntimeError, ValueError, AssertionError):
                continue
            if not differs(source, model):
                return name, arguments
        raise refusal(to, f"builds no {name} with these weights")
    torchvision_model(source, to)  # the same ResNets
    if name == "resnet10":
        return "resnet18", {"layers": [1, 1, 1, 1]}
    return name, {}


def _pooling(source: Source) -> dict[str, Any]:
    """timm's arguments for features that are not the model's own; none if they are."""
    vit: Any = source.encoder.backbone
    if source.facts.get("pooling") is None and source.facts.get("class_token") is not False:
        return {}
    # By default timm moves the last norm behind an average, under another name.
    return {"global_pool": vit.global_pool, "fc_norm": isinstance(vit.norm, nn.Identity)}


def _call(name: str, arguments: dict[str, Any]) -> str:
    """The arguments of a call of timm.create_model."""
    parts = [repr(name), "num_classes=0", *(f"{key}={value!r}" for key, value in arguments.items())]
    return ", ".join(parts)


class Timm(Target):
    """A safetensors file for `timm.create_model(..., checkpoint_path=FILE)`."""

    default = "timm.safetensors"
    endings = (".safetensors",)
    package = ("timm", "timm")

    def write(self, folder: Path, out: Path) -> None:
        """Write the file."""
        import timm

        weights = self.source.weights()
        name, arguments = timm_arguments(self.source, "timm")
        model = timm.create_model(name, num_classes=0, **arguments)
        _replace_stem(model, self.source)
        model.load_state_dict(weights)
        assert not differs(self.source, model)
        save_safetensors(folder / out.name, weights, self.source.metadata())

    def usage(self, out: Path) -> list[str]:
        """Lines that load it."""
        name, arguments = timm_arguments(self.source, "timm")
        call = _call(name, arguments)
        if self.source.stem == "large":
            return [
                "import timm",
                f"model = timm.create_model({call}, checkpoint_path={_quoted(out)}).eval()",
            ]  # fmt: skip
        return [
            "import timm, torch", "from safetensors.torch import load_file",
            f"model = timm.create_model({call})", *_stem_lines(self.source),
            f"model.load_state_dict(load_file({_quoted(out)}))", "model.eval()",
        ]  # fmt: skip
