"""A frozen network that sees a method's views as it was trained to see images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix.backbones import feature_dim
from unmix.errors import UserError, check_number

__all__ = ["Teacher"]


class Teacher(nn.Module):
    """A trained network, frozen and in evaluation mode, for views of another size or normalization.

    The views are (pixels - view_mean) / view_std; the network is given (pixels - mean) / std,
    resized to `size` (bicubic, antialiased). Without means and deviations it is given the views'.

    Args:
        network: Images (N, 3, H, W) to pooled features (N, D); any module. It is frozen.
        size: Side in pixels of the images that it is given; None for the views' own.
        mean: By which its images were normalized, for each channel, in [0, 1].
        std: Standard deviation, likewise.
        view_mean: By which the views are normalized, likewise.
        view_std: Standard deviation, likewise.

    Attributes:
        feature_dim: D.

    Raises:
        UserError: if a number is out of range, or some of the four normalizations are missing.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        view_mean: Sequence[float] | None = None,
        view_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if size is not None:
            check_number("size", size, at_least=1, owner="Teacher")
        self.feature_dim = feature_dim(network)
        self.network, self.size = network.eval().requires_grad_(False), size
        scale, shift = _change(mean, std, view_mean, view_std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, views: Tensor) -> Tensor:
        """Features (N, D) of views (N, 3, H, W)."""
        side = self.size
        if side is not None and tuple(views.shape[2:]) != (side, side):
            views = F.interpolate(
                views, (side, side), mode="bicubic", align_corners=False, antialias=True
            )
        if len(self.scale):
            views = views * self.scale.to(views.dtype) + self.shift.to(views.dtype)
        return self.network(views)


def _change(*given: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """Factor and summand, (C, 1, 1), from the views' normalization to the network's; or empty."""
    if all(each is None for each in given):
        return torch.empty(0), torch.empty(0)
    names = ("mean", "std", "view_mean", "view_std")
    for name, each in zip(names, given, strict=True):
        if each is None:
            raise UserError(
                f"is missing; give {', '.join(names[:3])} and {names[3]} together, or none.",
                parameter=name,
                owner="Teacher",
            )
        for value in each:
            bounds: dict[str, Any] = {"above": 0} if name.endswith("std") else {}
            check_number(name, value, owner="Teacher", **bounds)
    mean, std, view_mean, view_std = (
        torch.as_tensor(each, dtype=torch.float64)[:, None, None] for each in given
    )
    return (view_std / std).float(), ((view_mean - mean) / std).float()
