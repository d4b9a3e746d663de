"""Where encoders look in images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor
from torch.nn import functional as F

from unmix.backbones import attention_map, is_vit
from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import OpenRun
from unmix.commands.plots.positions import at_positions
from unmix.figures.pictures import Picture, picture_grid

__all__ = ["attention", "overlay", "smallest_half"]

_COLORS, _SHARE = "inferno", 0.6


def attention(request: Request) -> Drawn:
    """For a few test images where each encoder looks, as colors over the image."""
    found = at_positions(request, _map_of, "a vision transformer or of a convolutional network")
    cells = [
        [
            Picture(overlay(pixels, seen), f"half on {smallest_half(seen):.0%}")
            for pixels, seen in zip(pictures, maps, strict=True)
        ]
        for pictures, maps in zip(found.pictures, found.maps, strict=True)
    ]
    caption = (
        f"{found.words}, and below each where an encoder looks: "
        f"{_words(found.runs, found.maps)}, interpolated. Below each map the smallest part of the "
        "image that has half of it; 50% if all cells are alike."
    )
    figure = picture_grid(found.rows(cells), caption=caption, **request.how)
    columns = ["run", "image", "class", "row", "column", "share"]
    return Drawn(figure, columns, list(found.table()), caption)


def _map_of(opened: OpenRun, prepared: Tensor) -> Tensor:
    """Where an encoder looks, (N, rows, columns) of sum 1."""
    encoder = opened.run.encoder
    found = attention_map(encoder.backbone, prepared, encoder.features)
    return found / found.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _words(runs: Sequence[OpenRun], maps: Sequence[Tensor]) -> str:
    """What the maps are, and their sizes."""
    grids: dict[str, set[str]] = {}
    for opened, seen in zip(runs, maps, strict=True):
        backbone = opened.run.encoder.backbone
        if not is_vit(backbone):
            what = "the sum of squares of the last feature map"
        elif getattr(backbone, "cls_token", None) is not None:
            what = "the attention of the class token in the last block"
        else:
            what = "the attention of all patches in the last block"
        grids.setdefault(what, set()).add(f"{seen.shape[1]} x {seen.shape[2]}")
    return "; ".join(f"{what} ({', '.join(sorted(of))} cells)" for what, of in grids.items())


def overlay(pixels: Tensor, seen: Tensor) -> Tensor:
    """Color an image by a map: dark where it is 0, bright where it is largest.

    Args:
        pixels: uint8 (3, H, W).
        seen: (rows, columns), at least 0.

    Returns:
        uint8 (3, H, W).
    """
    size = (pixels.shape[1], pixels.shape[2])
    smooth = F.interpolate(seen[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    relative = (smooth / smooth.max().clamp_min(torch.finfo(torch.float32).tiny)).numpy()
    colors = torch.from_numpy(np.ascontiguousarray(colormaps[_COLORS](relative)[..., :3]))
    gray = pixels.float().mean(dim=0, keepdim=True)
    mixed = (1 - _SHARE) * gray + _SHARE * 255 * colors.permute(2, 0, 1)
    return mixed.round().clamp(0, 255).to(torch.uint8)


def smallest_half(seen: Tensor) -> float:
    """The share of cells, the largest first, that have half of a map; 0.5 if all are alike.

    Within the last of these cells it is interpolated.
    """
    parts = seen.flatten().double().sort(descending=True).values
    half = parts.sum() / 2
    if half <= 0:
        return 0.5
    before = torch.cat([parts.new_zeros(1), parts.cumsum(0)])
    full = int((before[1:] < half).sum())
    return float((full + (half - before[full]) / parts[full]) / len(parts))
