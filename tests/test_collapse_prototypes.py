"""SwAV, DINO and iBOT collapse without what prevents it, and do not with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from unmix.methods import DINO, IBOT, Progress, SwAV
from unmix.step import objective

CLASSES, N, STEPS, LR = 8, 32, 250, 3e-3


class Small(nn.Module):
    """Two layers, without batch norm, which would hold features apart.

    Args:
        bias: Whether the layers have one, which makes pictures alike at the start.
    """

    feature_dim = 32

    def __init__(self, bias: bool) -> None:
        super().__init__()
        first, second = nn.Linear(48, 64, bias), nn.Linear(64, 32, bias)
        self.layers = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def pictures(generator: torch.Generator, n: int = N) -> tuple[list[Tensor], Tensor]:
    """Two noisy views of patterns, of which there are eight."""
    patterns = torch.randn(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    label = torch.randint(CLASSES, (n,), generator=generator)
    views = [patterns[label] + 0.4 * torch.randn(n, 3, 4, 4, generator=generator) for _ in "12"]
    return views, label


def trained(method: Any, steps: int = STEPS) -> Any:
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], LR)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        views, _ = pictures(generator)
        method.begin_step(Progress(step, steps, 10))
        result = objective(method, views, torch.arange(N), generator)
        optimizer.zero_grad()
        result.loss.backward()
        result.update_memory()
        optimizer.step()
    return method


def information(p: Tensor) -> float:
    """How much an assignment p (N, K) tells of its picture: H(mean p) - mean H(p), in nats."""

    def entropy(q: Tensor) -> Tensor:
        return -(q * q.clamp(min=1e-12).log()).sum(dim=-1)

    return (entropy(p.mean(dim=0)) - entropy(p).mean()).item()


def dino(center_momentum: float = 0.5, **options: Any) -> float:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        method = DINO(
            Small(bias=False), dim=32, hidden=32, bottleneck=16, encoder_momentum=0.9,
            center_momentum=center_momentum, freeze_last_epochs=0, **options,
        )  # fmt: skip
        with torch.enable_grad():
            trained(method)
        views, _ = pictures(torch.Generator().manual_seed(STEPS), 256)
        logits = method.f_t.head(method.f_t.backbone(views[0]))
        return information(((logits - method.c) / method.tau_t).softmax(dim=1))


def ibot(**options: Any) -> tuple[float, float]:
    """What class tokens and patches say of the pattern, of a transformer of one block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=4, patch_size=2, embed_dim=16, depth=1, num_heads=2, num_classes=0
        )
        given = {"encoder_momentum": 0.9, "center_momentum": 0.5, "warmup_teacher_epochs": 0}
        sharp = {"teacher_temperature": 0.04, "warmup_teacher_temperature": 0.04}
        method: Any = IBOT(
            vit, dim=32, hidden=32, bottleneck=16, freeze_last_epochs=0,
            **{**given, **sharp, **options},
        )  # fmt: skip
        trained(method, 120)
    views, _ = pictures(torch.Generator().manual_seed(STEPS), 256)
    index, generator = torch.arange(256), torch.Generator().manual_seed(0)
    target = method.targets(views, {}, index, generator)[0]
    of_patches = method.last_of(target.patches.flatten(0, 2)) - target.patch_center[0]
    both = (target.logits - target.center, of_patches)
    of_class, of_patch = (information((x / method.tau_t).softmax(dim=1)) for x in both)
    return of_class, of_patch


def swav(monkeypatch: pytest.MonkeyPatch, even: bool) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = SwAV(Small(bias=True), dim=16, hidden=32, prototypes=16, freeze_prototypes_steps=0)
        method.f.head = nn.Linear(32, 16)  # without batch norm, too
        if not even:

            @torch.no_grad()
            def codes(z: Tensor, number: int) -> Tensor:
                return (method.C(z) / method.epsilon).softmax(dim=1)

            monkeypatch.setattr(method, "codes", codes)
        trained(method)
        views, _ = pictures(torch.Generator().manual_seed(STEPS), 256)
        with torch.no_grad():
            return information((method.query(views[0], 2).scores / method.epsilon).softmax(dim=1))


def test_dino_needs_both_centring_and_sharpening() -> None:
    """Without either, what the teacher says no longer depends on the picture (its Fig. 7)."""
    assert dino() > 0.4
    assert dino(center_momentum=1.0) < 0.05  # the center stays 0
    assert dino(teacher_temperature=0.1, warmup_teacher_temperature=0.1) < 0.05


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_ibot_with_koleo_keeps_images_and_patches_apart(centering: str) -> None:
    of_class, of_patch = ibot(centering=centering, koleo=0.1)
    assert of_class > 0.2
    assert of_patch > 0.2


def test_ibot_needs_a_center_for_both_and_here_koleo_for_class_tokens() -> None:
    """Class tokens of a transformer as it starts differ little, and fall onto one another."""
    assert max(ibot(center_momentum=1.0, koleo=0.1)) < 0.01  # the center stays 0
    of_class, of_patch = ibot()
    assert of_class < 0.01
    assert of_patch > 0.2


def test_swav_needs_codes_that_are_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the patterns' ln 8 = 2.08, with softmax for Sinkhorn less than ln 2 is left."""
    assert swav(monkeypatch, even=True) > 1.9
    assert swav(monkeypatch, even=False) < 0.69
