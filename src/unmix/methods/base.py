"""The interface of a method: queries, targets, their comparison, and memory.

A method is independent of mixtures, trainers and data sets. `unmix.step` combines its parts into a
loss, also for mixed images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unmix import backbones
from unmix.errors import UserError
from unmix.memory import Queue

__all__ = [
    "Encoder",
    "InstanceDiscrimination",
    "Method",
    "Pair",
    "Progress",
    "full_precision",
    "l2_normalize",
]


class Pair(NamedTuple):
    """One comparison of a step.

    Attributes:
        query: The number of the view whose query is compared...
        target: ...with this view's target.
        share: Weight of the comparison in the loss.
    """

    query: int
    target: int
    share: float = 1.0


@dataclass(frozen=True)
class Progress:
    """The position of a step within its run.

    Attributes:
        step: Number of steps done.
        total_steps: Steps of the whole run, or until its schedules start again.
        steps_per_epoch: Steps of an epoch.
        seed: Seed of the run, for what a method draws between steps.
        restarted: The step at which the run's schedules last started again.
        run_steps: Steps of the whole run; None if they are `total_steps`.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    seed: int = 0
    restarted: int = 0
    run_steps: int | None = None

    @property
    def fraction(self) -> float:
        """The fraction of the schedules that is done, in [0, 1]."""
        return (self.step - self.restarted) / (self.total_steps - self.restarted)

    @property
    def epoch(self) -> float:
        """The number of epochs done, with a fraction."""
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
        return l2_normalize(self.head(self.backbone(images)))


_RENAMED = {"keep": "update_memory", "steady": "constant_lr_modules"}  # since unmix 0.1


class Method(nn.Module, ABC):
    """A self-supervised method, as separate parts that a mixing rule can combine.

    Attributes:
        views: Views of an image that a step needs; with `multi_crop`, the large ones.
        multi_crop: Whether it accepts additional small crops.
        pairs: Which view's query is compared with which view's target; see `pairs_of`.
        position_pairs: Which view's query is compared by position; see `position_pairs_of`.
        coupled: Whether `compare` gives a scalar per batch instead of one loss per sample.
        across_samples: What the loss of a sample takes from the others of its batch, a plural such
            as "negatives"; None if nothing: then the loss of a batch, and its gradient, is the mean
            of its parts'.
        contrastive: Whether it is an `InstanceDiscrimination`.
        soft_labels: Whether its loss is a softmax over samples, whose labels a rule can soften.
        soft_labels_with: The option with which it is, where that depends on one.
        sync_batch_norm: Whether batch norm is synchronized between processes where possible.
        per_image: Whether targets are indexed by sample id instead of computed from a view: then
            training cannot go on with other images, and an image that has no id has no target.
        target_queries: The views whose queries `targets` needs.
        target_gradient: Whether these queries are trained through the targets too.
        memory_queries: The views whose queries `update_memory` needs.
        takes_negatives: Whether `compare` takes further negatives of each query, unit vectors
            without a gradient (N, R, D), as its third argument.
        mixes_every_view: Whether several views are queries of one head, so that a rule can mix each
            of them; see `student_pairs`.
        every_view_with: The option with which they are, where that depends on one.
        needs_whole_weights: Why a process needs whole weights at each step, outside of the forward
            passes of encoders and heads, a clause; None if a part of each suffices (FSDP).
        undecayed: Names of matrices of the backbone that have no weight decay, unless all have.
        special_rules: Names of the mixing rules made for this method, beside those for any loss.
        color_space: The color space of the views.
    """

    views: int = 2
    multi_crop: bool = False
    coupled: bool = False
    across_samples: str | None = None
    contrastive: bool = False
    soft_labels: bool = False
    soft_labels_with: str = ""
    sync_batch_norm: bool = True
    per_image: bool = False
    target_queries: Collection[int] = ()
    target_gradient: bool = False
    memory_queries: Collection[int] = ()
    takes_negatives: bool = False
    mixes_every_view: bool = False
    every_view_with: str = ""
    needs_whole_weights: str | None = None
    undecayed: Collection[str] = ()
    special_rules: frozenset[str] = frozenset()
    color_space: Literal["RGB", "Lab", "YCbCr"] = "RGB"
    pairs: Sequence[Pair] = (Pair(0, 1),)
    position_pairs: Sequence[Pair] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for old, new in _RENAMED.items():
            if old in vars(cls):  # it would never be called, and the memory would stay as it began
                raise TypeError(f"{cls.__name__}.{old} is called {new} since unmix 0.2; rename it.")

    @staticmethod
    def build_backbone(name: str, **options: Any) -> nn.Module:
        """The encoder that this method trains; see `unmix.backbones.build`."""
        return backbones.build(name, **options)

    def begin_step(self, progress: Progress) -> None:
        """Prepare a step: update momentum encoders and schedules."""

    def begin_part(self, part: int) -> None:
        """Prepare a further part of a step, from 1, of which each has a backward pass."""

    def pairs_of(self, count: int) -> Sequence[Pair]:
        """The comparisons of a step with `count` views, small crops included."""
        return self.pairs

    def position_pairs_of(self, count: int) -> Sequence[Pair]:
        """The comparisons by position of a step with `count` views, beside those by sample.

        A view that is compared with itself is compared place by place (tokens of a ViT with what is
        there); two views are not aligned, so `compare_positions` matches their positions. Whether
        there are any is known from the class: `position_pairs` is not empty then.
        """
        return self.position_pairs

    def unmixed_pairs(self, count: int) -> Sequence[Pair]:
        """The comparisons that stay in the loss where a mixing rule replaces the clean loss.

        None, unless a view has a head of its own, which the first view's mixture does not train.
        """
        return ()

    def student_pairs(self, count: int) -> Sequence[Pair]:
        """The comparisons of a step in which all queries are mixtures, and all targets clean."""
        return self.pairs_of(count)

    def student_queries(self, views: Sequence[Tensor], asked: Collection[int]) -> dict[int, Any]:
        """The queries of mixtures of some views, by view, which are nobody's target."""
        return self.queries(views, asked)

    @property
    def trains_student_targets(self) -> bool:
        """Whether clean targets are trained by their comparison with `student_queries`."""
        return self.target_gradient

    def why_not_joint(self) -> str | None:
        """Why clean and mixed images cannot be encoded in one batch; None if they can."""
        return None

    @abstractmethod
    def query(self, view: Tensor, number: int = 0) -> Any:
        """The online branch's output for one view, (N, C, H, W), which is view `number`."""

    def queries(
        self,
        views: Sequence[Tensor],
        trained: Collection[int] | None = None,
        constant: Collection[int] = (),
    ) -> dict[int, Any]:
        """The queries of some views, by view.

        Args:
            views: All views of a step.
            trained: The numbers of the views whose queries are trained; by default all that a step
                without a mixture needs.
            constant: The numbers of further views, whose queries need no gradient.
        """
        trained = self.clean_queries(len(views)) if trained is None else trained
        found = {v: self.query(views[v], v) for v in sorted(trained)}
        with torch.no_grad():
            rest = sorted(set(constant) - found.keys())
            return found | {v: self.query(views[v], v) for v in rest}

    def clean_queries(self, count: int) -> set[int]:
        """The numbers of the views whose queries a step of `count` clean views needs."""
        pairs = [*self.pairs_of(count), *self.position_pairs_of(count)]
        return {pair.query for pair in pairs} | set(self.target_queries)

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

    @property
    def cell(self) -> int | None:
        """Side in pixels of the cells that the loss by position is of, if one owner each is better.

        Boxes and masks of mixtures are then made of whole cells. None leaves them as they are.
        """
        return None

    def compare_positions(self, query: Any, target: Any) -> Tensor:
        """What each position of the query adds to the loss of its sample: (N, rows, columns).

        The grid divides the image evenly; positions that do not count are 0. A mixture's loss is
        shared position by position, so a target has all that any position may be compared with,
        also those that are masked in the query of another sample. Only with `position_pairs`.
        """
        raise NotImplementedError

    def regularized_views(self, count: int) -> Collection[int]:
        """The views whose clean queries `regularizer` takes, of `count` views."""
        return ()

    def regularizer(self, queries: Sequence[Any], targets: Mapping[int, Any]) -> Tensor:
        """A term of the loss about clean queries and targets alone, a scalar.

        Queries are in the order of their views. No mixture changes it, and it stays where a mixing
        rule replaces the clean loss. It is not asked of a method without `regularized_views`.
        """
        raise NotImplementedError

    def update_memory(
        self, queries: Mapping[int, Any], targets: Mapping[int, Any], index: Tensor
    ) -> None:
        """After the backward pass: update memories, drop the gradient of what is still frozen."""

    def constant_lr_modules(self) -> Sequence[nn.Module]:
        """Modules whose learning rate the schedule does not change."""
        return ()

    def embeddings(self) -> Sequence[nn.Parameter]:
        """Parameters beside the backbone that its first layer takes, such as a mask token."""
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
    def momentum_backbones(self) -> Sequence[nn.Module]:
        """The momentum copies of the backbone; they are frozen with it."""
        return ()

    @property
    def chance_loss(self) -> float | None:
        """The loss at chance level; None if it is unknown."""
        return None

    @property
    def kept_images(self) -> int | None:
        """The number of images in a memory that is indexed by sample id; None without one."""
        return None

    @property
    def smallest_batch(self) -> int:
        """The fewest images that a step can work with; a shorter last batch is left out."""
        return 2

    def share_among(self, processes: int) -> None:
        """Prepare for steps that so many processes share; called before `check_batch`."""

    def check_batch(self, batch_size: int) -> None:
        """Raise a UserError if the method cannot work with batches of this size, of a process."""
        if batch_size < 2:
            text = f"{batch_size} is too small; batch norm needs 2 images."
            raise UserError(text, parameter="batch_size")

    def check_queue(self, batch_size: int) -> None:
        """Raise a UserError if a queue cannot hold the keys of a step, of all devices and parts."""
        if 0 < (size := self.queue_length) < batch_size:
            text = f"{size} keys are fewer than `batch_size={batch_size}`; use a queue of at least"
            raise UserError(f"{text} {batch_size}.", parameter="queue_size")

    @property
    def queue_length(self) -> int:
        """The number of keys in its longest queue; 0 without one."""
        return max((len(each) for each in self.modules() if isinstance(each, Queue)), default=0)

    def state(self) -> dict[str, float]:
        """Numbers for the console, such as the fill of the queue."""
        return {}


class InstanceDiscrimination(Method):
    """A method that classifies each sample among those of the batch and other negatives.

    Attributes:
        T: Temperature of the softmax.
    """

    contrastive = True
    soft_labels = True
    T: float

    @abstractmethod
    def similarities(self, query: Any, target: Any) -> tuple[Tensor, ...]:
        """Cosines of each query with every sample's target, then with other negatives.

        With several processes the targets of all of them are compared with, in their order, so
        sample i of process r is in column r N + i.

        Returns:
            For each part of a query one matrix (N, world N + K), not divided by T.
        """

    def logits(
        self, query: Any, target: Any, temperature: float | None = None
    ) -> tuple[Tensor, ...]:
        """The similarities over a temperature, by default T; float32."""
        T = self.T if temperature is None else temperature
        return tuple(matrix.float() / T for matrix in self.similarities(query, target))

    def softmax_loss(
        self,
        query: Any,
        target: Any,
        loss: Callable[[Tensor], Tensor],
        temperature: float | None = None,
    ) -> Tensor:
        """The mean over samples of a loss (N,) of the logits, summed over the parts of a query."""
        parts = [loss(logits).mean() for logits in self.logits(query, target, temperature)]
        return torch.stack(parts).sum()


def full_precision(like: Tensor) -> torch.autocast:
    """Compute in float32 here, whatever autocast does: similarities are divided by a small T."""
    return torch.autocast(like.device.type, enabled=False)


def l2_normalize(features: Tensor) -> Tensor:
    """L2-normalize along dimension 1, in float32 whatever autocast does; float64 stays."""
    precise = features if features.dtype == torch.float64 else features.float()
    return nn.functional.normalize(precise, dim=1)
