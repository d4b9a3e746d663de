"""SimCLR of `lightly` with Un-Mix: its transform, head and loss, unchanged.

NTXentLoss is a scalar per batch, so the batch has one weight, which is UnMix's default. The target
is the other view's projection, with its gradient.
"""

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms.functional import to_pil_image

import unmix
from unmix.data import load


class Photos(Dataset):
    """PIL images for lightly's transforms; an item is a list of two views."""

    def __init__(self) -> None:
        self.images = load("photos", "pretrain").images
        self.transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        return self.transform(to_pil_image(self.images[i]))


def main(steps: int = 30, batch_size: int = 64) -> list[float]:
    """Train, and return the loss of each step."""
    torch.manual_seed(0)
    loader = DataLoader(Photos(), batch_size, shuffle=True, drop_last=True)
    backbone = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=512)
    model = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, 128))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    criterion = NTXentLoss(temperature=0.2)
    mixture, generator = unmix.UnMix(per="batch"), torch.Generator().manual_seed(0)
    losses = []
    for _, (x1, x2) in zip(range(steps), loader, strict=False):
        z1, z2 = model(x1), model(x2)
        loss = criterion(z1, z2)
        draw = mixture.draw(x1.shape, generator)
        z_mix = model(draw.apply(x1))
        loss = loss + unmix.shared_loss(criterion, z_mix, z2, draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
