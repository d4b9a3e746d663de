"""Mixing rules: with which targets a mixture is compared, and with which weights.

Each is a small object with its paper's defaults. A rule sees a method's parts only: its queries and
targets, how they are compared, and its class attributes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmix.credit.sharing import (
    Shares,
    of_partner,
    shared_loss,
    shared_position_loss,
    soft_cross_entropy,
)
from unmix.mixtures import MixtureOperator, UnMix, Weight
from unmix.mixtures.fields import check_parameters, parameter

__all__ = [
    "EsViT",
    "IMix",
    "ImageSpace",
    "MixCo",
    "Mixed",
    "Rule",
    "UnMixRule",
    "softmax_loss",
    "why_no_softmax",
]


@dataclass(frozen=True, eq=False)
class Mixed:
    """What a rule shares the loss of.

    Attributes:
        method: Compares queries with targets.
        draw: The mixtures of a view, usually the first, as drawn.
        query: What the trained branch says of them.
        queries: What it says of the clean views, by view.
        targets: Of the clean views, by view.
        pairs: The comparisons of the clean step: (query's view, target's view, share).
        targets_of_mixtures: Gives the targets of the views mixed by the same draw, by view.
        samples: N, the images of this process's batch.
        positions: The comparisons by position of the clean step, likewise.
        view: The number of the view that is mixed.
    """

    method: Any
    draw: Any
    query: Any
    queries: Mapping[int, Any]
    targets: Mapping[int, Any]
    pairs: Sequence[tuple[int, int, float]]
    targets_of_mixtures: Callable[[], Mapping[int, Any]]
    samples: int
    positions: Sequence[tuple[int, int, float]] = ()
    view: int = 0

    def shared(self) -> Tensor:
        """Sum of w l(q_mix, t) + (1 - w) l(q_mix, t[p]) over targets, by sample and position."""
        losses = []
        if self.pairs:
            losses.append(
                self.over_targets(
                    lambda b: shared_loss(
                        self.method.compare, self.query, self.targets[b], self.draw
                    )
                )
            )
        if self.positions:
            losses.append(
                self.over_positions(
                    lambda b: shared_position_loss(
                        self.method.compare_positions, self.query, self.targets[b], self.draw
                    )
                )
            )
        return torch.stack(losses).sum()

    def over_positions(self, loss: Callable[[Any], Tensor]) -> Tensor:
        """Sum a loss over what the mixed view is compared with by position.

        The mixture's positions are those of that view, so its comparisons alone apply; they take
        the share of all.
        """
        own = [(b, share) for a, b, share in self.positions if a == self.view]
        scale = _ratio(sum(share for *_, share in self.positions), sum(share for _, share in own))
        return torch.stack([scale * share * loss(b) for b, share in own]).sum()

    def over_targets(self, loss: Callable[[Any], Tensor], without: int | None = None) -> Tensor:
        """Sum a loss over the views that are targets, each with its share of the clean loss.

        A view's share is that of all comparisons with it; that of `without` goes to the others.
        """
        shares: dict[int, float] = {}
        for _, b, share in self.pairs:
            shares[b] = shares.get(b, 0.0) + share
        total = sum(shares.values())
        if without is not None and len(shares) > 1:
            shares.pop(without, None)
        scale = _ratio(total, sum(shares.values()))
        return torch.stack([scale * share * loss(b) for b, share in shares.items()]).sum()


def _ratio(total: float, part: float) -> float:
    """What brings parts up to their total; 0 where a loss has no weight, such as 1 - lambda = 0."""
    return total / part if part else 0.0


@dataclass(frozen=True)
class Rule(ABC):
    """Gives the loss of the mixtures.

    Attributes:
        label: What tables call it.
        source: The paper.
        partner_view: The view whose pixels are mixed in.
        even: Whether every image needs another one as its partner.
        of_pairs: Whether it needs mixtures of two images, and one of each partner too.
        by_position: Whether it also shares a loss by position.
        in_parts: Whether the parts of a mixture are a query each: the features of its images'
            pixels, pooled apart.
        both_views: Whether it also uses the pixels of another view than the first.
        of_pixels: Whether it uses the pixels of the mixtures.
        mixture: What it was published with; None for Un-Mix's own.
        joint: Whether clean and mixed images are encoded in one forward by default, as released.
        keeps_clean: Whether the loss of the clean views stays beside it.
        every_crop: Whether every view that is a query is mixed, each with a draw of its own; else
            the first alone.
        share: Weight of the mixed loss; above 0.
    """

    label: ClassVar[str]
    source: ClassVar[str]
    partner_view: ClassVar[int] = 0
    even: ClassVar[bool] = False
    of_pairs: ClassVar[bool] = False
    by_position: ClassVar[bool] = False
    in_parts: ClassVar[bool] = False
    both_views: ClassVar[bool] = False
    of_pixels: ClassVar[bool] = False
    mixture: ClassVar[MixtureOperator | None] = None
    joint: ClassVar[bool] = False

    keeps_clean: bool = field(default=True, init=False)
    every_crop: bool = field(default=False, init=False)
    share: float = parameter(1.0, setting="unmix_share", above=0)

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def title(self) -> str:
        """What tables call it."""
        usual = type(self).__dataclass_fields__["keeps_clean"].default
        return self.label if self.keeps_clean == usual else f"{self.label} replacing"

    def why_not(self, method: Any) -> str | None:
        """Why the rule does not apply to a method (a class or an object); None if it does.

        That a loss is by position is no matter of it; see `refusal`.
        """
        return None

    def refusal(self, method: Any) -> str | None:
        """As `why_not`, also where it is that the method's loss is by position."""
        if method.position_pairs and not self.by_position:
            return "its loss is by position too, and the rule is for losses by sample"
        return self.why_not(method)

    def clean_queries(self, pairs: Sequence[tuple[int, int, float]]) -> set[int]:
        """The views whose clean queries the rule needs, given the comparisons that it replaces."""
        return set()

    @abstractmethod
    def __call__(self, mixed: Mixed) -> Tensor:
        """The loss of the mixtures, a scalar."""


@dataclass(frozen=True)
class UnMixRule(Rule):
    """Un-Mix: the loss of a mixture is shared between its images, as their content is.

    Args:
        share: Weight of the mixed loss beside the clean one.
        keeps_clean: False: it replaces the clean loss.
        every_crop: Mix every view that is a query, each with a draw of its own, against clean
            targets: the second view and the local crops too, as EsViT does.
    """

    label: ClassVar[str] = "Un-Mix"
    source: ClassVar[str] = "Shen et al. 2022, AAAI (arXiv 2003.05438 v5), Eq. 3"
    by_position: ClassVar[bool] = True

    keeps_clean: bool = True
    every_crop: bool = parameter(False, setting="unmix_every_crop")

    def why_not(self, method: Any) -> str | None:
        """With every crop mixed, several views must be queries."""
        if self.every_crop and not method.mixes_every_view:
            more = f"; with {method.every_view_with} it has two" if method.every_view_with else ""
            return f"its first view alone is a query, which unmix and replace mix{more}"
        return None

    def __call__(self, mixed: Mixed) -> Tensor:
        """Sum of w l(q_mix, t) + (1 - w) l(q_mix, t[p]) over the targets' views."""
        return self.share * mixed.shared()


@dataclass(frozen=True)
class EsViT(UnMixRule):
    """EsViT: every student crop is mixed by a draw of its own, and compared with clean teachers.

    Its N x N soft targets T are w where a mixture and a teacher's image are the same and 1 - w at
    the partner; the cross-entropy with T P_t is the sum of both images' losses, by their shares. It
    replaces the clean loss.

    Args:
        share: Weight of the mixed loss.
    """

    label: ClassVar[str] = "EsViT"
    source: ClassVar[str] = "Li et al. 2022, ICLR (arXiv 2106.09785); as released"
    mixture: ClassVar[MixtureOperator | None] = UnMix(0.5, alpha=1.0, global_alpha=0.8)

    keeps_clean: bool = field(default=False, init=False)
    every_crop: bool = field(default=True, init=False)


@dataclass(frozen=True)
class IMix(Rule):
    """i-Mix: every sample of the batch is a virtual class, and a mixture has a label over several.

    With instance discrimination by a softmax it is the cross-entropy over the keys of the batch and
    the queue or the bank's negatives; else, as for BYOL in the paper, the loss weighted by the
    shares. It replaces the clean loss.

    Args:
        share: Weight of the mixed loss.
    """

    label: ClassVar[str] = "i-Mix"
    source: ClassVar[str] = "Lee et al. 2021, ICLR (arXiv 2010.08887)"
    by_position: ClassVar[bool] = True
    mixture: ClassVar[MixtureOperator | None] = UnMix(
        1.0, per="sample", pairing="permutation", weight=Weight(larger=True)
    )

    keeps_clean: bool = field(default=False, init=False)

    def why_not(self, method: Any) -> str | None:
        """A loss that is coupled over the batch has no classes, nor does a position."""
        if method.coupled:
            return "its loss is a scalar per batch, so a sample has no label of its own"
        if method.soft_labels and method.position_pairs:
            return "its loss is by position too, and the rule's labels are of samples"
        return None

    def __call__(self, mixed: Mixed) -> Tensor:
        """Cross-entropy with virtual labels, or the loss weighted by sample."""
        if mixed.method.soft_labels:
            return self.share * mixed.over_targets(
                lambda b: softmax_loss(mixed, mixed.targets[b], mixed.draw, soft_cross_entropy)
            )
        return self.share * mixed.shared()


@dataclass(frozen=True)
class MixCo(Rule):
    """MixCo: soft labels over the batch and the negatives, at a temperature of its own.

    The released MoCo encodes clean and mixed images in one forward, so batch norm takes its
    statistics over both. The released SimCLR has another form: T_mix .5, a forward of the mixtures
    of each view apart, and half of the sum of both.

    Args:
        share: Weight of the mixed loss beside the clean one (the released code's mix-param).
        temperature: T_mix.
    """

    label: ClassVar[str] = "MixCo"
    source: ClassVar[str] = "Kim et al. 2020 (arXiv 2010.06300); T_mix and labels as its MoCo"
    mixture: ClassVar[MixtureOperator | None] = UnMix(1.0, per="sample", pairing="halves")
    joint: ClassVar[bool] = True

    temperature: float = parameter(0.05, setting="unmix_temperature", above=0)

    def why_not(self, method: Any) -> str | None:
        """It needs instance discrimination."""
        return why_no_softmax(method, "is no label to soften")

    def __call__(self, mixed: Mixed) -> Tensor:
        """Cross-entropy of the mixtures with soft labels."""
        return self.share * mixed.over_targets(
            lambda b: softmax_loss(
                mixed, mixed.targets[b], mixed.draw, soft_cross_entropy, self.temperature
            )
        )


@dataclass(frozen=True)
class ImageSpace(Rule):
    """Image space: the first view is mixed, and the loss is unchanged.

    Args:
        share: Weight of the loss.
    """

    label: ClassVar[str] = "image space"
    source: ClassVar[str] = "Shen et al. 2020 (arXiv 2003.05438 v1)"
    by_position: ClassVar[bool] = True

    keeps_clean: bool = field(default=False, init=False)

    def clean_queries(self, pairs: Sequence[tuple[int, int, float]]) -> set[int]:
        """Those of the other views."""
        return {a for a, _, _ in pairs} - {0}

    def __call__(self, mixed: Mixed) -> Tensor:
        """The clean step's loss, with the mixture for the first view."""
        method, queries = mixed.method, {**mixed.queries, 0: mixed.query}

        def target(a: int, b: int) -> Any:
            """That of the images which query a has: by halves, half of them are mixtures."""
            whole = mixed.targets[b]
            return whole if a else of_partner(whole, mixed.draw.owners[:, 0])

        losses = [
            share * method.compare(queries[a], target(a, b)).mean() for a, b, share in mixed.pairs
        ]
        losses += [
            share * method.compare_positions(queries[a], target(a, b)).sum(dim=(1, 2)).mean()
            for a, b, share in mixed.positions
        ]
        return self.share * torch.stack(losses).sum()


def why_no_softmax(method: Any, so: str) -> str | None:
    """Why a rule that needs a softmax over samples does not apply; None if there is one.

    Args:
        method: A method, its class or an object.
        so: What follows where there is none, behind "so there".
    """
    if method.soft_labels:
        return None
    option = getattr(method, "soft_labels_with", "")
    more = f"; with {option} it is" if option else ""
    return f"its loss is no softmax over samples, so there {so}{more}"


_OverSamples = Callable[[Tensor, Shares, int], Tensor]


def softmax_loss(
    mixed: Mixed,
    target: Any,
    shares: Shares,
    loss: _OverSamples,
    temperature: float | None = None,
) -> Tensor:
    """A loss of the softmax over the batch and the negatives, for one view's targets."""
    return mixed.method.softmax_loss(
        mixed.query, target, lambda logits: loss(logits, shares, mixed.samples), temperature
    )
