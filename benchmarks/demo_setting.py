"""How the demo's setting was chosen: on no test image, and with other seeds than it shows.

The demo's test patches lie in the right third of each photograph. Here encoders are trained on
patches of the left 36% of the width and measured on patches of 40% to 62%.

python benchmarks/demo_setting.py --seeds 100 101
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmix.data import photos
from unmix.randomness import generator_for
from unmix.training.run.pretrain import pretrain

NONE = {"crop_scale_min": 1, "crop_ratio": [1, 1], "flip_p": 0, "jitter_p": 0, "gray_p": 0}
CONDITIONS: dict[str, dict[str, Any]] = {
    "no augmentation": NONE,
    "Un-Mix, no augmentation": {**NONE, "unmix": True},
    "full augmentation": {},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "16 px, 512 images, 40 epochs, lr 0.03": {"lr": 0.03},
    "16 px, 512 images, 40 epochs, lr 0.06": {},
    "16 px, 1,024 images, 40 epochs": {"images": 1024, "batch_size": 128, "queue_size": 1024},
    "24 px, 512 images, 40 epochs, lr 0.03": {"size": 24, "lr": 0.03},
    "24 px, 512 images, half the width": {"size": 24, "lr": 0.03, "width": 0.125},
    "24 px, 1,024 images, 25 epochs": {
        "size": 24, "images": 1024, "epochs": 25, "queue_size": 1024, "lr": 0.03
    },
}  # fmt: skip
BASE = {
    "method": "moco", "backbone": "resnet10", "width": 0.25, "bn_splits": 1, "queue_size": 512,
    "size": 16, "batch_size": 64, "epochs": 40, "knn_every": 0, "logger": "none",
}  # fmt: skip


def patches(first: float, last: float, each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Patches between two parts of the photographs' width, and which photograph each is from."""
    images, labels = [], []
    side = photos._SIDE
    for label, name in enumerate(photos._PICTURES):
        picture = photos._picture(name)
        height, width = picture.shape[:2]
        generator = generator_for(seed, name)
        for _ in range(each):
            left = torch.randint(
                int(first * width), int(last * width) - side + 1, (), generator=generator
            )
            top = torch.randint(0, height - side + 1, (), generator=generator)
            images.append(picture[top : top + side, left : left + side])
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def main() -> None:
    """Print kNN and linear accuracy on the validation patches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    seeds = parser.parse_args().seeds
    validation = patches(0.40, 0.62, 80, 77)
    for setting, own in SETTINGS.items():
        for condition, views in CONDITIONS.items():
            for seed in seeds:
                words: dict[str, Any] = {**BASE, **own, **views, "seed": seed}
                train = patches(0, 0.36, words.pop("images", 512) // len(photos._PICTURES), 1)
                with tempfile.TemporaryDirectory() as folder:
                    run = str(Path(folder) / "run")
                    found = pretrain(data=train, test_data=validation, run=run, **words)
                shown = ", ".join(f"{row.protocol} {row.top1:.1f}" for row in found.evaluations)
                print(f"{setting}; {condition}, seed {seed}: {shown}", flush=True)


if __name__ == "__main__":
    main()
