"""Vision transformers in the methods: one step each, small crops, a run's first steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unmix import methods
from unmix.backbones import is_vit
from unmix.backbones.tokens import sine_cosine_positions
from unmix.methods import METHODS, Progress
from unmix.mixtures import UnMix
from unmix.step import Mixture, objective

pytest.importorskip("timm")
OPTIONS: dict[str, dict[str, Any]] = {
    "deepclusterv2": {"prototypes": (4, 3), "hidden": 32},
    "densecl": {"dim": 16, "queue_size": 32, "bn_splits": 1},
    "dino": {"dim": 64, "hidden": 32, "bottleneck": 16},
    "ibot": {"dim": 64, "hidden": 32, "bottleneck": 16},
    "lejepa": {"dim": 16, "hidden": 32, "slices": 16},
    "mocov3": {"dim": 16, "hidden": 32},
    "simdino": {"dim": 16, "hidden": 32},
    "swav": {"dim": 16, "hidden": 32, "prototypes": 8},
}


@pytest.mark.parametrize("name", [name for name in OPTIONS if name in METHODS])
def test_a_step_on_a_transformer_with_small_crops_and_a_mixture(name: str) -> None:
    kind: Any = METHODS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = kind.build_backbone("timm:vit_tiny_patch16_224", size=32, patch=8)
        method = methods.build(name, backbone, 6, **OPTIONS[name])
    assert is_vit(method.backbone)
    generator = torch.Generator().manual_seed(0)
    sizes = [32, 32, 16] if method.multi_crop else [32, 32]
    views = [torch.randn(6, 3, size, size, generator=generator) for size in sizes]
    for step in (0, 1):
        method.begin_step(Progress(step, 2, 1))
        mixture = Mixture(UnMix().draw(views[0].shape, generator))
        result = objective(method, views, torch.arange(6), generator, mixture)
        assert result.loss.isfinite()
        result.loss.backward()
        result.update_memory()
    assert result.loss > 0 or name == "simdino"  # from which the coding rate is subtracted
    gradient: Any = method.backbone.cls_token.grad  # type: ignore[union-attr]
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


@pytest.mark.parametrize(("name", "attention"), [("mae", 768), ("mocov3", 384)])
def test_weights_begin_by_the_uniform_distribution_of_the_released_code(
    name: str, attention: int
) -> None:
    """models_mae.py, vits.py: up to sqrt(6 / (in + out)); MoCo v3 counts q, k and v apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit: Any = METHODS[name].build_backbone(
            "timm:vit_tiny_patch16_224", size=32, patch=8, depth=1
        )
    block, patches = vit.blocks[0], vit.patch_embed.proj
    bounds = {
        block.attn.qkv: 6 / attention, block.attn.proj: 6 / 384, block.mlp.fc1: 6 / 960,
        block.mlp.fc2: 6 / 960, patches: 6 / (192 + 192),
    }  # fmt: skip
    for layer, square in bounds.items():
        weight = layer.weight.detach()
        assert weight.abs().max().item() == pytest.approx(square**0.5, rel=1e-3)
        assert weight.std().item() == pytest.approx((square / 3) ** 0.5, rel=0.03)
        assert layer is patches or not layer.bias.any()
    assert patches.bias.any().item() is (name == "mae")
    assert not vit.pos_embed.requires_grad
    torch.testing.assert_close(vit.pos_embed[0, 1:], sine_cosine_positions(192, 4, 4))
    token = vit.cls_token.detach().std().item()
    assert token == pytest.approx(0.02 if name == "mae" else 1e-6, rel=0.2)
