"""What every method is: queries, targets, how they compare, and what is kept.

A method knows no mixture, no trainer and no data set. `unmix.step` puts its parts
together to a loss, and shares that loss where images are mixed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unmix import backbones
from unmix.errors import UserError

__all__ = ["Encoder", "Method"]


class Encoder(nn.Module):
    """A backbone and a head: images to unit vectors.

    Attributes:
        backbone: Images to pooled features (N, feature_dim).
        head: Features to (N, dim).
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Give unit vectors (N, dim) of images (N, C, H, W)."""
        return unit(self.head(self.backbone(images)))


class Method(nn.Module, ABC):
    """A self-supervised method, in the parts that a mixture has to know apart.

    Attributes:
        views: How many views of an image a step needs.
        pairs: Which view's query is compared with which view's target.
        coupled: True if `compare` gives one number a batch instead of one a sample.
        color_space: The colour space of the views.
        chance_loss: The loss of a model that has learnt nothing, or None if unknown.
    """

    views: ClassVar[int] = 2
    coupled: ClassVar[bool] = False
    color_space: Literal["RGB", "Lab", "YCbCr"] = "RGB"
    pairs: Sequence[tuple[int, int]] = ((0, 1),)

    @staticmethod
    def build_backbone(name: str, **options: Any) -> nn.Module:
        """The encoder that this method trains; see `unmix.backbones.build`."""
        return backbones.build(name, **options)

    def begin_step(self, progress: float) -> None:
        """Do what comes before a step: momentum encoders follow. `progress` runs from 0 to 1."""

    @abstractmethod
    def query(self, view: Tensor) -> Any:
        """What the trained branch says of one view (N, C, H, W)."""

    def queries(self, views: Sequence[Tensor]) -> dict[int, Any]:
        """The queries of all views that `pairs` asks for, by view."""
        return {a: self.query(views[a]) for a in sorted({a for a, _ in self.pairs})}

    @abstractmethod
    def targets(
        self,
        views: Sequence[Tensor],
        queries: Mapping[int, Any],
        index: Tensor,
        generator: torch.Generator,
    ) -> dict[int, Any]:
        """What queries are compared with, by view, from clean views; each indexed by sample."""

    @abstractmethod
    def compare(self, query: Any, target: Any) -> Tensor:
        """The loss l(query, target): (N,), or () if `coupled`."""

    def keep(self, queries: Mapping[int, Any], targets: Mapping[int, Any], index: Tensor) -> None:
        """Remember what later steps need, after the backward pass: queue, bank, centre."""

    def features(self, images: Tensor) -> Tensor:
        """The backbone's pooled output (N, D)."""
        return self.backbone(images)

    @abstractmethod
    def projections(self, images: Tensor) -> Tensor:
        """The projector's output (N, dim)."""

    @property
    @abstractmethod
    def backbone(self) -> nn.Module:
        """The encoder that is kept after pretraining."""

    @property
    def chance_loss(self) -> float | None:
        """The loss of a model that has learnt nothing."""
        return None

    def check_batch(self, batch_size: int) -> None:
        """Raise a UserError if the method cannot work with batches of this size."""
        if batch_size < 2:
            raise UserError(f"--batch_size: {batch_size} is too small; batch norm needs 2 images.")

    def state(self) -> dict[str, float]:
        """Numbers for the health line, such as how full the queue is."""
        return {}


def full_precision(like: Tensor) -> torch.autocast:
    """Compute in float32 here, whatever autocast does: similarities are divided by a small T."""
    return torch.autocast(like.device.type, enabled=False)


def unit(features: Tensor) -> Tensor:
    """L2-normalise along dimension 1, in float32 whatever autocast does."""
    return nn.functional.normalize(features.float(), dim=1)
