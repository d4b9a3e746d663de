"""Reading images for evaluation: resized, center-cropped, as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from unmix.data.decoding import BrokenImage
from unmix.data.imageset import ImageSet, StreamedImages, TensorImages

__all__ = ["read_uint8", "resize_batch", "resize_image"]

_MOST_RESIZED = 16  # pixels of a whole resized image, over those of its crop


def read_uint8(
    image_set: ImageSet, indices: Sequence[int] | Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Read images as in the published test protocols: shorter side to 256/224 `size`, center crop.

    The resize is bilinear with antialiasing; an image whose shorter side is `size` already is only
    cropped. Files that cannot be read are skipped, and added to the set's `skipped`.

    Args:
        image_set: The images.
        indices: Indices of the images to read.
        size: Side of the crops, in pixels.

    Returns:
        The images, uint8 `(M, 3, size, size)`, on the device of a set that is a tensor, and the
        indices of those that could be read, int64 `(M,)`, on the CPU.

    Raises:
        BrokenImage: if a file cannot be read and the set is strict.
    """
    wanted = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
    if isinstance(image_set, TensorImages):
        images = image_set.images[wanted.to(image_set.images.device)]
        return resize_batch(images, size), wanted
    assert isinstance(image_set, StreamedImages)
    crops, kept = [], []
    image_set.prepare(wanted.tolist())
    for i in wanted.tolist():
        try:
            # Twice the resized side, so that the antialiased resize still determines the result.
            image = image_set.decode(i, at_least=2 * _resized(size))
        except BrokenImage as error:
            image_set.skipped.add(error)
            continue
        crops.append(torch.from_numpy(np.array(resize_image(image, size))))
        kept.append(i)
    images = torch.stack(crops) if crops else torch.empty(0, size, size, 3, dtype=torch.uint8)
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(kept, dtype=torch.int64)


def _resized(size: int) -> int:
    return round(size * 256 / 224)


def _resized_sides(height: int, width: int, size: int) -> tuple[int, int]:
    shorter = min(height, width)
    side = size if shorter == size else _resized(size)
    return side * height // shorter, side * width // shorter


def _corner(height: int, width: int, size: int) -> tuple[int, int]:
    return round((height - size) / 2), round((width - size) / 2)


def resize_image(image: Image.Image, size: int) -> Image.Image:
    """Resize and crop one image as `read_uint8` does."""
    height, width = _resized_sides(image.height, image.width, size)
    top, left = _corner(height, width, size)
    if height * width > _MOST_RESIZED * size * size:
        # Only the crop is resized: a line of 20,000 pixels would take gigabytes.
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + size, top + size))


def _resized_alone(image: Tensor, size: int) -> Tensor:
    array = image.permute(1, 2, 0).cpu().numpy()
    resized = np.array(resize_image(Image.fromarray(array), size))
    return torch.from_numpy(resized).permute(2, 0, 1).to(image.device)


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize and crop uint8 images (N, 3, H, W) as `read_uint8` does."""
    height, width = _resized_sides(images.shape[2], images.shape[3], size)
    if height * width > _MOST_RESIZED * size * size and len(images):
        return torch.stack([_resized_alone(image, size) for image in images])
    if (height, width) != images.shape[2:] and len(images):
        resized = functional.interpolate(
            images.float(), size=(height, width), mode="bilinear", antialias=True
        )
        images = resized.round_().clamp_(0, 255).to(torch.uint8)
    top, left = _corner(height, width, size)
    return images[:, :, top : top + size, left : left + size].contiguous()
