"""MoCo v3: its loss written out, momentum, heads for ResNets and transformers, frozen patches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmix import backbones
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.methods import MoCoV3, Progress
from unmix.mixtures import PairDraw
from unmix.mixtures.draws import whole_image
from unmix.step import Mixture, objective

SIZES = {"dim": 8, "hidden": 16}


def mocov3(**options: Any) -> MoCoV3:
    return MoCoV3(backbones.build("resnet10", width=0.125, size=8), **SIZES | options)


def test_virtual_labels_of_weight_1_give_the_clean_loss_of_a_query() -> None:
    """i-Mix has the same candidates as the method, and so the same factor 2 T."""
    method = mocov3(temperature=0.3).eval()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    draw = PairDraw(
        torch.arange(5, -1, -1), whole_image(6, 8, 8), torch.ones(6), (8, 8), per_sample=False
    )
    mixture = Mixture(draw, RULES["imix"])
    mixed = objective(method, views, torch.arange(6), torch.Generator(), mixture).loss
    targets = method.targets(views, {}, torch.arange(6), torch.Generator())
    expected = sum(method.compare(method.query(views[0]), k).mean() for k in targets.values())
    torch.testing.assert_close(mixed, expected)


def test_a_resnets_predictor_ends_without_bias_but_in_runs_of_before() -> None:
    """As released; what an earlier version saved has one, and its settings say so by silence."""
    from unmix.config.earlier import upgraded

    assert mocov3().h[-1].bias is None
    assert mocov3(predictor_bias=True).h[-1].bias is not None
    whole = {"method": "mocov3", "stem": "auto", "resident": "yes", "knn_k": 200, "logger": "none"}
    assert upgraded(whole)["predictor_bias"] is True
    assert upgraded({**whole, "predictor_bias": False})["predictor_bias"] is False
    assert "predictor_bias" not in upgraded({**whole, "method": "byol"})
    assert upgraded({"method": "mocov3", "stem": "small"}) == {"method": "mocov3", "stem": "small"}


class Patches(nn.Module):
    """As much of a vision transformer as the method looks at."""

    feature_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.patch_embed(x).flatten(2).mean(dim=2))


def test_the_loss_is_cross_entropy_among_the_keys_of_the_batch() -> None:
    """Algorithm 1: 2 T times InfoNCE in each direction, summed."""
    method = mocov3(temperature=0.3).eval()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    q = [F.normalize(method.h(method.g(method.f(view))), dim=1) for view in views]
    k = [F.normalize(method.g_k(method.f_k(view)), dim=1) for view in views]
    expected = 0.0
    for a, b in ((0, 1), (1, 0)):
        for i in range(6):
            scores = [math.exp((q[a][i] @ k[b][j]).item() / 0.3) for j in range(6)]
            expected -= 2 * 0.3 * math.log(scores[i] / sum(scores)) / 6
    loss = objective(method, views, torch.arange(6), torch.Generator()).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_keys_have_no_gradient() -> None:
    method = mocov3()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    targets = method.targets(views, {}, torch.arange(6), torch.Generator())
    assert set(targets) == {0, 1}
    assert not any(k.requires_grad for k in targets.values())


@pytest.mark.parametrize(("done", "m"), [(0, 0.9), (2, 0.95), (4, 1.0)])
def test_momentum_rises_by_a_cosine(done: int, m: float) -> None:
    method = mocov3(encoder_momentum=0.9)
    before = [p.clone() for p in method.f_k.parameters()]
    with torch.no_grad():
        for p in method.f.parameters():
            p.mul_(2)
    method.begin_step(Progress(done, 4, 2))
    for old, p, q in zip(before, method.f_k.parameters(), method.f.parameters(), strict=True):
        torch.testing.assert_close(p, m * old + (1 - m) * q.detach(), rtol=1e-5, atol=1e-6)


def test_heads_are_those_of_the_released_code() -> None:
    """Two layers on a ResNet and three on a transformer, whose predictor has a last batch norm."""
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    last = [nn.Linear, nn.BatchNorm1d]
    resnet = mocov3()
    assert [type(x) for x in resnet.g] == [*hidden, *last]
    assert [type(x) for x in resnet.h] == [*hidden, nn.Linear]
    transformer = MoCoV3(Patches(), **SIZES)  # type: ignore[arg-type]
    assert [type(x) for x in transformer.g] == [*hidden, *hidden, *last]
    assert [type(x) for x in transformer.h] == [*hidden, *last]
    assert transformer.g[-1].weight is None


@pytest.mark.parametrize("frozen", [False, True])
def test_a_transformers_patch_projection_can_be_frozen(frozen: bool) -> None:
    """All else is trained, and the projection is left out of the optimiser."""
    method = MoCoV3(Patches(), freeze_patch_embedding=frozen, **SIZES)  # type: ignore[arg-type]
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    objective(method, views, torch.arange(6), torch.Generator()).loss.backward()
    for name, p in method.f.named_parameters():
        still = frozen and name.startswith("patch_embed")
        assert p.requires_grad is not still
        assert (p.grad is None) is still


def test_a_transformer_of_timm_is_taken() -> None:
    pytest.importorskip("timm")
    backbone = backbones.build("timm:vit_tiny_patch16_224", size=32)
    method = MoCoV3(backbone, freeze_patch_embedding=True, **SIZES)
    views = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    result = objective(method, views, torch.arange(4), torch.Generator())
    result.loss.backward()
    assert result.loss.isfinite()
    assert not any(p.requires_grad for p in method.f.patch_embed.parameters())


def test_freezing_what_a_backbone_has_not_is_told() -> None:
    with pytest.raises(UserError) as caught:
        mocov3(freeze_patch_embedding=True)
    assert caught.value.on_command_line() == (
        "--freeze_patch_embedding: the backbone has no patch embedding; use a transformer, such as "
        "--backbone timm:vit_small_patch16_224, or leave it out."
    )


def test_chance_level_is_ln_of_the_batch_in_each_direction() -> None:
    """Exactly so where all features are the same; times 2 T."""
    method = mocov3(temperature=0.3)
    assert method.chance_loss is None
    method.check_batch(6)
    same = torch.full((6, 8), 8**-0.5)
    both = 2 * method.compare(same, same).mean().item()
    assert method.chance_loss == pytest.approx(both) == pytest.approx(4 * 0.3 * math.log(6))


def test_a_temperature_of_nothing_is_told() -> None:
    with pytest.raises(UserError) as caught:
        mocov3(temperature=0.0)
    assert str(caught.value) == "MoCoV3: temperature must be greater than 0, got 0"
