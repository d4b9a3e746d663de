"""Vision transformers in the methods: one step each, small crops, a run's first steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unmix import methods
from unmix.backbones import is_vit
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
    gradient = method.backbone.pos_embed.grad  # type: ignore[union-attr]
    assert gradient.isfinite().all()  # type: ignore[union-attr, operator]
    assert (gradient != 0).any()  # type: ignore[union-attr, operator]
