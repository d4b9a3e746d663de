"""The interface of export targets."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unmix.backbones import HalfEncoders, check_stem
from unmix.errors import UserError
from unmix.evaluation import LoadedClassifier, LoadedEncoder
from unmix.export.card import Card

__all__ = ["Source", "Target", "differs", "example", "refusal"]


@dataclass(frozen=True)
class Source:
    """An encoder to export.

    Attributes:
        encoder: The encoder, on the CPU.
        name: Name of the run.
        card: What a model card says of it.
        opset: Opset of an ONNX file; None for the default.
        pixels: Whether a graph takes RGB in [0, 1] and prepares it itself.
        classifier: What a graph gives the logits of; None for features.
    """

    encoder: LoadedEncoder
    name: str
    card: Card
    opset: int | None = None
    pixels: bool = False
    classifier: LoadedClassifier | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the encoder's file says."""
        return self.encoder.facts

    @property
    def backbone(self) -> str:
        """Name of the backbone, such as resnet50, without the package and the tag of timm's."""
        return str(self.facts["backbone"]).removeprefix("timm:").partition(".")[0]

    @property
    def of_timm(self) -> bool:
        """Whether the backbone is one of timm's."""
        return str(self.facts["backbone"]).startswith("timm:")

    @property
    def stem(self) -> str:
        """The stem of a network of ours: small, medium, large or padded; "large" for timm's."""
        return "large" if self.of_timm else check_stem(self.facts["stem"], self.facts["size"])

    @property
    def halves(self) -> bool:
        """Whether there are two half-encoders (CMC)."""
        return isinstance(self.encoder.backbone, HalfEncoders)

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the backbone by name."""
        state = self.encoder.backbone.state_dict()
        return {name: value.detach().cpu().contiguous() for name, value in state.items()}

    def metadata(self) -> dict[str, str]:
        """The facts as a safetensors file has them."""
        return {key: json.dumps(value) for key, value in self.facts.items()}

    @property
    def normalization(self) -> str:
        """How images are prepared, in words."""
        space, size = self.facts["color_space"], self.facts["size"]
        if space != "RGB":
            return f"{space} images of {size} px, normalized as in CMC"
        mean, std = (", ".join(f"{x:.4f}" for x in self.facts[key]) for key in ("mean", "std"))
        return f"RGB images of {size} px in [0, 1], minus ({mean}), divided by ({std})"

    @property
    def preparation(self) -> dict[str, str]:
        """What is done to an image before, in words: "resize", and "range" of more than 8 bits."""
        size = self.facts["size"]
        found = {
            "resize": f"shorter side to {round(size * 256 / 224)} px, bilinear, antialiased, "
            f"unless it has {size} px already, then a center crop of {size} px"
        }
        if (limits := self.encoder.range) is not None:
            low, high = (f"{value:g}" for value in limits)
            found["range"] = f"values {low} to {high} of images of more than 8 bits become 0 to 1"
        return found


class Target(ABC):
    """A format of another tool.

    Attributes:
        default: Name of its file or folder within the run, if none is given.
        endings: What the name of its file may end in; empty of a folder.
        package: The package that is needed, with the extra of unmix that installs it.
    """

    default: ClassVar[str]
    endings: ClassVar[tuple[str, ...]] = ()
    package: ClassVar[tuple[str, str] | None] = None

    def __init__(self, source: Source) -> None:
        self.source = source
        if self.package is not None:
            name, extra = self.package
            try:
                __import__(name)
            except ImportError:
                raise UserError(
                    f"{type(self).__name__.lower()} needs the {name} package: pip install "
                    f"'unmix[{extra}]'",
                    parameter="to",
                ) from None

    def names(self, out: Path) -> tuple[str, ...]:
        """Names of the files that are written; of a folder those within it."""
        return (out.name,)

    @property
    def folder(self) -> bool:
        """Whether the result is a folder."""
        return False

    @abstractmethod
    def write(self, folder: Path, out: Path) -> None:
        """Write the files.

        Args:
            folder: Where they are written; they are moved when all are there.
            out: The final file or folder.

        Raises:
            UserError: if the target cannot represent the encoder.
            OSError: if a file cannot be written.
        """

    @abstractmethod
    def usage(self, out: Path) -> list[str]:
        """Lines of Python that load it."""


def refusal(to: str, why: str, instead: str = "safetensors, onnx or torch-export") -> UserError:
    """The error for an encoder that a target cannot represent."""
    return UserError(f"{to} {why}; use {instead}.", parameter="to")


def example(source: Source, n: int = 2) -> Tensor:
    """Random images as the encoder takes them."""
    size = source.encoder.views.size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def differs(source: Source, model: nn.Module) -> bool:
    """Whether another model gives other features than the encoder."""
    images = example(source)
    expected, found = source.encoder(images), model.eval()(images)
    limit = 1e-4 * max(1.0, float(expected.abs().max()))
    return found.shape != expected.shape or float((found - expected).abs().max()) > limit
