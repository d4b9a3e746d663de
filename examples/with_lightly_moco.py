"""MoCo of `lightly` with Un-Mix: its memory bank, head and momentum update, unchanged.

`NTXentLoss(memory_bank_size=...)` stores its keys at every call with a gradient, so those for a
mixture would store them again, as negatives of their own queries. The bank is called once per step.
"""

from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from lightly.models.modules import MoCoProjectionHead
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import update_momentum
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

import unmix
from unmix.data import load
from unmix.views import Views, preset


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, T: float = 0.1) -> Tensor:
    """Cross-entropy of the key k among the negatives (D, K), a loss per sample."""
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ negatives], dim=1) / T
    return -logits.log_softmax(dim=1)[:, 0]


def main(steps: int = 34, batch_size: int = 64, K: int = 256) -> list[float]:
    """Train, and return the loss of each step."""
    torch.manual_seed(0)
    data = load("photos", "pretrain")
    views = Views(preset("moco-cifar"), 32, data.mean, data.std)
    backbone = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=512)
    f_q = nn.Sequential(backbone, MoCoProjectionHead(512, 512, 128))
    f_k = deepcopy(f_q)
    bank = MemoryBankModule(size=(K, 128))
    optimizer = torch.optim.Adam(f_q.parameters(), 1e-3)
    mixture, generator = unmix.UnMix(per="sample"), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        x1, x2 = views(data.images[torch.randint(len(data), (batch_size,))], generator)
        with torch.no_grad():
            update_momentum(f_q, f_k, m=0.9)  # 0.99 or more in a long run
            k, negatives = bank(F.normalize(f_k(x2)), update=True)  # clean keys only, once
        contrast, draw = partial(info_nce, negatives=negatives), mixture.draw(x1.shape, generator)
        q_mix = F.normalize(f_q(draw.apply(x1)))
        loss = contrast(F.normalize(f_q(x1)), k).mean()
        loss = loss + unmix.shared_loss(contrast, q_mix, k, draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    losses = losses[K // batch_size :]  # before that the bank has random negatives
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
