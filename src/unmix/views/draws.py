"""What is drawn for a view, apart from applying it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmix.config import ViewSettings
from unmix.randomness import uniform
from unmix.transfer import to_device
from unmix.views.colour import ColourDraw, draw_colour
from unmix.views.geometry import draw_boxes

__all__ = ["ViewDraw", "draw_crops", "draw_view", "moved"]


@dataclass(frozen=True)
class ViewDraw:
    """What was drawn for one view of N images; a step that the settings rule out is None.

    Attributes:
        boxes: int64 `(N, 4)`: top, left, height and width of the crop, in pixels of the image.
        flip: bool `(N,)`, which views are mirrored.
        colour: Colour jitter and grayscale.
        sigma: float32 `(N,)`, standard deviation of the blur in pixels of the view; 0 is no blur.
        solarize: bool `(N,)`, which views are solarized.
    """

    boxes: Tensor
    flip: Tensor | None
    colour: ColourDraw | None
    sigma: Tensor | None
    solarize: Tensor | None

    def to(self, device: torch.device | str) -> ViewDraw:
        """Give the same draw on another device."""
        return ViewDraw(
            boxes=to_device(self.boxes, device),
            flip=moved(self.flip, device),
            colour=None if self.colour is None else self.colour.to(device),
            sigma=moved(self.sigma, device),
            solarize=moved(self.solarize, device),
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
        settings: What is drawn.
        n: How many images.
        height: Their height in pixels, one for all or int64 `(n,)`.
        width: Their width in pixels, likewise.
        generator: Where the random numbers come from; the draw is on its device.
    """
    flip = colour = sigma = solarize = None
    boxes = draw_crops(settings, n, height, width, generator)
    if settings.flip_p > 0:
        flip = uniform((n,), generator) < settings.flip_p
    if settings.jitter_p > 0 or settings.gray_p > 0:
        colour = draw_colour(
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
    return ViewDraw(boxes, flip, colour, sigma, solarize)


def moved(value: Tensor | None, device: torch.device | str) -> Tensor | None:
    """Give a part of a draw on another device, without waiting for it."""
    return None if value is None else to_device(value, device)
