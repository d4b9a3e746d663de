"""The images of a mixture, in the order in which they were mixed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unmix.mixtures import EraseDraw, ImageSpaceDraw, MixtureDraw, PairDraw
from unmix.mixtures.crops import CropDraw

__all__ = ["Part", "boxes_of", "own_weight", "parts_of"]

_NOWHERE = (0, 0, 0, 0)


@dataclass(frozen=True)
class Part:
    """An image that was mixed in.

    Attributes:
        image: float `(3, H, W)`, in the units of the images that are mixed.
        caption: Its label; empty for the only partner.
        share: Its weight when it is mixed in, in [0, 1]; None if a box or mask determines it.
        box: The box it fills: top, left, bottom, right; all 0 for the whole image, or no box.
        inner: Whether it is only mixed into the next part that is not inner.
    """

    image: Tensor
    caption: str = ""
    share: float | None = None
    box: tuple[int, int, int, int] = _NOWHERE
    inner: bool = False


def parts_of(draw: Any, row: int, images: Tensor, crops: Sequence[Tensor] = ()) -> list[Part]:
    """The images that were mixed into image `row`.

    For the image-space chain, one per applied round: the partner of a MixUp round with its weight,
    that of a CutMix round with its box. If the partner of a box was mixed before it was pasted,
    that partner and its own partners precede the pasted result.

    Args:
        draw: The draw of any mixture.
        row: The row of the mixture.
        images: float `(N, 3, H, W)`, the images that the draw is for.
        crops: The additional views that it needs.
    """
    if isinstance(draw, EraseDraw):
        return []
    if isinstance(draw, ImageSpaceDraw):
        return _of_the_chain(draw, row, images)
    if isinstance(draw, CropDraw):
        return _of_crops(draw, row, crops)
    source = crops[0] if crops else images
    owners, shares = draw.owners[row].tolist(), draw.shares[row].tolist()
    if len(owners) > 2:
        others = zip(owners[1:], shares[1:], strict=True)
        return [Part(source[owner], f"share {share:.2f}", share) for owner, share in others]
    return [Part(source[owners[1]], box=_box(getattr(draw, "pairs", draw), row))]


def boxes_of(draw: Any, row: int, parts: Sequence[Part]) -> list[tuple[int, int, int, int]]:
    """The box of each part, or of what was erased."""
    if isinstance(draw, EraseDraw):
        return [_box(draw, row)]
    return [part.box for part in parts]


def own_weight(draw: Any, row: int, images: Tensor) -> float:
    """The weight of the image itself: in the loss, or in the pixels."""
    if isinstance(draw, MixtureDraw):
        return float(draw.weight[row])
    ones = torch.zeros(len(images), 1, *images.shape[2:])
    ones[row] = 1
    if isinstance(draw, EraseDraw):
        draw = EraseDraw(draw.box, torch.zeros_like(draw.fill), draw.size)
    elif isinstance(draw, ImageSpaceDraw):
        draw = ImageSpaceDraw(draw.own, draw.regions, draw.partners, torch.ones_like(draw.decay))
    return float(draw.apply(ones)[row].mean())


def _of_the_chain(draw: ImageSpaceDraw, row: int, images: Tensor) -> list[Part]:
    fired = [round_ for round_ in draw.own if bool(round_.is_mixed[row])]
    parts = [_mixed_in(round_, row, images, "global") for round_ in fired]
    for region, rounds in zip(draw.regions, draw.partners, strict=True):
        if not bool(region.is_mixed[row]):
            continue
        partner, box = images[int(region.partner[row])], _box(region, row)
        inner = [round_ for round_ in rounds if bool(round_.is_mixed[row])]
        if not inner:
            parts.append(Part(partner, "pasted", box=box))
            continue
        pasted = partner
        parts.append(Part(partner, "to be pasted", inner=True))
        for round_ in inner:
            part = replace(_mixed_in(round_, row, images, "into that"), inner=True)
            pasted = (1 - part.share) * pasted + part.share * part.image  # type: ignore[operator]
            parts.append(part)
        parts.append(Part(pasted, "pasted", box=box))
    return parts


def _mixed_in(round_: PairDraw, row: int, images: Tensor, word: str) -> Part:
    share = 1 - float(round_.ratio[row])
    return Part(images[int(round_.partner[row])], f"{word} {share:.2f}", share)


def _of_crops(draw: CropDraw, row: int, crops: Sequence[Tensor]) -> list[Part]:
    """The crops of an image, the first one without a predecessor."""
    order = draw.order[row if len(draw.order) > 1 else 0].tolist()
    parts = [Part(crops[order[0]][row], "crop")]
    for number, round_ in enumerate(draw.rounds):
        crop = crops[order[number + 1]][row]
        if draw.channels:
            channels = draw.channels[number]
            crop = crop[channels[row if len(channels) > 1 else 0]]
        box, share = _box(round_, row), 1 - float(round_.ratio[row])
        whole = box == _NOWHERE
        caption = f"crop {share:.2f}" if whole else "crop"
        parts.append(Part(crop, caption, share if whole else None, box))
    return parts


def _box(draw: Any, row: int) -> tuple[int, int, int, int]:
    """The box of a draw, if it has one and it is not the whole image."""
    if not hasattr(draw, "box"):
        return _NOWHERE
    top, left, bottom, right = draw.box[row].tolist()
    if (top, left, bottom, right) == (0, 0, *draw.size):
        return _NOWHERE
    return top, left, bottom, right
