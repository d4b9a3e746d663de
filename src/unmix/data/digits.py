"""`digits`: scikit-learn's handwritten digits; no download."""

from __future__ import annotations

import torch

from unmix.data.imageset import ImageSet, TensorImages
from unmix.data.spec import DataSet, Request

__all__ = ["DIGITS"]

_TRAIN = 1437


def _read(data_set: DataSet, request: Request) -> ImageSet:
    from sklearn.datasets import load_digits  # takes a second, which other sets need not spend

    found = load_digits()
    part = slice(_TRAIN, None) if request.split == "test" else slice(_TRAIN)
    grey = torch.from_numpy(found.images[part] * 255 / 16).round().to(torch.uint8)
    return TensorImages(
        name=data_set.name,
        split="test" if request.split == "test" else "train",
        labels=torch.from_numpy(found.target[part]).to(torch.int64),
        classes=tuple(str(digit) for digit in range(10)),
        mean=data_set.mean,
        std=data_set.std,
        images=grey[:, None].repeat(1, 3, 1, 1),
    )


DIGITS = DataSet(
    name="digits",
    size=8,
    classes=10,
    mean=(0.3054, 0.3054, 0.3054),
    std=(0.3753, 0.3753, 0.3753),
    source="computed over the 1,437 training images",
    read=_read,
)
"""8 x 8 grey images with values 0-16, scaled to 0-255 and repeated over three channels. There is no
published split: the first 1,437 of the 1,797 images are for training, the last 360 for testing."""
