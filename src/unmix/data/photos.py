"""`photos`: patches of photographs in the scikit-image and scikit-learn wheels; no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from unmix.data.dataset import DataSet, Request
from unmix.data.decoding import decode
from unmix.data.imageset import ImageSet, TensorImages
from unmix.errors import UserError
from unmix.randomness import generator_for

__all__ = ["PHOTOS"]

_SIDE = 48
_PATCHES = {"train": 250, "test": 80}
_TRAIN_UNTIL = 0.62
_TEST_FROM = 0.66

_SCIKIT_IMAGE = ("skimage", "data", "scikit-image >= 0.22")
_SCIKIT_LEARN = ("sklearn", "datasets/images", "scikit-learn >= 1.4")
_PICTURES = {
    "astronaut": ("astronaut.png", _SCIKIT_IMAGE),
    "brick": ("brick.png", _SCIKIT_IMAGE),
    "chelsea": ("chelsea.png", _SCIKIT_IMAGE),
    "coffee": ("coffee.png", _SCIKIT_IMAGE),
    "coins": ("coins.png", _SCIKIT_IMAGE),
    "grass": ("grass.png", _SCIKIT_IMAGE),
    "gravel": ("gravel.png", _SCIKIT_IMAGE),
    "hubble_deep_field": ("hubble_deep_field.jpg", _SCIKIT_IMAGE),
    "ihc": ("ihc.png", _SCIKIT_IMAGE),
    "moon": ("moon.png", _SCIKIT_IMAGE),
    "motorcycle_left": ("motorcycle_left.png", _SCIKIT_IMAGE),
    "retina": ("retina.jpg", _SCIKIT_IMAGE),
    "rocket": ("rocket.jpg", _SCIKIT_IMAGE),
    "camera": ("camera.png", _SCIKIT_IMAGE),
    "china": ("china.jpg", _SCIKIT_LEARN),
    "flower": ("flower.jpg", _SCIKIT_LEARN),
}


def _picture(name: str) -> np.ndarray:
    """Read a photograph as uint8 `(H, W, 3)`."""
    file, (package, folder, version) = _PICTURES[name]
    # The package is only located, since importing scikit-learn takes a second.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"--data photos: picture {name!r} is missing; install {version}.")
    path = Path(spec.origin).parent / folder / file
    if not path.is_file():
        raise UserError(
            f"--data photos: picture {name!r} is missing from the installed {package}; "
            f"install {version}."
        )
    return np.asarray(decode(path))


def _corners(name: str, split: str, height: int, width: int) -> list[tuple[int, int]]:
    """Choose the (left, top) corners of patches, with a fixed seed, without repetition."""
    if split == "train":
        first, last = 0, int(_TRAIN_UNTIL * width) - _SIDE
    else:
        first, last = width - int((1 - _TEST_FROM) * width), width - _SIDE
    generator = generator_for(0, "photos", name, split)
    corners: dict[tuple[int, int], None] = {}
    while len(corners) < _PATCHES[split]:
        left = int(torch.randint(first, last + 1, (), generator=generator))
        top = int(torch.randint(0, height - _SIDE + 1, (), generator=generator))
        corners[left, top] = None
    return list(corners)


def _read(data_set: DataSet, request: Request) -> ImageSet:
    split = "test" if request.split == "test" else "train"
    patches, labels = [], []
    for label, name in enumerate(_PICTURES):
        picture = _picture(name)
        for left, top in _corners(name, split, *picture.shape[:2]):
            patches.append(picture[top : top + _SIDE, left : left + _SIDE])
            labels.append(label)
    images = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).contiguous()
    return TensorImages(
        name=data_set.name,
        split=split,
        labels=torch.tensor(labels),
        classes=tuple(_PICTURES),
        mean=data_set.mean,
        std=data_set.std,
        images=images,
    )


PHOTOS = DataSet(
    name="photos",
    size=_SIDE,
    classes=len(_PICTURES),
    mean=(0.4675, 0.3909, 0.3587),
    std=(0.2740, 0.2266, 0.2324),
    source="computed over the 4,000 training patches",
    read=_read,
)
"""16 photographs, each a class. Training patches of 48 px are from the left 62% of the width, test
patches from the right 34%, so that none overlap: 250 and 80 per class, at positions drawn with a
fixed seed, the same on every machine. The label is the photograph. The data set shows that a run
works; it is not for comparing methods."""
