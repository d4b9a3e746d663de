"""How fast are crops read: torchvision's ImageFolder against unmix, from a folder and from packs.

    python benchmarks/reading.py --folder FOLDER --workers 0 1 2 --rounds 5

Every case reads the same training images in shuffled batches through a DataLoader with the same
number of workers, and gives `--views` crops of 224 pixels of each: torchvision as float tensors in
[0, 1] (RandomResizedCrop and ToTensor, once a view), unmix as uint8. The cases take turns, once a
round, each with workers that are running already; one epoch of each is for warming up. The table
has medians, smallest and largest, and medians' ratios to torchvision.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, RandomResizedCrop, ToTensor, v2

from unmix.commands.pack import pack
from unmix.data import ImageSet, Shards, load
from unmix.data.streams import ShardImages
from unmix.training.loading.loaders import EpochOrder, build_loader
from unmix.training.loading.shard_order import ShardOrder
from unmix.views import Views, ViewSettings

SIZE = 224
SCALE = (0.2, 1.0)


class Crops:
    """So many random crops of an image."""

    def __init__(self, views: int, kind: str) -> None:
        if kind == "v1":
            self.one: Callable[..., Any] = Compose([RandomResizedCrop(SIZE, SCALE), ToTensor()])
        else:
            self.one = v2.Compose(
                [
                    v2.RandomResizedCrop(SIZE, SCALE, antialias=True),
                    v2.ToImage(),
                    v2.ToDtype(torch.float32, scale=True),
                ]
            )
        self.views = views

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [self.one(image) for _ in range(self.views)]


def torchvision_loader(folder: Path, args: argparse.Namespace, workers: int) -> Iterable[Any]:
    images = ImageFolder(str(folder), Crops(args.views, args.transforms))
    step = max(1, len(images) // args.images)
    chosen = Subset(images, range(0, step * min(args.images, len(images)), step))
    return DataLoader(
        chosen,
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def unmix_loader(data: Path, args: argparse.Namespace, workers: int) -> Iterable[Any]:
    return crops_of(load(data, "train").evenly(args.images), args, workers)


def shard_loader(data: str, args: argparse.Namespace, workers: int, size: str) -> Iterable[Any]:
    """Shards, in their own order; with `size` of 0 each image is a request."""
    place = args.cache_dir / f"copies-{size}"
    images = load(data, "train", cache_dir=place, shards=Shards(size))
    return crops_of(images.evenly(args.images), args, workers)


def crops_of(images: ImageSet, args: argparse.Namespace, workers: int) -> Iterable[Any]:
    settings = ViewSettings(crop_scale_min=SCALE[0], crop_scale_max=SCALE[1])
    views = Views(settings, SIZE, images.mean, images.std, count=args.views)
    counts = images.shard_counts() if isinstance(images, ShardImages) else None
    order = EpochOrder(len(images), args.batch_size, seed=0, smallest=1)
    if counts is not None:
        order = ShardOrder(counts, args.batch_size, 0, 1, buffer=32_768, lanes=8)
    epoch = iter(range(10**6))
    order.position = lambda: (next(epoch), 0)
    return build_loader(images, views, order, workers=workers)


def images_in(batch: Any) -> int:
    return len(batch[1]) if isinstance(batch, list) else len(batch.index)


def rate(loader: Iterable[Any]) -> float:
    """Images per second over one epoch."""
    start = time.perf_counter()
    count = sum(images_in(batch) for batch in loader)
    return count / (time.perf_counter() - start)


def measure(args: argparse.Namespace, workers: int, packs: dict[str, Path]) -> list[dict[str, Any]]:
    train = args.folder / "train" if (args.folder / "train").is_dir() else args.folder
    loaders = {"torchvision ImageFolder": torchvision_loader(train, args, workers)}
    loaders["unmix, folder"] = unmix_loader(args.folder, args, workers)
    for name, place in packs.items():
        loaders[f"unmix, {name}"] = unmix_loader(place, args, workers)
    for data in args.shards:
        kind = "from a server, copied" if "://" in data else "local"
        loaders[f"unmix, shards {kind}"] = shard_loader(data, args, workers, "50GB")
        if "://" in data:
            loaders["unmix, shards from a server"] = shard_loader(data, args, workers, "0")
    for loader in loaders.values():
        rate(loader)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(args.rounds):
        for name, loader in loaders.items():
            rates[name].append(rate(loader))
    peer = statistics.median(rates["torchvision ImageFolder"])
    return [
        {
            "case": name,
            "workers": workers,
            "views": args.views,
            "median": statistics.median(found),
            "smallest": min(found),
            "largest": max(found),
            "ratio": statistics.median(found) / peer,
            "rounds": found,
        }
        for name, found in rates.items()
    ]


def machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": Image.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="a class tree of JPEGs")
    parser.add_argument("--shards", nargs="*", default=[], help="shards of the same images")
    parser.add_argument("--images", type=int, default=1000, help="how many to read at most")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transforms", choices=("v1", "v2"), default="v1", help="torchvision's")
    parser.add_argument("--short_side", type=int, default=256, help="of the second pack")
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)  # with workers = 0 as in a worker
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        args.cache_dir = Path(scratch)
        packs = {"pack": Path(scratch) / "pack"}
        packs[f"pack of short side {args.short_side}"] = Path(scratch) / "small"
        for place, side in zip(packs.values(), (None, args.short_side), strict=True):
            pack(str(args.folder), out=str(place), short_side=side)
        print(f"{'':34}workers   images/s (smallest-largest)   ratio")
        for workers in args.workers:
            for row in measure(args, workers, packs):
                rows.append(row)
                print(
                    f"{row['case']:34}{workers:7}{row['median']:11,.0f} "
                    f"({row['smallest']:,.0f}-{row['largest']:,.0f}){row['ratio']:16.2f}",
                    flush=True,
                )
    if args.out is not None:
        found = {"folder": args.folder.name, "machine": machine(), "rows": rows}
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
