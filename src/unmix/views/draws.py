"""Random parameters of a view: drawn here, applied in `pipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmix.config import ViewSettings
from unmix.randomness import uniform
from unmix.transfer import to_device
from unmix.views.color import ColorDraw, draw_color
from unmix.views.geometry import draw_boxes

__all__ = ["ViewDraw", "draw_crops", "draw_view", "moved"]


@dataclass(frozen=True)
class ViewDraw:
    """Parameters of one view, drawn for N images; None for a step that the settings turn off.

    Attributes:
        boxes: int64 `(N, 4)`: top, left, height and width of the crop, in pixels of the image.
        flip: bool `(N,)`, which views are flipped horizontally.
        color: Color jitter and grayscale.
        sigma: float32 `(N,)`, standard deviation of the blur in pixels of the view; 0 for no blur.
        solarize: bool `(N,)`, which views are solarized.
        size: Height and width of the images that it was drawn for; None if they differ.
    """

    boxes: Tensor
    flip: Tensor | None
    color: ColorDraw | None
    sigma: Tensor | None
    solarize: Tensor | None
    size: tuple[int, int] | None = None

    def to(self, device: torch.device | str) -> ViewDraw:
        """Return the same draw on another device."""
        return ViewDraw(
            boxes=to_device(self.boxes, device),
            flip=moved(self.flip, device),
            color=None if self.color is None else self.color.to(device),
            sigma=moved(self.sigma, device),
            solarize=moved(self.solarize, device),
            size=self.size,
        )


def draw_crops(
    settings: ViewSettings,
    n: int,
    height: int | Tensor,
    width: int | Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Tensor:
    """Draw the crops of one view; arguments and result as for `draw_boxes`."""
    scale = (settings.crop_scale_min, settings.crop_scale_max)
    return draw_boxes(n, height, width, generator, scale=scale, ratio=settings.crop_ratio)


def draw_view(
    settings: ViewSettings,
    n: int,
    height: int | Tensor,
    width: int | Tensor,
    generator: torch.Generator | None,
) -> ViewDraw:
    """Draw one view of `n` images.

    Args:
        settings: Ranges and probabilities.
        n: Number of images.
        height: Height of the images in pixels: one for all, or int64 `(n,)`.
        width: Width in pixels, likewise.
        generator: Source of the random numbers; the draw is on its device.
    """
    flip = color = sigma = solarize = None
    boxes = draw_crops(settings, n, height, width, generator)
    if settings.flip_p > 0:
        flip = uniform((n,), generator) < settings.flip_p
    if settings.jitter_p > 0 or settings.gray_p > 0:
        color = draw_color(
            n,
            generator,
            jitter=settings.jitter,
            jitter_p=settings.jitter_p,
            gray_p=settings.gray_p,
        )
    if settings.blur_p > 0:
        low, high = settings.blur_sigma
        coin, place = uniform((2, n), generator)
        sigma = (low + (high - low) * place) * (coin < settings.blur_p)
    if settings.solarize_p > 0:
        solarize = uniform((n,), generator) < settings.solarize_p
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return ViewDraw(boxes, flip, color, sigma, solarize, size)


def moved(value: Tensor | None, device: torch.device | str) -> Tensor | None:
    """Return a part of a draw on another device, by an asynchronous copy."""
    return None if value is None else to_device(value, device)
