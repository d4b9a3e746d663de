"""MoCo with Un-Mix in a plain PyTorch loop; Stepper updates the momentum encoder and the queue."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

import unmix
from unmix.backbones import build
from unmix.data import load
from unmix.views import Views, preset


def main(
    steps: int = 40, batch_size: int = 64, K: int = 64, save: Path | None = None
) -> list[float]:
    """Train, and return the loss of each step."""
    torch.manual_seed(0)
    data = load("photos", "pretrain")
    images = TensorDataset(data.images, torch.arange(len(data)))
    loader = DataLoader(images, batch_size, shuffle=True, drop_last=True)
    views = Views(preset("moco-cifar"), 32, data.mean, data.std)
    f = build("resnet10", width=0.25, size=32)  # or any module that gives (N, D)
    method = unmix.MoCo(
        f, len(data), queue_size=K, encoder_momentum=0.9, temperature=0.2, bn_splits=1
    )
    step = unmix.Stepper(
        method, steps_per_epoch=len(loader), epochs=2, mixture=unmix.UnMix(per="sample")
    )
    optimizer = torch.optim.Adam([p for p in step.parameters() if p.requires_grad], 1e-3)
    losses: list[float] = []
    while len(losses) < steps:
        for batch, index in loader:
            loss = step(views(batch, step.generator("views")), index)  # momentum update, mixture
            optimizer.zero_grad()
            loss.backward()  # then the keys enter the queue
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    if save is not None:  # all that an exact resume needs, but for the loader's order
        torch.save({"step": step.state_dict(), "optimizer": optimizer.state_dict()}, save)
    losses = losses[K // batch_size :]  # before that the queue has random keys
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
