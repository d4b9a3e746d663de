"""Random resized crops and flips, as boxes and as resampling weights.

Resizing is linear in the pixels and separable: a crop of an image `X`, resized and flipped, is
`R X C^T` with one small weight matrix for the rows and one for the columns. Two batched matrix
products therefore give every sample its own crop, antialiased where it shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmix.errors import UserError, check_choice
from unmix.randomness import uniform

__all__ = [
    "INTERPOLATIONS",
    "center_boxes",
    "crop_pil",
    "crop_weights",
    "draw_boxes",
    "resample",
    "resampling_weights",
]

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_ATTEMPTS = 10


def draw_boxes(
    n: int,
    height: int | Tensor,
    width: int | Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Draw crop boxes with the distribution of torchvision's `RandomResizedCrop`.

    Ten attempts at an area, uniform in `scale`, and an aspect, log-uniform in `ratio`; the first
    that fits is placed uniformly. If none fits, the largest centered box whose aspect is within
    `ratio`.

    Args:
        n: Number of boxes.
        height: Height of the images in pixels: one for all, or int64 `(n,)`.
        width: Width of the images in pixels, likewise.
        generator: Source of the random numbers: one for all images, or one per image, whose box
            then does not depend on the other images.
        scale: Smallest and largest area, as a share of the image's.
        ratio: Smallest and largest width / height.

    Returns:
        int64 `(n, 4)` on the generator's device: top, left, height, width.
    """
    count = 2 * _ATTEMPTS + 2
    if isinstance(generator, Sequence):
        numbers = torch.cat([uniform((1, count), each) for each in generator])
    else:
        numbers = uniform((n, count), generator)
    heights, widths = (_for_each(side, n, numbers.device) for side in (height, width))
    sides = torch.stack([heights, widths])[..., None]

    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    area = numbers[:, :_ATTEMPTS] * (scale[1] - scale[0]) + scale[0]
    area = area * sides.prod(dim=0)
    aspect = numbers[:, _ATTEMPTS : 2 * _ATTEMPTS] * (log_ratio[1] - log_ratio[0]) + log_ratio[0]
    aspect = aspect.exp()
    tried = torch.stack([area / aspect, area * aspect]).sqrt().round().long()
    fits = ((tried > 0) & (tried <= sides)).all(dim=0)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    chosen = tried.gather(2, first.expand(2, n, 1))[..., 0]

    fallback = center_boxes(n, height, width, ratio=ratio, device=numbers.device)
    free = sides[..., 0] - chosen
    # A float32 product may round up to the next integer, which would be outside.
    corner = torch.minimum((numbers[:, -2:].T * (free + 1)).long(), free)
    return torch.where(fits.any(dim=1, keepdim=True), torch.cat([corner, chosen]).T, fallback)


def center_boxes(
    n: int,
    height: int | Tensor,
    width: int | Tensor,
    *,
    ratio: tuple[float, float] = (1.0, 1.0),
    device: torch.device | None = None,
) -> Tensor:
    """Return the largest centered box of each image whose width / height is within `ratio`.

    Args:
        n: Number of boxes.
        height: Height of the images in pixels: one for all, or int64 `(n,)`.
        width: Width of the images in pixels, likewise.
        ratio: Smallest and largest width / height.
        device: Device of the result.

    Returns:
        int64 `(n, 4)`: top, left, height, width.
    """
    if isinstance(height, int) and isinstance(width, int):
        box = _center_box(height, width, ratio)
        return torch.tensor(box, device="cpu").to(device or "cpu").expand(n, 4)
    heights, widths = (_for_each(side, n, device) for side in (height, width))
    # float32 on every device: MPS has no float64.
    box_heights = (widths.float() / ratio[0]).round().long().clamp_min(1).minimum(heights)
    box_widths = (heights.float() * ratio[1]).round().long().clamp_min(1).minimum(widths)
    tops, lefts = (heights - box_heights) // 2, (widths - box_widths) // 2
    return torch.stack([tops, lefts, box_heights, box_widths], dim=1)


def _center_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    box_height = min(height, max(1, round(width / ratio[0])))
    box_width = min(width, max(1, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _for_each(side: int | Tensor, n: int, device: torch.device | None) -> Tensor:
    """Return a side's length for each of `n` images, int64 `(n,)`."""
    if isinstance(side, Tensor):
        return side.to(device).expand(n)
    return torch.full((n,), side, device=device)


def resampling_weights(
    start: Tensor,
    length: Tensor,
    size_in: int,
    size_out: int,
    *,
    flip: Tensor | None = None,
    interpolation: str = "bilinear",
) -> Tensor:
    """Return the weights that crop an axis to `[start, start + length)` and resize it.

    The filters are Pillow's: a triangle, or the cubic with a = -0.5, scaled to the output's pixels
    where the axis shrinks (antialiasing) and to the input's where it grows. No pixel outside the
    crop is read.

    Args:
        start: `(N,)`, first pixel of the crop.
        length: `(N,)`, pixels in the crop, at least 1.
        size_in: Pixels on the axis.
        size_out: Pixels of the result.
        flip: bool `(N,)`, which samples are flipped.
        interpolation: "bilinear" or "bicubic".

    Returns:
        float32 `(N, size_out, size_in)`; rows sum to 1.
    """
    device = start.device
    start, length = start.float()[:, None], length.float()[:, None]
    out = torch.arange(size_out, device=device, dtype=torch.float32) + 0.5
    if flip is not None:
        out = torch.where(flip[:, None], size_out - out, out)
    pixel = torch.arange(size_in, device=device, dtype=torch.float32) + 0.5
    step = length / size_out
    per_width = 1 / step.clamp_min(1)
    center = (start + out * step) * per_width
    distance = ((pixel * per_width)[:, None, :] - center[..., None]).abs_()
    # The triangle's negative: the sign goes when the weights are divided by their sum.
    bicubic = interpolation == "bicubic"
    weights = _cubic(distance) if bicubic else distance.sub_(1).clamp_max_(0)
    inside = (pixel > start) & (pixel < start + length)
    weights = weights.mul_(inside[:, None, :])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def crop_weights(
    boxes: Tensor,
    height: int,
    width: int,
    size: int,
    *,
    flip: Tensor | None = None,
    interpolation: str = "bilinear",
) -> tuple[Tensor, Tensor]:
    """Return the weights of rows and columns that crop images to boxes and resize them.

    Args:
        boxes: int64 `(N, 4)`: top, left, height, width.
        height: Height of the images in pixels.
        width: Width in pixels.
        size: Side of the result in pixels.
        flip: bool `(N,)`, which samples are flipped.
        interpolation: "bilinear" or "bicubic".

    Returns:
        float32 `(N, size, height)` and `(N, size, width)`, for `resample`.
    """
    (top, left), (tall, wide) = boxes.T.split(2)
    if height != width:
        rows = resampling_weights(top, tall, height, size, interpolation=interpolation)
        columns = resampling_weights(
            left, wide, width, size, flip=flip, interpolation=interpolation
        )
        return rows, columns
    # For squares, both in one call.
    both = None if flip is None else torch.cat([torch.zeros_like(flip), flip])
    start, length = torch.cat([top, left]), torch.cat([tall, wide])
    weights = resampling_weights(
        start, length, height, size, flip=both, interpolation=interpolation
    )
    rows, columns = weights.chunk(2)
    return rows, columns


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel at `distance` >= 0 (IEEE TASSP 1981); Pillow's a is -0.5."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply weights of rows and columns to each image: `rows @ image @ columns^T`.

    Args:
        images: `(N, C, H, W)`, uint8 or float.
        rows: `(N, H', H)`.
        columns: `(N, W', W)`.

    Returns:
        float32 `(N, C, H', W')`, in the units of `images`.
    """
    n, channels, height, width = images.shape
    flat = images.float().reshape(n, channels * height, width)
    narrow = torch.bmm(flat, columns.transpose(1, 2)).view(n, channels, height, columns.shape[1])
    return torch.matmul(rows[:, None], narrow)


def crop_pil(image: Image.Image, box: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """Crop a decoded image and resize it on the CPU, as torchvision does with PIL images.

    Args:
        image: Mode RGB.
        box: int64 `(4,)`: top, left, height, width; within the image.
        size: Side of the result in pixels.
        interpolation: "bilinear" or "bicubic", antialiased.

    Returns:
        uint8 `(3, size, size)`.

    Raises:
        UserError: if the image is not RGB or the interpolation is unknown.
    """
    check_choice("interpolation", interpolation, INTERPOLATIONS, owner="crop_pil")
    if image.mode != "RGB":
        raise UserError(
            f"mode {image.mode!r} cannot be cropped; convert it to 'RGB' first.",
            parameter="image",
            owner="crop_pil",
        )
    top, left, height, width = box.tolist()
    # Not resize(box=...), which also reads pixels outside the box at its edges.
    crop = image.crop((left, top, left + width, top + height))
    crop = crop.resize((size, size), INTERPOLATIONS[interpolation])
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()
