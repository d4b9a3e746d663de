"""Where encoders look in images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor
from torch.nn import functional as F

from unmix.backbones import attention_map, is_vit
from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import OpenRun, chosen_images, images_of, open_runs
from unmix.data import read_uint8
from unmix.errors import UserError, check_number
from unmix.figures.embedding import name_of
from unmix.figures.pictures import Picture, PictureRow, picture_grid
from unmix.figures.widths import inches
from unmix.hardware.threads import CoreMeter
from unmix.names import shown
from unmix.training.console import quiet_libraries

__all__ = ["attention", "overlay", "smallest_half"]

_MOST, _LETTERS = 24, 13
_NARROW = 5  # inches
_COLORS, _SHARE = "inferno", 0.6


def attention(request: Request) -> Drawn:
    """For a few test images where each encoder looks, as colors over the image."""
    columns = 8 if inches(request.width) > _NARROW else 5
    count = request.option("images", columns)
    check_number("images", count, at_least=1, at_most=_MOST)
    quiet_libraries()
    cores = CoreMeter()
    runs = open_runs(request)
    images = images_of(runs, request, "the figure attention")
    test, classes = images[0].test, images[0].classes
    chosen = chosen_images(test, count, request.option("seed"))
    kept, maps = torch.empty(0, dtype=torch.long), []
    pictures: list[Tensor] = []
    for opened in runs:
        pixels, kept = read_uint8(test, chosen, opened.run.encoder.views.size)
        if not len(kept):
            raise UserError(f"{test.name}: none of the images to show can be read.")
        with opened.computing(request, cores):
            maps.append(_map_of(opened, pixels))
        pictures.append(pixels.cpu())
    names = [
        "" if test.labels is None else name_of(int(test.labels[i]), classes or (), _LETTERS)
        for i in kept
    ]
    rows: list[PictureRow] = []
    for some in torch.arange(len(kept)).split(columns):
        first = [Picture(pictures[0][i], names[i]) for i in some]
        rows.append(PictureRow("", first, apart=bool(rows)))
        for opened, seen, own in zip(runs, maps, pictures, strict=True):
            cells = [
                Picture(overlay(own[i], seen[i]), f"half on {smallest_half(seen[i]):.0%}")
                for i in some
            ]
            rows.append(PictureRow(opened.label, cells))
    words = images[0].words
    caption = (
        f"{words[0].upper()}{words[1:]}, and below each where an encoder looks: "
        f"{_words(runs, maps)}, interpolated. Below each map the smallest part of the image "
        "that has half of it; 50% if all cells are alike."
    )
    figure = picture_grid(rows, caption=caption, **request.how)
    table = list(_table(runs, maps, kept, [""] * len(kept) if test.labels is None else [
        (classes or ())[int(test.labels[i])] for i in kept
    ]))  # fmt: skip
    return Drawn(figure, ["run", "image", "class", "row", "column", "share"], table, caption)


def _map_of(opened: OpenRun, pixels: Tensor) -> Tensor:
    """Where an encoder looks, (N, rows, columns) of sum 1."""
    encoder = opened.run.encoder
    device = next(encoder.parameters()).device
    prepared = encoder.views.plain(pixels.to(device))
    try:
        found = attention_map(encoder.backbone, prepared, encoder.features).cpu()
    except UserError as error:
        raise UserError(
            f"{shown(opened.path)}: {error.message.partition(';')[0]}; give runs of a vision "
            "transformer or of a convolutional network."
        ) from None
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


def _table(
    runs: list[OpenRun], maps: list[Tensor], kept: Tensor, names: list[str]
) -> Iterator[list[Any]]:
    for opened, seen in zip(runs, maps, strict=True):
        for number, index in enumerate(kept.tolist()):
            for row, cells in enumerate(seen[number].tolist()):
                for column, share in enumerate(cells):
                    yield [opened.label, index, names[number], row, column, share]
