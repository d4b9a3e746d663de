"""Barlow Twins on torchvision's v2 transforms; `MixedBatch` draws when a batch is collated."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms import v2

import unmix
from unmix.data import load

AUGMENT = v2.Compose([
    v2.RandomResizedCrop(32, scale=(0.2, 1), antialias=True),
    v2.RandomHorizontalFlip(),
    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
    v2.ToDtype(torch.float32, scale=True),
])  # fmt: skip


class TwoViews(Dataset):
    """An item is two views of an image."""

    images = load("photos", "pretrain").images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return AUGMENT(self.images[i]), AUGMENT(self.images[i])


def barlow_twins(za: Tensor, zb: Tensor, penalty: float = 0.005) -> Tensor:
    """Cross-correlation of the features against the identity, a scalar per batch."""
    c = ((za - za.mean(0)) / za.std(0)).T @ ((zb - zb.mean(0)) / zb.std(0)) / len(za)
    own = c.diagonal()
    return (own - 1).square().sum() + penalty * (c.square().sum() - own.square().sum())


def main(steps: int = 30, batch_size: int = 64, workers: int = 2) -> list[float]:
    """Train, and return the loss of each step."""
    torch.manual_seed(0)
    options = {"shuffle": True, "drop_last": True, "num_workers": workers}
    collate = unmix.MixedBatch(unmix.UnMix(per="batch"), seed=0)
    loader = DataLoader(TwoViews(), batch_size, collate_fn=collate, **options)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=128)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _, ((x1, x2), draw) in zip(range(steps), loader, strict=False):
        za, zb, z_mix = model(x1), model(x2), model(draw.apply(x1))
        loss = barlow_twins(za, zb) + unmix.shared_loss(barlow_twins, z_mix, zb, draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
