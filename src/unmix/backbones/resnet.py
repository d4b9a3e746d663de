"""ResNets of any width, with a stem for small images and torchvision's parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from unmix.backbones.base import Backbone, check_stem, scale_channels
from unmix.errors import check_choice

__all__ = ["RESNETS", "ResNet"]

RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""The ResNets by name: the block, and the number of blocks in each stage."""


class ResNet(Backbone):
    """ResNet without its classifier (He et al., arXiv 1512.03385).

    Blocks, parameter names and initialization are torchvision's: at width 1 with the large stem
    and 3 channels the state dict is that of torchvision's model of the same name without `fc`. It
    does not subclass torchvision's ResNet, whose public constructor fixes the number of channels.

    Args:
        name: A key of `RESNETS`.
        in_channels: Channels of the images.
        width: Factor on the channels of every layer, the stem included. Widths 0.5, 1 and 2 are the
            v1, v2 and v3 of CMC (arXiv 1906.05849).
        stem: "auto", "small", "medium", "large" or "padded"; see `check_stem`.
        size: Side of the images in pixels; decides the stem if that is "auto".
        zero_init_residual: Start the weight of each block's last batch norm at 0, so that the block
            is the identity at first (arXiv 1706.02677, section 5.1), as torchvision's option.

    Raises:
        UserError: if the name or the stem is unknown, or width or size is not positive.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        stem: str = "auto",
        size: int = 224,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        block, depths = RESNETS[check_choice("backbone", name, RESNETS)]
        stem = check_stem(stem, size)
        base = scale_channels(64, width)
        if stem == "large":
            self.conv1 = nn.Conv2d(in_channels, base, 7, stride=2, padding=3, bias=False)
        else:
            padding = 2 if stem == "padded" else 1
            self.conv1 = nn.Conv2d(in_channels, base, 3, stride=1, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        pooled = stem in ("medium", "large")
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pooled else nn.Identity()
        channels = base
        stages: list[nn.Sequential] = []
        for stage, depth in enumerate(depths):
            planes = scale_channels(64 * 2**stage, width)
            stages.append(_stage(block, channels, planes, depth, stride=1 if stage == 0 else 2))
            channels = planes * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = channels
        self._initialize(zero_init_residual)

    def _initialize(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def forward(self, images: Tensor, pooled: bool = True) -> Tensor:
        """Map images `(N, in_channels, H, W)` to non-negative features `(N, feature_dim)`.

        With `pooled=False` to their map, `(N, feature_dim, rows, columns)`.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1) if pooled else x


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    channels: int,
    planes: int,
    depth: int,
    *,
    stride: int,
) -> nn.Sequential:
    out_channels = planes * block.expansion
    shortcut: nn.Module | None = None
    if stride != 1 or channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    first = block(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(out_channels, planes) for _ in range(1, depth)))
