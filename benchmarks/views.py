"""Views a second of one core: batched tensor operations beside PIL and torchvision, in turn.

    python benchmarks/views.py --data_dir DIR --json views.json
    python benchmarks/views.py --folder IMAGENETTE/val --json views-224.json

Two views of CIFAR-10's images at 32 px: crop, flip, color jitter with p 0.8, grayscale with p 0.2,
normalized float32 (the views of MoCo on CIFAR-10), then the same with Gaussian blur, then with blur
and multi-crop: two views of 32 px and six of 16 px. torchvision
starts from PIL images, ours from uint8 tensors: each as its data set holds them. Both run on one
thread; with bfloat16 the time includes giving the views in it, as a network under autocast wants;
"no hue" is what is left of ours when the hue is not jittered. With --folder, views of 224 px (and
local crops of 96) of a folder's images, which are brought to 224 px before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timing import facts, save, summary
from torchvision.transforms import v2

from unmix.data import TensorImages, load
from unmix.views import Views, preset

LOCAL = (0.05, 0.14)


Moments = tuple[float, float, float]


@dataclass(frozen=True)
class Case:
    """Images of one size, and what is made of them."""

    images: torch.Tensor
    mean: Moments
    std: Moments
    blur: bool
    local: int

    @property
    def side(self) -> int:
        return self.images.shape[-1]

    @property
    def local_side(self) -> int:
        return preset("swav-imagenet").local_side(self.side)


def read(folder: Path | None, data_dir: str | None, count: int) -> tuple[Any, Moments, Moments]:
    """CIFAR-10's test images, or a folder's JPEGs at 224 px: uint8 (count, 3, S, S)."""
    if folder is None:
        images = load("cifar10", "test", data_dir=data_dir).evenly(count)
        assert isinstance(images, TensorImages)
        return images.images, images.mean, images.std
    paths = sorted(folder.rglob("*.JPEG"))
    chosen = [Image.open(paths[i * len(paths) // count]) for i in range(count)]
    pictures = [picture.convert("RGB").resize((224, 224)) for picture in chosen]
    pixels = torch.stack([v2.functional.pil_to_tensor(picture) for picture in pictures])
    return pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_views(case: Case) -> Callable[[], None]:
    """All views of every image, one after the other, and batches of them."""
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in case.images]
    taps = 5 if case.side == 32 else 23
    steps = [
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        *([v2.RandomApply([v2.GaussianBlur(taps, (0.1, 2.0))], p=0.5)] if case.blur else []),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(case.mean, case.std),
    ]
    views = v2.Compose([v2.RandomResizedCrop(case.side, scale=(0.2, 1.0)), *steps])
    crops = v2.Compose([v2.RandomResizedCrop(case.local_side, scale=LOCAL), *steps])

    def run() -> None:
        for transform in [views] * 2 + [crops] * case.local:
            torch.stack([transform(picture) for picture in pictures])

    return run


def our_views(case: Case, *, hue: float = 0.1, bf16: bool = False) -> Callable[[], None]:
    """All views of every image, as batches."""
    settings = replace(
        preset("moco-v2" if case.blur else "moco-v1"), jitter=(0.4, 0.4, 0.4, hue), jitter_p=0.8,
        local_crops=case.local, local_size=case.local_side,
        local_scale_min=LOCAL[0], local_scale_max=LOCAL[1],
    )  # fmt: skip
    views = Views(settings, case.side, case.mean, case.std, channels_last=True)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        for view in views(case.images, generator):
            if bf16:
                view.bfloat16()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="holds cifar-10-batches-py/")
    parser.add_argument("--folder", type=Path, help="JPEGs, for views of 224 px")
    parser.add_argument("--images", type=int, default=128, help="in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all measurements here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images, mean, std = read(given.folder, given.data_dir, given.images)
    found: dict[str, dict[str, object]] = {}
    for blur, local in ((False, 0), (True, 0), (True, 6)):
        case = Case(images, mean, std, blur, local)
        runs = {
            "torchvision": torchvision_views(case),
            "unmix": our_views(case),
            "unmix, no hue": our_views(case, hue=0.0),
            "unmix, bf16": our_views(case, bf16=True),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        often = 10 if case.side == 32 else 1
        for _ in range(given.rounds):
            for name, run in runs.items():
                start, repeats = time.perf_counter(), 1 if name == "torchvision" else often
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
                f"{key:<34}{summary(values)['median']:>10,.0f} views/s ({min(values):,.0f} to "
                f"{max(values):,.0f})   {summary(ratios)['median']:.1f} times torchvision",
                flush=True,
            )
    save(given.json, {**facts(sys.argv), "rows": found})


if __name__ == "__main__":
    main()
