"""The AlexNet with batch norm that CMC trains, for any width and for small images too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unmix.backbones.base import Backbone, check_stem, scale_channels
from unmix.errors import UserError

__all__ = ["AlexNet"]

# The smallest image that leaves one pixel after the last max-pool.
_SMALLEST = {"small": 7, "medium": 15, "large": 63}


class AlexNet(Backbone):
    """AlexNet up to its second fully connected layer, with batch norm (CMC, arXiv 1906.05849).

    The features are those that CMC's projection takes: fc7 after its ReLU, 4096 times the
    width. CMC's half-networks have width 0.5. The published stem (11x11 convolution of stride 4,
    max-pool) needs images of 63 pixels or more; the "small" and "medium" stems replace its
    convolution by a 3x3 one of stride 1, and "small" leaves out its max-pool too. Before fc6 the
    map is average-pooled to 6x6, its size at 224 pixels.

    Args:
        in_channels: Channels of the images.
        width: Factor on the channels of every layer.
        stem: "auto", "small", "medium" or "large"; see `check_stem`.
        size: Side of the images in pixels.

    Raises:
        UserError: if the stem is unknown or "padded", width is not positive, or the images are too
            small for the stem.
    """

    def __init__(
        self, *, in_channels: int = 3, width: float = 1.0, stem: str = "auto", size: int = 224
    ) -> None:
        super().__init__()
        stem = check_stem(stem, size)
        if stem not in _SMALLEST:
            raise UserError(
                f"{stem!r} does not apply to alexnet, only to ResNets; use 'small'.",
                parameter="stem",
            )
        if size < _SMALLEST[stem]:
            raise UserError(
                f"{size} is too small for alexnet with the {stem} stem; it must be at least "
                f"{_SMALLEST[stem]}.",
                parameter="size",
            )
        c1, c2, c3, c4, c5, hidden = (
            scale_channels(channels, width) for channels in (96, 256, 384, 384, 256, 4096)
        )
        if stem == "large":
            first = _conv(in_channels, c1, 11, stride=4, padding=2)
        else:
            first = _conv(in_channels, c1, 3, padding=1)
        pool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, stride=2)
        self.conv1 = nn.Sequential(*first, pool)
        self.conv2 = nn.Sequential(*_conv(c1, c2, 5, padding=2), nn.MaxPool2d(3, stride=2))
        self.conv3 = nn.Sequential(*_conv(c2, c3, 3, padding=1))
        self.conv4 = nn.Sequential(*_conv(c3, c4, 3, padding=1))
        self.conv5 = nn.Sequential(*_conv(c4, c5, 3, padding=1), nn.MaxPool2d(3, stride=2))
        self.pool = nn.AdaptiveAvgPool2d(6)
        self.fc6 = _linear(c5 * 6 * 6, hidden)
        self.fc7 = _linear(hidden, hidden)
        self.feature_dim = hidden

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, in_channels, H, W)` to non-negative features `(N, feature_dim)`."""
        x = self.conv5(self.conv4(self.conv3(self.conv2(self.conv1(images)))))
        return self.fc7(self.fc6(torch.flatten(self.pool(x), 1)))


def _conv(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, padding: int
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    return (
        nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def _linear(in_features: int, features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, features), nn.BatchNorm1d(features), nn.ReLU(inplace=True)
    )
