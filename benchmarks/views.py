"""Views a second of one core: batched tensor operations beside PIL and torchvision, in turn.

    python benchmarks/views.py --data_dir DIR --json views.json

Two views of CIFAR-10's images at 32 px: crop, flip, colour jitter with p 0.8, grayscale with p 0.2,
normalised float32 (the views of MoCo on CIFAR-10), then the same with Gaussian blur, then with blur
and multi-crop: two views of 32 px and six of 16 px. torchvision
starts from PIL images, ours from uint8 tensors: each as its data set holds them. Both run on one
thread; with bfloat16 the time includes giving the views in it, as a network under autocast wants.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from timing import facts, save, summary
from torchvision.transforms import v2

from unmix.data import TensorImages, load
from unmix.views import Views, preset

LOCAL = (0.05, 0.14)


def torchvision_views(images: TensorImages, blur: bool, local: int) -> Callable[[], None]:
    """All views of every image, one after the other, and batches of them."""
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images.images]
    steps = [
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        *([v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.5)] if blur else []),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(images.mean, images.std),
    ]
    views = v2.Compose([v2.RandomResizedCrop(32, scale=(0.2, 1.0)), *steps])
    crops = v2.Compose([v2.RandomResizedCrop(16, scale=LOCAL), *steps])

    def run() -> None:
        for transform in [views] * 2 + [crops] * local:
            torch.stack([transform(picture) for picture in pictures])

    return run


def our_views(images: TensorImages, blur: bool, local: int, bf16: bool) -> Callable[[], None]:
    """All views of every image, as batches."""
    settings = replace(
        preset("moco-v2" if blur else "moco-v1"), jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8,
        local_crops=local, local_size=16, local_scale_min=LOCAL[0], local_scale_max=LOCAL[1],
    )  # fmt: skip
    views = Views(settings, 32, images.mean, images.std, channels_last=True)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        for view in views(images.images, generator):
            if bf16:
                view.bfloat16()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="holds cifar-10-batches-py/")
    parser.add_argument("--images", type=int, default=128, help="in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all measurements here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = load("cifar10", "test", data_dir=given.data_dir).evenly(given.images)
    assert isinstance(images, TensorImages)
    found: dict[str, dict[str, object]] = {}
    for blur, local in ((False, 0), (True, 0), (True, 6)):
        runs = {
            "torchvision": torchvision_views(images, blur, local),
            "unmix": our_views(images, blur, local, False),
            "unmix, bf16": our_views(images, blur, local, True),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        for _ in range(given.rounds):
            for name, run in runs.items():
                start, repeats = time.perf_counter(), 1 if name == "torchvision" else 10
                for _ in range(repeats):
                    run()
                seconds = (time.perf_counter() - start) / repeats
                rates[name].append((2 + local) * len(images) / seconds)
        for name, values in rates.items():
            ratios = [
                ours / theirs for ours, theirs in zip(values, rates["torchvision"], strict=True)
            ]
            key = f"{name}{', blur' if blur else ''}{', multi-crop' if local else ''}"
            found[key] = {"views_per_second": summary(values), "ratio": summary(ratios)}
            print(
                f"{key:<32}{summary(values)['median']:>10,.0f} views/s ({min(values):,.0f} to "
                f"{max(values):,.0f})   {summary(ratios)['median']:.1f} times torchvision",
                flush=True,
            )
    save(given.json, {**facts(sys.argv), "rows": found})


if __name__ == "__main__":
    main()
