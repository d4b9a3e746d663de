"""SimSiam with Un-Mix in a plain PyTorch loop; the lines marked `mixture` are the difference.

There is a loss per sample; the target is the other view's projection, without gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

import unmix
from unmix.data import load


def view(images: Tensor, size: int = 32) -> Tensor:
    """Crop, flip and brighten, each image independently: uint8 (N, 3, H, W) to float."""
    n = len(images)
    scale, flip = torch.rand(n) * 0.6 + 0.4, torch.randint(2, (n,)) * 2 - 1
    box = torch.zeros(n, 2, 3)
    box[:, 0, 0], box[:, 1, 1] = scale * flip, scale
    box[:, :, 2] = (torch.rand(n, 2) * 2 - 1) * (1 - scale[:, None])
    grid = F.affine_grid(box, [n, 3, size, size], align_corners=False)
    cropped = F.grid_sample(images / 255, grid, align_corners=False)
    return (cropped - 0.45) / 0.25 * (torch.rand(n, 3, 1, 1) * 0.8 + 0.6)


def D(p: Tensor, z: Tensor) -> Tensor:
    """Negative cosine similarity, a loss per sample."""
    return -F.cosine_similarity(p, z.detach(), dim=1)


def main(steps: int = 30, batch_size: int = 64) -> list[float]:
    """Train, and return the loss of each step."""
    torch.manual_seed(0)
    images = load("photos", "pretrain").images
    f = nn.Sequential(ResNet(BasicBlock, [1, 1, 1, 1], 256), nn.BatchNorm1d(256, affine=False))
    h = nn.Sequential(nn.Linear(256, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 256))
    optimizer = torch.optim.SGD([*f.parameters(), *h.parameters()], 0.05, 0.9, weight_decay=5e-4)
    mixture, generator = unmix.UnMix(), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        batch = images[torch.randint(len(images), (batch_size,))]
        x1, x2 = view(batch), view(batch)
        z1, z2 = f(x1), f(x2)
        loss = (D(h(z1), z2).mean() + D(h(z2), z1).mean()) / 2
        draw = mixture.draw(x1.shape, generator)  # mixture: partners and weights
        p_mix = h(f(draw.apply(x1)))  # mixture: encoded once
        loss = loss + unmix.shared_loss(D, p_mix, z2, draw)  # mixture: weighted by share
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
