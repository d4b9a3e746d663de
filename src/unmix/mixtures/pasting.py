"""ResizeMix: the whole partner, made small, is pasted into the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unmix.errors import check_number
from unmix.mixtures.boxes import box_area, box_mask, resized_boxes
from unmix.mixtures.draws import MixtureDraw, Pairs, formatted, source_of
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.pixels import pixelwise
from unmix.mixtures.positions import box_coverage
from unmix.mixtures.sampling import PAIRINGS, Pairing, Weight, checked_shape
from unmix.randomness import uniform
from unmix.transfer import to_device

__all__ = ["PasteDraw", "ResizeMix"]


@dataclass(frozen=True)
class PasteDraw(Pairs):
    """Mixtures of pairs: the box of an image is its whole partner, resized with antialiasing.

    Attributes:
        partner: Index of the other image, int64 (M,).
        box: Where the other image is: top, left, bottom, right, int64 (M, 4); empty for nowhere.
        size: Height and width of the images that this was drawn for.
        per_sample: False if the whole batch shares one box.
        batch: Number of images that this was drawn for.
    """

    mixes_regions: ClassVar[bool] = True
    in_place: ClassVar[bool] = False

    partner: Tensor
    box: Tensor
    size: tuple[int, int]
    per_sample: bool
    batch: int

    @property
    def weight(self) -> Tensor:
        """Share of the pixels that stay the image's own, (M,)."""
        height, width = self.size
        return 1 - box_area(self.box) / (height * width)

    def weight_at(self, rows: int, columns: int) -> Tensor:
        """Share of the pixels of each cell that stay the image's own, (M, rows, columns)."""
        return 1 - box_coverage(self.box, self.size, rows, columns)

    @property
    def is_mixed(self) -> Tensor:
        """True where the mixture differs from the image, bool (M,)."""
        return box_area(self.box) > 0

    def resized(self, height: int, width: int) -> PasteDraw:
        """The same partners, with scaled boxes."""
        box = resized_boxes(self.box, self.size, (height, width))
        return replace(self, box=box, size=(height, width))

    @pixelwise
    def apply(self, images: Tensor, others: Sequence[Tensor] = ()) -> Tensor:
        """Mix a batch (N, C, H, W) with itself, or with another view of itself."""
        source = source_of(images, others, self.batch, self.size)
        own = images[: len(self.partner)]
        source = source[to_device(self.partner, images.device)]
        if not self.per_sample:
            top, left, bottom, right = self.box[0].tolist()
            if bottom <= top or right <= left:
                return own
            mixed = own.clone()
            mixed[:, :, top:bottom, left:right] = _placed(source, self.box[:1])[
                :, :, top:bottom, left:right
            ]
            return mixed
        box = to_device(self.box, images.device)
        pasted = _placed(source, box)
        return formatted(torch.where(box_mask(box, *self.size), pasted, own), own)


def _placed(images: Tensor, box: Tensor) -> Tensor:
    """Images (M, C, H, W) resized into their boxes (M, 4) or (1, 4), with zeros around.

    Resizing is separable and linear in the pixels: a matrix for the rows and one for the columns
    give every image a size of its own, in two batched products.
    """
    height, width = images.shape[2:]
    box = to_device(box, images.device)
    with torch.autocast(images.device.type, enabled=False):
        rows = _resizing(box[:, 0], box[:, 2] - box[:, 0], height)[:, None]
        columns = _resizing(box[:, 1], box[:, 3] - box[:, 1], width)[:, None]
        return (rows @ images.float() @ columns.mT).to(images.dtype)


def _resizing(start: Tensor, length: Tensor, size: int) -> Tensor:
    """The matrices that shrink `size` pixels to `length` and put them at `start`: (M, size, size).

    The filter is the triangle that PyTorch's antialiased bilinear resizing has.
    """
    places = torch.arange(size, device=start.device, dtype=torch.float32)
    step = size / length.float().clamp(min=1)[:, None]
    center = (places - start[:, None] + 0.5) * step
    distance = (places + 0.5 - center[..., None]) / step[..., None]
    weights = (1 - distance.abs()).clamp(min=0)
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True)
class ResizeMix(PairOperator):
    """The whole partner, resized, is pasted at a random place.

    So the pasted pixels always show what the partner shows. Both sides shrink by tau, and the share
    of the partner is its area, tau^2, counted in pixels. Source: Qin et al. 2020 (arXiv
    2012.11101), Sec. 3.2, with the paper's tau ~ U(0.1, 0.8).

    Args:
        tau: Least and greatest share of the sides, in (0, 1].
        weight: A distribution of lambda, which then decides tau = sqrt(1 - lambda); SDMP's lambda
            is from U(0.1, 0.9).
        per: One box per `batch`, or per `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    by_region: ClassVar[bool] = True

    one_draw = "one box"
    tau: tuple[float, float] = parameter((0.1, 0.8), above=0, at_most=1)
    weight: Weight | None = None
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.tau
        check_number("tau", high, at_least=low, at_most=1, owner="ResizeMix")

    @property
    def in_place(self) -> bool:
        """False: the pasted image is resized."""
        return False

    def describe_mixing(self) -> str:
        """What is pasted, and the distribution of its sides."""
        low, high = self.tau
        sides = self.weight or f"sides times U({low:g}, {high:g})"
        return f"the whole partner, resized; {sides}"

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for nearest neighbors."""
        n, height, width = checked_shape(shape, region=True)
        m = self._times(n)
        if self.weight is None:
            low, high = self.tau
            tau = low + (high - low) * uniform((m,), generator).cpu()
        else:
            tau = (1 - self.weight.draw(m, generator)).sqrt()
        size = torch.tensor([height, width], device="cpu")
        sides = (tau[:, None] * size).long().clamp(min=1)
        sides = torch.where(tau[:, None] > 0, sides, 0)
        free = size - sides
        corner = (uniform((m, 2), generator).cpu() * (free + 1)).long().minimum(free)
        partner = self._partner(n, generator, features)
        pairs = PasteDraw(
            partner,
            torch.cat([corner, corner + sides], dim=1).expand(len(partner), 4),
            (height, width),
            per_sample=self.per == "sample",
            batch=n,
        )
        return self._credited(pairs)
