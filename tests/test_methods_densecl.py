"""DenseCL: its step against the released code's, written out; mixtures by position; maps."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightly.models.utils import select_most_similar
from torch import Tensor, nn

from unmix import backbones
from unmix.backbones import feature_map
from unmix.backbones.maps import patch_rows
from unmix.errors import UserError
from unmix.methods import DenseCL
from unmix.methods.densecl import matches
from unmix.mixtures import PairDraw, UnMix
from unmix.step import Mixture, objective


def densecl(**options: Any) -> DenseCL:
    backbone = backbones.build("resnet10", width=0.125, size=32, stem="small")
    small = {"dim": 5, "queue_size": 12, "bn_splits": 1, "shuffle_bn": False}
    method = DenseCL(backbone, **small | options).eval()
    for p in method.f_k.parameters():
        p.data += 0.1 * torch.randn(p.shape)
    return method


def images(n: int = 4, side: int = 16) -> list[Tensor]:
    return [torch.randn(n, 3, side, side) for _ in range(2)]


def encoded(encoder: Any, view: Tensor) -> dict[str, Tensor]:
    """The neck of the released code: rows are samples, then positions."""
    found: list[Tensor] = []
    handle = encoder.backbone.layer4.register_forward_hook(lambda m, x, y: found.append(y))
    pooled = encoder.backbone(view)
    handle.remove()
    features = found[0].flatten(2).transpose(1, 2)
    first, _, last = encoder.dense_head
    hidden = F.relu(F.linear(features, first.weight[:, :, 0, 0], first.bias))
    dense = F.linear(hidden, last.weight[:, :, 0, 0], last.bias)
    return {
        "q": F.normalize(encoder.head(pooled), dim=1),
        "dense": F.normalize(dense, dim=2),
        "mean": F.normalize(dense.mean(dim=1), dim=1),
        "features": F.normalize(features, dim=2),
    }


def info_nce(positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    logits = torch.cat([positive[:, None], negatives], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")


def dense_losses(method: DenseCL, q: dict[str, Tensor], k: dict[str, Tensor]) -> Tensor:
    """At each position (N, S^2), with the match of lightly's DenseCL."""
    key = select_most_similar(q["features"], k["features"], k["dense"])
    n, positions, _ = key.shape
    flat = q["dense"].flatten(0, 1)
    positive = (flat * key.flatten(0, 1)).sum(1)
    return info_nce(positive, flat @ method.dense_queue.keys.T, method.T).view(n, positions)


def global_losses(method: DenseCL, q: dict[str, Tensor], k: dict[str, Tensor]) -> Tensor:
    return info_nce((q["q"] * k["q"]).sum(1), q["q"] @ method.queue.keys.T, method.T)


@pytest.mark.parametrize("weight", [0.5, 0.3])
def test_loss_gradients_and_queues_are_those_of_the_released_step(weight: float) -> None:
    method, views = densecl(dense=weight), images()
    reference = copy.deepcopy(method)
    q = encoded(reference.f_q, views[0])
    with torch.no_grad():
        k = encoded(reference.f_k, views[1])
    single, dense = global_losses(reference, q, k).mean(), dense_losses(reference, q, k).mean()
    expected = (1 - weight) * single + weight * dense
    expected.backward()
    found = objective(method, views, torch.arange(4), torch.Generator())
    found.loss.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(method.named_parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert torch.equal(method.dense_queue.keys, reference.dense_queue.keys)
    found.update_memory()
    torch.testing.assert_close(method.queue.keys[:4], k["q"])
    torch.testing.assert_close(method.dense_queue.keys[:4], k["mean"])
    assert torch.equal(method.dense_queue.keys[4:], reference.dense_queue.keys[4:])


def half_and_half(n: int, side: int) -> PairDraw:
    """The left half of each image is pasted from its partner."""
    box = torch.tensor([[0, 0, side, side // 2]]).expand(n, 4)
    return PairDraw(torch.arange(n).flip(0), box, torch.zeros(n), (side, side), False)


@pytest.mark.parametrize("kind", ["region", "global"])
def test_each_position_of_a_mixture_meets_the_image_that_is_there(kind: str) -> None:
    """A map of 2 x 2: its left column is the partner's, its right column the image's own."""
    method, views = densecl(dense=0.4), images()
    assert feature_map(method.backbone, views[0]).shape[2:] == (2, 2)
    draw: Any = half_and_half(4, 16)
    if kind == "global":
        draw = UnMix(1.0).draw((4, 3, 16, 16), torch.Generator().manual_seed(1))
    found = objective(method, views, torch.arange(4), torch.Generator(), Mixture(draw))
    q_mix, k = encoded(method.f_q, draw.apply(views[0])), encoded(method.f_k, views[1])
    p, w = draw.owners[:, 1], draw.shares[:, 0]
    of_partner = {key: rows[p] for key, rows in k.items()}
    single = w * global_losses(method, q_mix, k) + (1 - w) * global_losses(
        method, q_mix, of_partner
    )
    own, other = dense_losses(method, q_mix, k), dense_losses(method, q_mix, of_partner)
    if kind == "region":
        left = torch.tensor([True, False, True, False])
        dense = torch.where(left, other, own)
    else:
        dense = w[:, None] * own + (1 - w[:, None]) * other
    expected = 0.6 * single.mean() + 0.4 * dense.mean()
    torch.testing.assert_close(found.mixed, expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_position_is_matched_with_the_most_similar_features() -> None:
    """A map that is shifted is matched with the shift."""
    features = F.normalize(torch.randn(2, 6, 3, 3), dim=1)
    shifted = features.roll(1, dims=3)
    rows = torch.arange(9).view(3, 3).roll(-1, dims=1).flatten()
    assert torch.equal(matches(features, shifted), torch.stack([rows, rows]))


def test_no_gradient_goes_through_the_match() -> None:
    method, views = densecl(), images()
    output = method.query(views[0])
    assert not output.features.requires_grad
    assert output.dense.requires_grad


@pytest.mark.parametrize("name", ["resnet10", "resnet18"])
def test_the_mean_of_a_map_is_the_pooled_features(name: str) -> None:
    backbone = backbones.build(name, width=0.125, size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    found = feature_map(backbone, x)
    assert found.shape == (2, backbone.feature_dim, 4, 4)
    torch.testing.assert_close(found.mean(dim=(2, 3)), backbone(x))


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("timm:test_vit", 160, (10, 10)),
        ("timm:test_resnet", 64, (2, 2)),
        ("timm:swin_tiny_patch4_window7_224", 64, (2, 2)),
    ],
)
def test_maps_of_timm_have_channels_first(name: str, size: int, grid: tuple[int, int]) -> None:
    backbone = backbones.build(name, size=size).eval()
    with torch.no_grad():
        found = feature_map(backbone, torch.randn(1, 3, size, size))
    assert found.shape == (1, backbone.feature_dim, *grid)


def test_tokens_that_are_no_grid_are_refused() -> None:
    class Seven(nn.Module):
        def forward_features(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 7, 3)

    with pytest.raises(UserError, match="backbone: the 7 tokens of Seven are no grid of patches"):
        feature_map(Seven(), torch.zeros(1, 3, 8, 8))
    wide = SimpleNamespace(patch_embed=SimpleNamespace(patch_size=(4, 2)))
    assert patch_rows(wide, (8, 12), 12) == 2  # type: ignore[arg-type]
    assert patch_rows(wide, (8, 12), 16) is None  # type: ignore[arg-type]


def test_a_backbone_without_a_map_is_refused() -> None:
    class Pooled(nn.Module):
        feature_dim = 3

        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    with pytest.raises(UserError, match="DenseCL compares features at positions, and Pooled gives"):
        DenseCL(Pooled())


@pytest.mark.parametrize(
    ("flag", "value"), [("dense", 0.0), ("dense", 1.0), ("queue_size", 0), ("temperature", 0.0)]
)
def test_values_out_of_range_are_told(flag: str, value: float) -> None:
    with pytest.raises(UserError) as caught:
        densecl(**{flag: value})
    assert caught.value.on_command_line().startswith(f"--{flag}: {value:g} is out of range")
