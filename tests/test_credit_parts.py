"""RegionCL: the pasted region and the canvas are a query each; against its code's arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import N, Tiny, build, gradients, region_draw, settled, step, views_of
from unmix import backbones
from unmix.backbones import pooled_apart, why_not_in_parts
from unmix.config import Settings
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.mixtures import GridMix, MixUp, RegionSwap, UnMix
from unmix.randomness import generator_for
from unmix.together import Names, check_together
from unmix.training.loading.loaders import Batch
from unmix.training.run.parts import build_parts

BOX = slice(2, 12)  # of region_draw(10), in pixels and, of maps of that size, in cells


class Same(Tiny):
    """Feature maps of the images' size, so that a box of pixels is a box of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, self.feature_dim, 3, padding=1)

    def map(self, images: Tensor) -> Tensor:
        return self.bn(self.conv(images)).relu()


def means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the canvas and of the region, as RegionCLNonLinearNeckV1 takes them."""
    mask = torch.ones_like(x)
    mask[:, :, BOX, BOX] = 0
    canvas = (x * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3))
    return canvas, x[:, :, BOX, BOX].mean(dim=(2, 3))


def pair(kind: str, **options: Any) -> tuple[Any, Any]:
    """Two equal methods whose maps are of the images' size."""
    made = [build(kind, **options) for _ in range(2)]
    for method in made:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            backbone = Same()
        if kind.startswith("moco"):
            method.f_q.backbone = backbone
        else:
            method.f = backbone
    return made[0].eval(), made[1].eval()


def test_moco_is_the_released_loss_with_the_other_part_as_a_negative() -> None:
    """Canvas and region against key, queue and the other part, which has no gradient."""
    method, other = pair("moco-v2")
    views = views_of(method)
    found = step(method, views, RULES["regioncl"], region_draw(10))
    found.loss.backward()

    mixed = views[0].clone()
    mixed[:, :, BOX, BOX] = views[0].flip(0)[:, :, BOX, BOX]
    q = other.query(views[0])
    with torch.no_grad():
        k = other.f_k(views[1])
    parts = other.f_q.head(torch.cat(means(other.f_q.backbone.map(mixed))))
    canvas, pasted = F.normalize(parts, dim=1).chunk(2)
    own_region = pasted.flip(0)  # of image i, which is in the partner's mixture
    queue = other.queue.keys

    def losses(query: Tensor, rest: Tensor) -> Tensor:
        positive = (query * k).sum(1, keepdim=True)
        intra = (query * rest.detach()).sum(1, keepdim=True)
        scores = torch.cat([positive, intra, query @ queue.T], dim=1) / other.T
        return F.cross_entropy(scores, torch.zeros(N, dtype=torch.long), reduction="none")

    region = torch.cat([losses(canvas, pasted), losses(own_region, canvas.flip(0))]).mean()
    scores = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / other.T
    instance = F.cross_entropy(scores, torch.zeros(N, dtype=torch.long))
    (instance + region).backward()
    torch.testing.assert_close(found.mixed, region.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.loss, instance + region, rtol=1e-5, atol=1e-6)
    reference = gradients(other)
    for name, gradient in gradients(method).items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_without_negatives_each_part_predicts_its_own_image(name: str) -> None:
    method, other = pair(name)
    views = views_of(method)
    found = step(method, views, RULES["regioncl"], region_draw(10))
    mixed = views[0].clone()
    mixed[:, :, BOX, BOX] = views[0].flip(0)[:, :, BOX, BOX]
    queries = other.queries(views)
    targets = other.targets(views, queries, torch.arange(N), torch.Generator())
    z = other.g(torch.cat(means(other.f.map(mixed))))
    parts = other.q(z) if name == "byol" else None
    if parts is None:
        with pooled_apart(other.f, region_draw(10).shares_at):
            parts = other.query(mixed)
    total = torch.zeros(())
    for _, b, share in other.pairs:
        for rows, t in ((slice(N), targets[b]), (slice(N, None), targets[b].flip(0))):
            part = (
                parts[rows] if isinstance(parts, Tensor) else type(parts)(*(p[rows] for p in parts))
            )
            total = total + share * other.compare(part, t).mean() / 2
    torch.testing.assert_close(found.mixed, total.detach(), rtol=1e-5, atol=1e-6)


def test_one_forward_of_a_resnet_gives_both_parts() -> None:
    """Whole cells of the last map, as the released neck pools them; the rest is the canvas."""
    net = backbones.build("resnet10", width=0.25, size=32).eval()
    draw = RegionSwap().draw((3, 3, 32, 32), generator_for(0))
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        maps: list[Tensor] = []
        hook = net.avgpool.register_forward_hook(lambda _, given, __: maps.append(given[0]))
        whole = net(x)
        hook.remove()
        with pooled_apart(net, draw.shares_at):
            parts = net(x)
        again = net(x)
    top, left, bottom, right = (int(v) // 8 for v in draw.box[0])
    assert maps[0].shape[2:] == (4, 4)
    inside = maps[0][:, :, top:bottom, left:right].mean(dim=(2, 3))
    torch.testing.assert_close(parts[3:], inside)
    w = draw.weight[:, None]
    torch.testing.assert_close(w * parts[:3] + (1 - w) * parts[3:], whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, whole)


def test_a_transformer_pools_its_patch_tokens() -> None:
    vit: Any = backbones.build(
        "timm:vit_tiny_patch16_224", size=16, patch=4, depth=1, heads=1
    ).eval()
    draw = region_draw(8)  # 2 to 10: cells of 4 are half covered at the edges
    x = torch.randn(N, 3, 16, 16)
    with torch.no_grad():
        tokens = vit.forward_features(x)[:, vit.num_prefix_tokens :]
        with pooled_apart(vit, draw.shares_at):
            parts = vit(x)
    shares = draw.shares_at(4, 4).flatten(2)
    for part in (0, 1):
        weights = shares[:, part] / shares[:, part].sum(dim=1, keepdim=True)
        expected = (weights[:, :, None] * tokens).sum(dim=1)
        torch.testing.assert_close(parts[part * N : (part + 1) * N], expected, rtol=1e-4, atol=1e-5)


def test_split_batch_norm_keeps_the_parts_of_an_image_at_its_rows() -> None:
    """In training, with sub-batches: the order within the encoder is undone, part by part."""
    method = build("moco-asymmetric").train()
    view = views_of(method)[0]
    draw = RegionSwap(per="sample").draw(view.shape, generator_for(1))
    whole = method.query(view)
    with pooled_apart(method.backbone, draw.shares_at):
        parts = method.query(view)
    assert len(parts) == 2 * N
    with pooled_apart(method.backbone, lambda r, c: torch.ones(N, 2, r, c)):
        both = method.query(view)
    torch.testing.assert_close(both, torch.cat([whole, whole]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(parts[:N], parts[N:])


def test_a_part_that_is_empty_has_no_loss() -> None:
    """A box of no pixel: the canvas alone counts, and nothing is nan."""
    method = settled("byol")
    views = views_of(method)
    found = step(method, views, RULES["regioncl"], region_draw(0)).mixed
    plain = step(method, views, RULES["replace"], region_draw(0)).mixed
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize(("side", "cells"), [(224, 7), (32, 4), (56, 7)])
def test_boxes_are_whole_cells_of_published_sizes(side: int, cells: int) -> None:
    draw = RegionSwap(per="sample").draw((400, 3, side, side), generator_for(0))
    assert (draw.box % (side // cells) == 0).all()
    lengths = (draw.box[:, 2:] - draw.box[:, :2]) // (side // cells)
    assert set(lengths.flatten().tolist()) == ({3, 4, 5} if cells == 7 else {2, 3})
    assert draw.box.min() == 0
    assert draw.box.max() == side


@pytest.mark.parametrize(
    ("operator", "backbone", "joint", "message"),
    [
        (MixUp(), Tiny(), False, "leaves no part of a mixture to one image"),
        (UnMix(), Tiny(), False, "leaves no part of a mixture to one image"),
        (
            GridMix(pairing="second_view"),
            Tiny(),
            False,
            "needs a mixture of every",
        ),
        (RegionSwap(), torch.nn.Flatten(), False, "no layer that averages a feature map"),
        (RegionSwap(), Tiny(), True, "does not apply where parts of mixtures are pooled apart"),
    ],
    ids=["mixup", "coin", "second_view", "flatten", "joint"],
)
def test_what_has_no_parts_is_refused(
    operator: Any, backbone: Any, joint: bool, message: str
) -> None:
    method, rule = build("byol"), RULES["regioncl"]
    method.f = backbone
    names = Names("byol", "regioncl", type(operator).__name__, type(backbone).__name__)
    with pytest.raises(UserError, match=message):
        check_together(operator, rule, method, names, joint=joint)


def test_methods_without_a_place_for_the_negative_say_which_have_one() -> None:
    assert "moco and methods without negatives" in str(RULES["regioncl"].why_not(build("simclr")))
    assert "moco and methods without negatives" in str(RULES["regioncl"].why_not(build("all4one")))
    assert "scalar per batch" in str(RULES["regioncl"].why_not(build("barlow")))
    assert why_not_in_parts(Tiny()) is None


def test_the_flag_makes_a_step() -> None:
    words: dict[str, Any] = {
        "data": "photos", "limit": 32, "size": 32, "batch_size": 8, "backbone": "resnet10",
        "width": 0.25, "device": "cpu", "precision": "32", "method": "moco", "queue_size": 16,
        "bn_splits": 2, "unmix": True, "unmix_rule": "regioncl",
    }  # fmt: skip
    parts = build_parts(Settings.of(words))
    assert parts.module.label_space == RegionSwap()
    found = parts.module.compute(Batch(torch.arange(8)), generator_for(0))
    found.loss.backward()
    assert found.mixed is not None
    assert found.loss.isfinite()
