"""Whether a network takes images of a size."""

from __future__ import annotations

import torch
from torch import nn

from unmix.backbones.modes import in_evaluation_mode

__all__ = ["takes_size"]


@torch.inference_mode()
def takes_size(network: nn.Module, size: int, channels: int = 3) -> bool:
    """Whether a network takes images of a size, by a forward of one black image.

    Networks that are built for one size say so in many ways, or by an error within. The network is
    used as in evaluation, and left as it was.

    Args:
        network: On the CPU; images (N, C, H, W) to anything.
        size: Side of the images in pixels.
        channels: C.
    """
    with in_evaluation_mode(network):
        try:
            network(torch.zeros(1, channels, size, size))
        except (AssertionError, RuntimeError, ValueError, IndexError):
            return False
    return True
