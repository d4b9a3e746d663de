"""The interface of mixture operators: what is drawn, and what a training step needs for it.

Each operator draws for a batch shape and a `torch.Generator` and returns a record (see
`unmix.mixtures.draws`) that does the work:

    draw = UnMix().draw(x.shape, generator)
    mixed = draw.apply(x)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from unmix.errors import UserError
from unmix.mixtures.draws import Draw, MixtureDraw
from unmix.mixtures.fields import check_parameters
from unmix.mixtures.own_draws import OneOwner, OwnDraw
from unmix.mixtures.sampling import Pairing, Weight, partners

__all__ = [
    "PER",
    "Drawn",
    "MixtureOperator",
    "Operator",
    "PairOperator",
    "Per",
]

Per = Literal["batch", "sample"]
PER: tuple[str, ...] = get_args(Per)

Self = TypeVar("Self", bound="MixtureOperator")


class Operator(ABC):
    """Draws what happens to a batch of images. All operators are of this class."""

    @abstractmethod
    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Draw:
        """Draw for a batch of shape (N, C, H, W)."""

    def describe(self) -> str:
        """What is mixed, and how lambda is distributed, in a line."""
        return repr(self)


class MixtureOperator(Operator):
    """Draws label-space mixtures, whose loss is shared among the owners of their images.

    A subclass is a frozen dataclass with `per`: "batch" or "sample", one draw for all images, or
    one for each. It overrides what does not apply to it.

    Attributes:
        mixes_pairs: Whether each mixture is of two images.
        mixes_pixels: Whether mixtures are images, which can be encoded in one batch with clean
            ones.
        needs_pixels: Whether the draw depends on the images; see `draw_for`.
        needs_attention: Whether it depends on where the encoder looks in them.
        one_draw: What is drawn for a batch or a sample, such as "one weight".
    """

    mixes_pairs: ClassVar[bool] = False
    mixes_pixels: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False
    one_draw = "one draw"

    per: Per

    def __post_init__(self) -> None:
        check_parameters(self)

    @abstractmethod
    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features are (N, D), on any device."""

    def draw_for(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for images (N, C, H, W), with all that the operator needs of them.

        Args:
            images: The images, on any device.
            generator: For the draw.
            features: Of the images, (N, D), if it `needs_features`.
            attention: Where the encoder looks, (N, rows, columns), if it `needs_attention`.
        """
        return self.draw(images.shape, generator, features)

    @property
    def extra(self) -> tuple[tuple[float, float] | None, ...]:
        """For every further view that it needs of each image, the range of its crop's area.

        As shares of the image; None for the run's own range.
        """
        return ()

    @property
    def mixes_regions(self) -> bool:
        """Whether each pixel of every mixture is of one image; else it may be of several."""
        return False

    @property
    def needs_features(self) -> bool:
        """Whether partners are nearest neighbors, so that `draw` needs features of the batch."""
        return False

    @property
    def shares_vary(self) -> bool:
        """Whether samples differ in the owners' shares."""
        return self.per == "sample"

    @property
    def in_place(self) -> bool:
        """Whether each pixel of a mixture shows what an owner's first view has at that place."""
        return self.mixes_pixels and not self.extra

    @property
    def cell(self) -> int | None:
        """Side in pixels of the cells that each have one owner; None if they are not aligned."""
        return getattr(self, "align", None)

    def aligned(self: Self, side: int) -> Self:
        """The same operator, with boxes and masks of whole cells of `side` pixels, if it has any.

        Raises:
            UserError: if it has cells already, which those of this side would be cut by.
        """
        if not hasattr(self, "align"):
            return self
        if self.cell is None:
            changed: Any = self
            return replace(changed, align=side)
        if self.cell % side:
            raise UserError(
                f"cells of {self.cell} pixels would cut the patches of {side} that the loss is by; "
                f"use {side} or a multiple, or leave it out.",
                parameter="align",
            )
        return self

    def mixtures_of(self, n: int) -> int:
        """How many mixtures a batch of n images makes."""
        return n

    def for_encoder(self: Self, encoder: nn.Module, name: str, patch: int | None) -> Self:
        """The same operator, with what follows from the encoder that will see its mixtures.

        Args:
            encoder: The encoder, or a module that has it.
            name: Of its backbone, for messages.
            patch: Side of its patches in pixels; None if it is no vision transformer.

        Raises:
            UserError: if the operator does not apply to it.
        """
        return self


@dataclass(frozen=True)
class Drawn(MixtureOperator):
    """An operator that returns one draw, whatever it is asked to draw for.

    Args:
        mixtures: The draw.
    """

    mixtures: MixtureDraw

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Return the draw, for images of another size the same one scaled."""
        height, width = shape[2:]
        if getattr(self.mixtures, "size", None) == (height, width):
            return self.mixtures
        return self.mixtures.resized(height, width)

    @property
    def per(self) -> Per:  # type: ignore[override]
        """Whether shares differ from mixture to mixture."""
        return "sample" if self.mixtures.per_sample else "batch"

    @property
    def pairing(self) -> Pairing | None:
        """The pairing, where rules ask for it."""
        if isinstance(self.mixtures, OneOwner):
            return "second_view"
        fewer = len(self.mixtures.owners) < (getattr(self.mixtures, "batch", None) or 0)
        return "halves" if fewer else None

    @property
    def mixes_pairs(self) -> bool:  # type: ignore[override]
        """Whether each mixture is of two images."""
        return self.pairing != "second_view" and self.mixtures.owners.shape[1] == 2

    @property
    def mixes_pixels(self) -> bool:  # type: ignore[override]
        """Whether mixtures are images."""
        return getattr(self.mixtures, "mixes_pixels", True)

    @property
    def mixes_regions(self) -> bool:
        """Whether each pixel is of one image."""
        return getattr(self.mixtures, "mixes_regions", False)

    @property
    def extra(self) -> tuple[None, ...]:
        """A further view, if mixtures are of several views of an image."""
        return (None,) if self.pairing == "second_view" else ()

    @property
    def in_place(self) -> bool:
        """Whether each pixel shows what an owner's first view has at that place."""
        return super().in_place and getattr(self.mixtures, "in_place", True)

    def mixtures_of(self, n: int) -> int:
        """How many mixtures a batch of n images makes: half as many by halves."""
        return n // 2 if self.pairing == "halves" else n


class PairOperator(MixtureOperator):
    """An operator that mixes two images.

    Its dataclass has, beside `per`, `pairing` (see `unmix.mixtures.sampling.partners`) and
    `weight`, the distribution of lambda; None is the operator's own.

    Attributes:
        by_region: Whether each pixel of a mixture is of one of both.
    """

    mixes_pairs: ClassVar[bool] = True
    by_region: ClassVar[bool] = False

    pairing: Pairing
    weight: Weight | None

    def __post_init__(self) -> None:
        if self.pairing == "neighbour":  # the spelling of earlier versions
            object.__setattr__(self, "pairing", "neighbor")
        super().__post_init__()
        weight = getattr(self, "weight", None)
        if weight is not None and not isinstance(weight, Weight):
            raise UserError(
                f"{weight!r} is no distribution of lambda; give one, such as "
                "Weight('uniform', low=0.3, high=0.3).",
                parameter="weight",
                owner=type(self).__name__,
            )

    def describe(self) -> str:
        """What is mixed, the distribution of lambda, and the partner unless it is in reverse."""
        kind = self.describe_mixing()
        if self.cell is not None:
            kind = f"{kind}; in cells of {self.cell} px"
        return kind if self.pairing == "reverse" else f"{kind}; partner by {self.pairing}"

    def describe_mixing(self) -> str:
        """What is mixed, and how lambda is distributed."""
        return f"{type(self).__name__}; {self.weight}"

    @property
    def extra(self) -> tuple[tuple[float, float] | None, ...]:
        """One further view if an image is mixed with its own second view."""
        return (None,) if self.pairing == "second_view" else ()

    @property
    def mixes_regions(self) -> bool:
        """Whether each pixel is of one image: `by_region`, but for two views of one image."""
        return self.by_region and self.pairing != "second_view"

    @property
    def needs_features(self) -> bool:
        """Whether partners are nearest neighbors."""
        return self.pairing == "neighbor"

    @property
    def shares_vary(self) -> bool:
        """Whether samples differ in the owners' shares; an image's own are always 1."""
        return self.per == "sample" and self.pairing != "second_view"

    def mixtures_of(self, n: int) -> int:
        """How many mixtures a batch of n images makes: half as many by halves."""
        return n // 2 if self.pairing == "halves" else n

    def _times(self, n: int) -> int:
        """How often is drawn for a batch of n images: once, or for each mixture."""
        return 1 if self.per == "batch" else self.mixtures_of(n)

    def _partner(
        self, n: int, generator: torch.Generator | None, features: Tensor | None
    ) -> Tensor:
        return partners(self.pairing, n, generator, features)

    def _credited(self, draw: MixtureDraw) -> MixtureDraw:
        """The draw; of two views of one image all shares are the sample's."""
        return OwnDraw(draw) if self.pairing == "second_view" else draw
