"""A `timm` model pretrained with Un-Mix: in-batch contrast of a small ViT, and the export.

With `num_classes=0` a model of timm returns pooled features; the projector is needed only for the
loss. There is a loss per sample, so there may also be a weight per sample.
"""

import tempfile
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import unmix
from unmix.data import load
from unmix.views import Views, preset

VIT = {"img_size": 32, "patch_size": 8, "depth": 3, "num_classes": 0}


def info_nce(q: Tensor, k: Tensor, T: float = 0.2) -> Tensor:
    """Cross-entropy of the sample's key among those of the batch, a loss per sample."""
    logits = F.normalize(q) @ F.normalize(k).T / T
    return F.cross_entropy(logits, torch.arange(len(q), device=q.device), reduction="none")


def main(steps: int = 30, batch_size: int = 64, out: Path | None = None) -> list[float]:
    """Train, export, and return the loss of each step."""
    torch.manual_seed(0)
    data = load("photos", "pretrain")
    views = Views(preset("simclr-cifar"), 32, data.mean, data.std)
    backbone = timm.create_model("vit_tiny_patch16_224", **VIT)
    D = backbone.num_features
    projector = nn.Sequential(nn.Linear(D, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 64))
    model = nn.Sequential(backbone, projector)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.05)
    mixture, generator = unmix.UnMix(per="sample"), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        x1, x2 = views(data.images[torch.randint(len(data), (batch_size,))], generator)
        q, k = model(x1), model(x2)
        draw = mixture.draw(x1.shape, generator)
        q_mix = model(draw.apply(x1))
        loss = info_nce(q, k).mean() + unmix.shared_loss(info_nce, q_mix, k, draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    out = out or Path(tempfile.mkdtemp()) / "vit.safetensors"
    save_file(backbone.state_dict(), out)
    timm.create_model("vit_tiny_patch16_224", **VIT, checkpoint_path=str(out))  # and load it again
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, features {D}, in {out}")
    return losses


if __name__ == "__main__":
    main()
