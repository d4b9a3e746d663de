"""MoCo on CIFAR-10 with lightly, as its own CIFAR-10 benchmark has it; a JSON line.

    python benchmarks/peers/lightly_moco.py --data_dir DIR --threads 2

Needs `lightly`, and nothing of unmix. ResNet-18 with a 3x3 stem and no max-pool, a projection head
of 512-512-128, a memory bank of 4,096 keys, momentum 0.99, batch 128, SGD; views of 32 px without
blur, made by torchvision in the data loader's workers. Plain float32 as in its examples, or bf16
autocast and channels last. Measured from the end of the last warm-up step to the end of the last.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from torch import Tensor, nn

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


class MoCo(nn.Module):
    """Queries from the trained encoder, keys from its momentum copy."""

    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18()
        resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
        resnet.fc = nn.Identity()
        self.backbone, self.head = resnet, MoCoProjectionHead(512, 512, 128)
        self.key_backbone, self.key_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.key_backbone)
        deactivate_requires_grad(self.key_head)

    def forward(self, images: Tensor) -> Tensor:
        """The queries (N, 128)."""
        return self.head(self.backbone(images))

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """The keys (N, 128)."""
        return self.key_head(self.key_backbone(images))

    def follow(self) -> None:
        """Let the momentum copies follow."""
        update_momentum(self.backbone, self.key_backbone, m=0.99)
        update_momentum(self.head, self.key_head, m=0.99)


def batches(data_dir: str, batch_size: int, workers: int, pinned: bool) -> Iterator[Any]:
    """Batches of two views, epoch after epoch; pinned for a GPU."""
    transform = MoCoV2Transform(
        input_size=32, gaussian_blur=0.0, normalize={"mean": MEAN, "std": STD}
    )
    images = torchvision.datasets.CIFAR10(data_dir)
    loader = torch.utils.data.DataLoader(
        LightlyDataset.from_torch_dataset(images, transform=transform),
        batch_size=batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=pinned,
    )  # fmt: skip
    while True:
        yield from loader


def train(given: argparse.Namespace) -> tuple[float, float]:
    """Train for the warm-up and the steps; the seconds of the steps, and the last loss."""
    device = torch.device(given.device)
    model = MoCo().to(device)
    criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128)).to(device)
    bf16 = given.precision == "bf16"
    layout = torch.channels_last if bf16 else torch.contiguous_format
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    start = 0.0
    loss = torch.zeros(())
    model.train()
    loader = batches(given.data_dir, given.batch_size, given.workers, device.type == "cuda")
    for step, (views, _, _) in enumerate(loader):
        query_view, key_view = (
            view.to(device, non_blocking=True).contiguous(memory_format=layout) for view in views
        )
        model.follow()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            query, key = model(query_view), model.keys(key_view)
        loss = criterion(query.float(), key.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 == given.warmup:
            loss.item()  # waits for a GPU
            start = time.perf_counter()
        if step + 1 == given.warmup + given.steps:
            break
    last = loss.item()
    return time.perf_counter() - start, last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="holds cifar-10-batches-py/")
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="processes that make views")
    parser.add_argument("--threads", type=int, help="of PyTorch; by default its own choice")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    given = parser.parse_args()
    if min(given.steps, given.warmup) < 1:
        raise SystemExit("--steps, --warmup: must be at least 1")
    if given.threads:
        torch.set_num_threads(given.threads)
    seconds, loss = train(given)
    found = {
        "images_per_second": given.steps * given.batch_size / seconds,
        "seconds": seconds,
        "steps": given.steps,
        # Of this process, without its workers.
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "precision": given.precision,
        "threads": torch.get_num_threads(),
        "workers": given.workers,
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "loss": loss,
        "versions": {"lightly": version("lightly"), "torch": torch.__version__},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
