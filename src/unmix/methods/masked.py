"""What methods of masked patches share: one view, masks by step, losses by patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import TokenEncoder
from unmix.distributed import rank, world_size
from unmix.methods.base import Method, Pair, Progress
from unmix.randomness import generator_for

__all__ = ["MaskedPatches", "mean_over_masked"]


def mean_over_masked(losses: Tensor, masked: Tensor) -> Tensor:
    """What each position adds to the mean of an image's masked ones: (N, rows, columns).

    Args:
        losses: Of every position, float32 (N, rows, columns).
        masked: Which of them count, bool, likewise.
    """
    counts = masked.float()
    return losses * counts / counts.sum(dim=(1, 2), keepdim=True)


class MaskedPatches(Method):
    """An encoder of the patches that are kept of an image; what it says of others is compared.

    Args:
        backbone: One of timm's vision transformers.
        name: The method's, for messages.
    """

    views = 1
    pairs: Sequence[Pair] = ()
    position_pairs: Sequence[Pair] = (Pair(0, 0),)

    def __init__(self, backbone: nn.Module, name: str) -> None:
        super().__init__()
        self.f = TokenEncoder(backbone, name)
        self.place: tuple[int, ...] = (0,)
        self.seed = 0

    def why_not_joint(self) -> str | None:
        """Masks are drawn for a batch."""
        return "its masks are drawn for each batch, and there is no batch norm to share"

    def begin_step(self, progress: Progress) -> None:
        """Masks are drawn anew at each step, and differ between processes."""
        self.seed, self.place = progress.seed, (progress.step,)

    def begin_part(self, part: int) -> None:
        """Likewise for each part of a step."""
        self.place = (self.place[0], part)

    def generator_of_masks(self) -> torch.Generator:
        """The generator of this process's masks: the same for all calls of a step."""
        own = () if world_size() == 1 else (rank(),)
        return generator_for(self.seed, "masks", *self.place, *own)

    def compare(self, query: Any, target: Tensor) -> Tensor:
        """The mean over all that is compared of a sample: losses (N,)."""
        return self.compare_positions(query, target).sum(dim=(1, 2))

    @property
    def cell(self) -> int:
        """Side of a patch."""
        return self.f.side

    @property
    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.f.vit

    def projections(self, images: Tensor) -> Tensor:
        """The encoder's features (N, D): there is no projector."""
        return self.f.vit(images)
