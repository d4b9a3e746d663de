"""What every method is: queries, targets, how they compare, and what is kept.

A method knows no mixture, no trainer and no data set. `unmix.step` puts its parts
together to a loss, and shares that loss where images are mixed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unmix import backbones
from unmix.errors import UserError

__all__ = ["Encoder", "Method", "Pair", "Progress", "full_precision", "unit"]


class Pair(NamedTuple):
    """One comparison of a step.

    Attributes:
        query: The number of the view whose query is compared...
        target: ...with this view's target.
        share: What the comparison counts in the loss.
    """

    query: int
    target: int
    share: float = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a run is, at the start of a step.

    Attributes:
        step: Steps that are done.
        total_steps: Of the whole run.
        steps_per_epoch: Of an epoch.
        seed: Of the run, for what a method draws between steps.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    seed: int = 0

    @property
    def share(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.step / self.total_steps

    @property
    def epoch(self) -> float:
        """The epochs that are done, with their fraction."""
        return self.step / self.steps_per_epoch


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
        views: How many views of an image a step needs; with `multi_crop`, how many large ones.
        multi_crop: Whether it can take small crops of the image beside them.
        pairs: Which view's query is compared with which view's target; see `pairs_of`.
        coupled: True if `compare` gives one number a batch instead of one a sample.
        contrastive: True if a sample is told apart from the others, by `similarities` over `T`.
        softmax_scale: The factor of a `contrastive` loss on the cross-entropy of `similarities`.
        synchronised: Whether batch norm takes its statistics over all processes, where it can.
        encodes_targets: True if a target is what an encoder says of a view, so that any picture
            can have one; False if it is looked up by the sample's number.
        per_image: Whether it keeps something of every training image, by the image's number: then
            training cannot go on with other images.
        two_sided: True if a view's target is its query, or made of it: then views that are targets
            only have queries too.
        together: True if `queries` encodes the views together, so that none can be had by itself.
        heads_by_view: True if views have heads of their own: a rule that replaces the clean loss
            then replaces that of the first view alone.
        color_space: The colour space of the views.
    """

    views: int = 2
    multi_crop: bool = False
    coupled: bool = False
    contrastive: bool = False
    softmax_scale: float = 1.0
    synchronised: bool = True
    encodes_targets: bool = True
    per_image: bool = False
    two_sided: bool = False
    together: bool = False
    heads_by_view: bool = False
    color_space: Literal["RGB", "Lab", "YCbCr"] = "RGB"
    pairs: Sequence[Pair] = (Pair(0, 1),)
    T: float

    @staticmethod
    def build_backbone(name: str, **options: Any) -> nn.Module:
        """The encoder that this method trains; see `unmix.backbones.build`."""
        return backbones.build(name, **options)

    def begin_step(self, progress: Progress) -> None:
        """Do what comes before a step: momentum encoders follow, schedules move on."""

    def pairs_of(self, count: int) -> Sequence[Pair]:
        """The comparisons of a step with `count` views, small crops included."""
        return self.pairs

    @abstractmethod
    def query(self, view: Tensor, number: int = 0) -> Any:
        """What the trained branch says of one view (N, C, H, W); `number` says which it is."""

    def queries(self, views: Sequence[Tensor]) -> dict[int, Any]:
        """The queries of all views that `pairs_of` asks for, by view."""
        pairs = self.pairs_of(len(views))
        asked = {a for a, _, _ in pairs} | {b for _, b, _ in pairs if self.two_sided}
        return {a: self.query(views[a], a) for a in sorted(asked)}

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

    def similarities(self, query: Any, target: Any) -> tuple[Tensor, ...]:
        """Cosines of each query with every sample's target, then with other negatives.

        Only of `contrastive` methods. With several processes the targets of all of them are
        compared with, in their order, so sample i of process r is in column r N + i.

        Returns:
            For each part of a query one matrix (N, world N + K), not divided by T.
        """
        raise NotImplementedError

    def keep(self, queries: Mapping[int, Any], targets: Mapping[int, Any], index: Tensor) -> None:
        """Remember what later steps need, after the backward pass: queue, bank, centre.

        Here too a method drops the gradient of what is not to be trained yet.
        """

    def steady(self) -> Sequence[nn.Module]:
        """Parts whose learning rate stays as it is, whatever the schedule."""
        return ()

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

    @property
    def kept_images(self) -> int | None:
        """For how many images something is kept by their number; None if for none."""
        return None

    @property
    def smallest_batch(self) -> int:
        """The fewest images that a step can work with; a shorter last batch is left out."""
        return 2

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
