"""The numbered layers of CMC's linear classifiers, pooled as published."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from unmix.backbones import AlexNet, HalfEncoders, ResNet
from unmix.errors import UserError
from unmix.evaluation.layers import LayerFeatures, layer_names

__all__ = ["CMCLayer", "layer_features"]

# For each number, from 1, the layer and the side that its map is pooled to; None leaves it.
_RESNET: tuple[tuple[str, int | None], ...] = (
    ("maxpool", 8), ("layer1", 6), ("layer2", 4), ("layer3", 3), ("layer4", None), ("avgpool", None)
)  # fmt: skip
_ALEXNET: tuple[tuple[str, int | None], ...] = (
    ("conv1", 10), ("conv2", 6), ("conv3", 5), ("conv4", 5), ("conv5", None), ("fc6", None),
    ("fc7", None),
)  # fmt: skip


def layer_features(backbone: nn.Module, layer: str, size: int) -> nn.Module:
    """An encoder up to one of its layers, by name or by CMC's number.

    Args:
        backbone: A backbone, or half-encoders, whose layers have the same names.
        layer: A name, of which `LayerFeatures` gives the mean over positions; or a number, see
            `CMCLayer`.
        size: Side of the images in pixels.

    Raises:
        UserError: if there is no such layer.
    """
    if layer.isdecimal() and layer not in layer_names(backbone):
        return CMCLayer(backbone, int(layer), size)
    return LayerFeatures(backbone, layer, size)


class CMCLayer(nn.Module):
    """A layer as CMC numbers and pools it (arXiv 1906.05849; LinearModel.py of its code).

    Of a ResNet 1 is the max-pool, 2 to 5 the stages and 6 the average pool; maps 1 to 4 are
    averaged to 8x8, 6x6, 4x4 and 3x3, and map 5 (7x7 at 224 pixels) is taken as it is. Of an
    AlexNet 1 to 5 are the convolutions and 6 and 7 fc6 and fc7; maps 1 to 4 are max-pooled to
    10x10, 6x6, 5x5 and 5x5. A map of small images that has fewer positions is not pooled.

    Args:
        backbone: A ResNet or an AlexNet, or half-encoders of these, put side by side.
        number: Of the layer.
        size: Side of the images in pixels.

    Raises:
        UserError: if the network's layers have no numbers, or not this one.
    """

    def __init__(self, backbone: nn.Module, number: int, size: int) -> None:
        super().__init__()
        one = backbone.l if isinstance(backbone, HalfEncoders) else backbone
        if not isinstance(one, ResNet | AlexNet):
            raise UserError(
                f"{number} is CMC's number of a ResNet's or an AlexNet's layer, and this is a "
                f"{type(one).__name__}; give the name of a layer.",
                parameter="layer",
            )
        numbered = _RESNET if isinstance(one, ResNet) else _ALEXNET
        if not 1 <= number <= len(numbered):
            names = ", ".join(f"{i} {name}" for i, (name, _) in enumerate(numbered, start=1))
            raise UserError(
                f"{number} is none of the {type(one).__name__}'s layers: {names}.",
                parameter="layer",
            )
        name, self.side = numbered[number - 1]
        self.maximum = isinstance(one, AlexNet)
        self.layer = LayerFeatures(backbone, name, size, pool=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to features (N, D)."""
        output = self.layer(images)
        if self.side is not None:
            height, width = output.shape[2:]
            pool = adaptive_max_pool2d if self.maximum else adaptive_avg_pool2d
            output = pool(output, (min(self.side, height), min(self.side, width)))
        return output.flatten(1)
