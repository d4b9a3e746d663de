"""Encoders in the formats of other tools."""

from unmix.export.base import Source, Target
from unmix.export.card import Card
from unmix.export.detectron2 import Detectron2
from unmix.export.graphs import OPSETS, Onnx, TorchExport
from unmix.export.hub import Hub
from unmix.export.weights import Lightly, Safetensors, Timm, Torchvision

__all__ = ["OPSETS", "TARGETS", "Card", "Source", "Target"]

TARGETS: dict[str, type[Target]] = {
    "torchvision": Torchvision,
    "timm": Timm,
    "safetensors": Safetensors,
    "onnx": Onnx,
    "torch-export": TorchExport,
    "hub": Hub,
    "detectron2": Detectron2,
    "lightly": Lightly,
}
"""What an encoder can be exported to."""
