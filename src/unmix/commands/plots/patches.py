"""What encoders take as alike within images: principal components of features at positions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unmix.backbones import HalfEncoders, dense_features
from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import OpenRun
from unmix.commands.plots.positions import at_positions
from unmix.figures.pictures import Picture, picture_grid

__all__ = ["colored", "components", "patches"]

_COLORS = 3  # red, green, blue


def patches(request: Request) -> Drawn:
    """For a few test images which positions each encoder takes as alike, as colors.

    As in Figure 1 of DINOv2 (Oquab et al., arXiv 2304.07193), the first three principal components
    of the features at all positions of the images shown are red, green and blue.
    """
    found = at_positions(request, _features, "a vision transformer or of a convolutional network")
    projected, shares = zip(*map(components, found.maps), strict=True)
    found = replace(found, maps=list(projected))
    cells = [[Picture(pixels) for pixels in colored(maps)] for maps in projected]
    details = [
        f"{opened.label}: {maps.shape[1]} x {maps.shape[2]} positions, {share:.0%} of the variance"
        for opened, maps, share in zip(found.runs, projected, shares, strict=True)
    ]
    caption = (
        f"{found.words}, and below each the first three principal components of an encoder's "
        "features at positions as red, green and blue, from the least to the largest value over "
        "the images shown. Components are each run's own: colors are compared within a row of "
        f"images, not between runs. {'; '.join(details)}."
    )
    figure = picture_grid(found.rows(cells), caption=caption, **request.how)
    columns = ["run", "image", "class", "row", "column", "pc1", "pc2", "pc3"]
    return Drawn(figure, columns, list(found.table()), caption)


def _features(opened: OpenRun, prepared: Tensor) -> Tensor:
    """Features at positions, float32 (N, rows, columns, D); of half-encoders side by side."""
    backbone = opened.run.encoder.backbone
    parts = [(backbone, prepared)]
    if isinstance(backbone, HalfEncoders):
        parts = [(backbone.l, prepared[:, :1]), (backbone.ab, prepared[:, 1:])]
    maps = [dense_features(part, images).float() for part, images in parts]
    return torch.cat(maps, dim=1).permute(0, 2, 3, 1)


def components(features: Tensor) -> tuple[Tensor, float]:
    """Project features at positions to their first three principal components.

    Args:
        features: (N, rows, columns, D); the components are over all N x rows x columns of them.

    Returns:
        The projections, float64 (N, rows, columns, 3), 0 for components that are rounding alone;
        and the share of the variance that they have, 0 if all features are the same.
    """
    from sklearn.decomposition import PCA

    rows = features.flatten(0, -2).double()
    rounding = torch.finfo(features.dtype).eps * float(rows.square().sum())
    rows = rows - rows.mean(dim=0)
    found, total = rows.new_zeros(len(rows), _COLORS), float(rows.square().sum())
    if total > rounding:
        fitted = PCA(min(_COLORS, *rows.shape), svd_solver="full").fit_transform(rows.numpy())
        own = torch.from_numpy(fitted)
        found[:, : own.shape[1]] = torch.where(own.square().sum(dim=0) > rounding, own, 0.0)
    share = float(found.square().sum()) / total if total > rounding else 0.0
    return found.unflatten(0, features.shape[:-1]), share


def colored(projected: Tensor) -> Tensor:
    """Three components as colors, each from its least to its largest value.

    Args:
        projected: (N, rows, columns, 3).

    Returns:
        uint8 (N, 3, rows, columns); middle gray of a component that is the same everywhere.
    """
    low, high = projected.amin(dim=(0, 1, 2)), projected.amax(dim=(0, 1, 2))
    span = torch.where(high > low, high - low, torch.ones_like(high))
    relative = torch.where(high > low, (projected - low) / span, torch.full_like(projected, 0.5))
    return (255 * relative).round().to(torch.uint8).permute(0, 3, 1, 2)
