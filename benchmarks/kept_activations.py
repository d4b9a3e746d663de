"""Bytes kept for the backward pass, and seconds, of a step: whole, in parts, with checkpointing."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from unmix import backbones

BATCH, SIZE = 32, 64


def step(network: nn.Module, images: Tensor, parts: int) -> tuple[int, float]:
    """The most bytes that a part keeps, and the seconds of a step."""
    most, start = 0, time.perf_counter()
    for some in images.split(len(images) // parts):
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                storage = tensor.untyped_storage()
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(some).square().mean() / parts
        most = max(most, sum(kept.values()))
        loss.backward()
    return most, time.perf_counter() - start


if __name__ == "__main__":
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    for name in ("resnet50", "timm:vit_small_patch16_224"):
        patch = 8 if name.startswith("timm") else None
        for parts, less in ((1, False), (4, False), (1, True), (4, True)):
            network = backbones.build(name, size=SIZE, patch=patch)
            if less:
                backbones.checkpoint_activations(network)
            step(network, images, parts)
            times = [step(network, images, parts) for _ in range(3)]
            seconds = sorted(t for _, t in times)[1]
            print(
                f"{name} accumulate {parts} checkpoint {less}: "
                f"{times[0][0] / 2**20:.0f} MiB, {seconds:.2f} s"
            )
