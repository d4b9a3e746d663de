"""`cifar10`, `cifar100`, `stl10` and `digits`: small data sets, each read into one tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from unmix.data.dataset import DataSet, Request
from unmix.data.imageset import ImageSet, TensorImages
from unmix.errors import UserError

__all__ = ["CIFAR10", "CIFAR100", "DIGITS", "STL10"]

_STL10_CLASSES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"
)  # fmt: skip


def _open(data_set: DataSet, request: Request, reader: Any, **split: Any) -> Any:
    """Open a torchvision data set, with torchvision's integrity checks (md5).

    Raises:
        UserError: if the files are missing or damaged, or cannot be downloaded.
    """
    root = data_set.root(request)
    if root.name == reader.base_folder:
        root = root.parent
    inside: Path = root / reader.base_folder
    if not inside.is_dir() and not request.download:
        raise data_set.missing(root, f"there is no {reader.base_folder}/ in it")
    try:
        return reader(root, download=request.download, **split)
    except (RuntimeError, OSError, EOFError) as error:
        if request.download:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--download: {data_set.name} could not be fetched into {root} ({reason}); fetch "
                f"{reader.url} by other means and unpack it there."
            ) from error
        raise data_set.missing(
            inside, "a file is missing, or damaged (its md5 is not the published one)"
        ) from error


def _read_cifar(data_set: DataSet, request: Request) -> ImageSet:
    reader = datasets.CIFAR10 if data_set.name == "cifar10" else datasets.CIFAR100
    split = "test" if request.split == "test" else "train"
    source = _open(data_set, request, reader, train=split == "train")
    return TensorImages(
        name=data_set.name,
        split=split,
        labels=torch.tensor(source.targets, dtype=torch.int64),
        classes=tuple(source.classes),
        mean=data_set.mean,
        std=data_set.std,
        # torchvision has (N, H, W, 3) as a view of (N, 3, H, W), so nothing is copied.
        images=torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(),
    )


def _read_stl10(data_set: DataSet, request: Request) -> ImageSet:
    both = request.split == "pretrain"
    split = "train+unlabeled" if both else request.split
    source = _open(data_set, request, datasets.STL10, split=split)
    return TensorImages(
        name=data_set.name,
        split=request.split,
        labels=None if both else torch.from_numpy(source.labels).to(torch.int64),
        classes=None if both else _STL10_CLASSES,
        mean=data_set.mean,
        std=data_set.std,
        images=torch.from_numpy(source.data).contiguous(),
    )


CIFAR10 = DataSet(
    name="cifar10",
    size=32,
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    source="pixels of the 50,000 training images, as commonly published; recomputed in the tests. "
    "MoCo's and Un-Mix's CIFAR code has std (0.2023, 0.1994, 0.2010), the mean over images of each "
    "image's own",
    read=_read_cifar,
    layout="DIR/cifar-10-batches-py/{data_batch_1..5, test_batch, batches.meta}",
    downloads=True,
)

CIFAR100 = DataSet(
    name="cifar100",
    size=32,
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    source="pixels of the 50,000 training images, as commonly published",
    read=_read_cifar,
    layout="DIR/cifar-100-python/{train, test, meta}",
    downloads=True,
)

STL10 = DataSet(
    name="stl10",
    size=96,
    classes=10,
    mean=(0.4467, 0.4398, 0.4066),
    std=(0.2603, 0.2566, 0.2713),
    source="pixels of the 5,000 labeled training images, as commonly published",
    read=_read_stl10,
    layout="DIR/stl10_binary/{train_X, train_y, unlabeled_X, test_X, test_y}.bin",
    downloads=True,
)
"""`train` has the 5,000 labeled images, for probes; `pretrain` has these and the 100,000
unlabeled ones, without labels (2.9 GB, and twice that while reading)."""


_TRAIN = 1437


def _read_digits(data_set: DataSet, request: Request) -> ImageSet:
    from sklearn.datasets import load_digits  # takes a second

    source = load_digits()
    part = slice(_TRAIN, None) if request.split == "test" else slice(_TRAIN)
    gray = torch.from_numpy(source.images[part] * 255 / 16).round().to(torch.uint8)
    return TensorImages(
        name=data_set.name,
        split="test" if request.split == "test" else "train",
        labels=torch.from_numpy(source.target[part]).to(torch.int64),
        classes=tuple(str(digit) for digit in range(10)),
        mean=data_set.mean,
        std=data_set.std,
        images=gray[:, None].repeat(1, 3, 1, 1),
    )


DIGITS = DataSet(
    name="digits",
    size=8,
    classes=10,
    mean=(0.3054, 0.3054, 0.3054),
    std=(0.3753, 0.3753, 0.3753),
    source="computed over the 1,437 training images",
    read=_read_digits,
)
"""8 x 8 gray images with values 0-16, scaled to 0-255 and repeated over three channels. There is no
published split: the first 1,437 of the 1,797 images are for training, the last 360 for testing."""
