"""An encoded image whose size is read before its pixels are decoded.

Crops are drawn from the size alone, so that the decoder can skip pixels that are not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from unmix.data.decoding import Decoding, decode, opened, orientation

__all__ = ["FACTORS", "Box", "OpenedImage"]

FACTORS = (8, 4, 2)
"""Factors by which a JPEG can be downscaled while it is decoded, beside 1."""

Box = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""


@dataclass(frozen=True)
class OpenedImage:
    """An image of which only the header has been read, if it is a JPEG.

    Plain JPEGs (RGB or gray) are decoded by torchvision at their full size, which takes a quarter
    less time than Pillow and gives the same pixels, or by Pillow at a fraction of it. Other files,
    and those that torchvision refuses, are decoded by `unmix.data.decode`.

    Args:
        path: Name in messages.
        content: The encoded bytes.
        stored: Height and width as stored, at full size.
        turned: EXIF orientation, 1 to 8, to be applied to the stored pixels.
        image: The decoded upright pixels, if it is not a plain JPEG.
        decoding: How it is decoded.
    """

    path: Path
    content: bytes
    stored: tuple[int, int]
    turned: int = 1
    image: Image.Image | None = None
    decoding: Decoding = Decoding()  # noqa: RUF009 - frozen

    @classmethod
    def of(
        cls,
        content: bytes,
        path: Path,
        decoding: Decoding = Decoding(),  # noqa: B008
    ) -> OpenedImage:
        """Open an image.

        Raises:
            BrokenImage: if it is not a plain JPEG and cannot be decoded.
        """
        try:
            with opened(path, content, decoding) as header:
                if header.format == "JPEG" and header.mode in ("RGB", "L"):
                    size = header.height, header.width
                    return cls(path, content, size, orientation(header), decoding=decoding)
        except Exception:
            pass  # the decoder below reports what is wrong
        image = decode(path, content=content, decoding=decoding)
        return cls(path, content, (image.height, image.width), image=image)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image, at full size."""
        height, width = self.stored
        return (width, height) if self.turned > 4 else (height, width)

    def factor(self, sides: int, size: int) -> int:
        """The largest factor of downscaling that leaves a crop enough pixels.

        Args:
            sides: Shortest side of any crop, in pixels of the full image.
            size: Side in pixels to which crops are resized.
        """
        if self.image is not None:
            return 1
        return next((factor for factor in FACTORS if sides >= factor * size), 1)

    @cached_property
    def pixels(self) -> Tensor:
        """All pixels as stored, uint8 `(3, H, W)`, channels last.

        Raises:
            BrokenImage: if they cannot be decoded.
        """
        if self.image is not None:
            return _tensor(self.image)
        try:
            # A copy, since PyTorch warns about read-only memory.
            encoded = torch.frombuffer(bytearray(self.content), dtype=torch.uint8)
            return decode_jpeg(encoded, mode=ImageReadMode.RGB)
        except RuntimeError:
            upright = _tensor(decode(self.path, content=self.content, decoding=self.decoding))
            return self.lie_down(upright)

    def reduced(self, factor: int) -> Image.Image:
        """Decode a JPEG downscaled by `factor`, as stored.

        Raises:
            BrokenImage: if it cannot be decoded.
        """
        height, width = self.stored
        at_least = (max(1, width // factor), max(1, height // factor))
        upright = decode(self.path, at_least, self.content, self.decoding)
        if self.turned == 1:
            return upright
        return Image.fromarray(self.lie_down(_tensor(upright)).permute(1, 2, 0).numpy())

    def stored_box(self, box: Box) -> Box:
        """The box in the stored pixels of a box in the upright image."""
        top, left, height, width = box
        whole_height, whole_width = self.size
        if self.turned in _MIRRORED:
            left = whole_width - left - width
        if self.turned in _UPSIDE_DOWN:
            top = whole_height - top - height
        return (left, top, width, height) if self.turned > 4 else (top, left, height, width)

    def upright(self, crop: Tensor) -> Tensor:
        """Rotate a crop `(3, h, w)` of the stored pixels upright."""
        crop = crop.transpose(1, 2) if self.turned > 4 else crop
        return crop.flip(self._flipped) if self._flipped else crop

    def lie_down(self, upright: Tensor) -> Tensor:
        """Rotate upright pixels `(3, h, w)` as they are stored."""
        pixels = upright.flip(self._flipped) if self._flipped else upright
        return pixels.transpose(1, 2) if self.turned > 4 else pixels

    @property
    def _flipped(self) -> list[int]:
        axes = [1] if self.turned in _UPSIDE_DOWN else []
        return [*axes, 2] if self.turned in _MIRRORED else axes


# An orientation is a transposition if above 4, then flips along one axis, both or none.
_MIRRORED = (2, 3, 6, 7)
_UPSIDE_DOWN = (3, 4, 7, 8)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
