"""I-JEPA: its loss written out, its masks, its mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmix.backbones import sine_cosine_positions
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.methods import IJEPA, Progress
from unmix.methods.multiblock import MultiBlock, block_sides
from unmix.mixtures import CutMix, MixUp
from unmix.step import Mixture, objective
from unmix.stepper import Stepper

SMALL = {"predictor_dim": 16, "predictor_depth": 2, "predictor_heads": 2, "min_keep": 2}


def ijepa(seed: int = 0, class_token: bool = False, **options: Any) -> IJEPA:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=24, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0,
        dynamic_img_size=True, class_token=class_token, global_pool="avg", fc_norm=False,
    )  # fmt: skip
    return IJEPA(vit, **SMALL | options)


def images(seed: int = 0, n: int = 4, size: int = 24) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def loss_of(method: IJEPA, x: Tensor, mixture: Mixture | None = None) -> Tensor:
    index = torch.arange(len(x))
    return objective(method, [x], index, torch.Generator().manual_seed(0), mixture).loss


def perturbed(method: IJEPA) -> IJEPA:
    """The teacher differs from the student."""
    with torch.no_grad():
        for p in method.f_t.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return method


def published(method: IJEPA, x: Tensor) -> tuple[Tensor, Any, Any]:
    """The released loss: gathered tokens, one predictor's sequence a block, smooth L1."""
    vit, g = deepcopy(method.f.vit), deepcopy(method.g)
    vit.zero_grad()
    g.zero_grad()
    context, blocks = method.masks_of(len(x), (6, 6))
    teacher: Any = method.f_t.vit
    with torch.no_grad():
        h = teacher.norm(teacher.blocks(teacher.patch_embed(x).flatten(1, 2) + teacher.pos_embed))
        variance, mean = torch.var_mean(h, dim=-1, correction=0, keepdim=True)
        h = (h - mean) / (variance + 1e-5).sqrt()
        each = range(len(x))
        h = torch.cat([torch.stack([h[i, blocks[i, k]] for i in each]) for k in range(4)])
    z = vit.patch_embed(x).flatten(1, 2) + vit.pos_embed
    z = vit.norm(vit.blocks(torch.stack([z[i, context[i]] for i in each])))
    positions = sine_cosine_positions(16, 6, 6)
    z = g.embed(z) + positions[context]
    asked = torch.cat([g.mask_token + positions[blocks[:, k]] for k in range(4)])
    z = torch.cat([z.repeat(4, 1, 1), asked], dim=1)
    z = g.out(g.norm(g.blocks(z)))[:, context.shape[1] :]
    difference = (z - h).abs()
    loss = torch.where(difference < 1, difference.square() / 2, difference - 0.5).mean()
    return loss, vit, g


def test_loss_and_gradients_are_those_of_the_formula() -> None:
    method, x = perturbed(ijepa()), images()
    theirs, vit, g = published(method, x)
    theirs.backward()
    ours = loss_of(method, x)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, other in ((method.f.vit, vit), (method.g, g)):
        for (name, p), q in zip(mine.named_parameters(), other.parameters(), strict=True):
            assert p.grad is not None, name
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in method.f_t.parameters())


def test_no_context_has_a_patch_of_its_targets_nor_is_it_seen() -> None:
    method, x = ijepa().eval(), images()
    context, targets = method.masks_of(4, (6, 6))
    seen = torch.zeros(4, 36, dtype=torch.bool).scatter(1, context, True)
    hidden = torch.zeros(4, 36, dtype=torch.bool).scatter(1, targets.flatten(1), True)
    assert not (seen & hidden).any()
    before = method.query(x)
    pixels = seen.view(4, 1, 6, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    after = method.query(torch.where(pixels, x, images(9)))
    torch.testing.assert_close(after.predicted, before.predicted)
    other = method.query(torch.where(pixels, images(9), x))
    assert not torch.allclose(other.predicted, before.predicted)


@pytest.mark.parametrize("grid", [(8, 8), (14, 14), (6, 10)])
def test_blocks_are_rectangles_of_the_published_sizes_anywhere(grid: tuple[int, int]) -> None:
    masks = MultiBlock(4, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), 10)
    masks.check(grid, "IJEPA")
    corners, areas = set(), set()
    for seed in range(20):
        sizes, places = (torch.Generator().manual_seed(seed + k) for k in (0, 100))
        context, targets = masks.draw(16, grid, sizes, places)
        assert context.shape[1] > 10
        assert len(context[0].unique()) == context.shape[1]
        row, column = targets // grid[1], targets % grid[1]
        height = row.amax(2) - row.amin(2) + 1
        width = column.amax(2) - column.amin(2) + 1
        assert (height * width == targets.shape[2]).all()
        assert len(height.unique()) == len(width.unique()) == 1
        areas.add(targets.shape[2])
        corners |= {(bool(row.min() == 0), bool(row.max() == grid[0] - 1))}
    count = grid[0] * grid[1]
    assert 0.1 * count < min(areas) <= max(areas) < 0.27 * count
    assert (True, True) in corners


def test_sides_are_those_of_the_released_code() -> None:
    """ViT-H/14: int(256 x .15) = 38 patches of ratio .75 are round(5.34) x round(7.12)."""
    assert block_sides(0.15, 0.75, (16, 16)) == (5, 7)
    assert block_sides(0.2, 1.5, (16, 16)) == (9, 6)
    assert block_sides(1.0, 1.0, (16, 16)) == (15, 15)


@pytest.mark.parametrize(
    ("side", "released"),
    [
        (16, {(5, 7), (6, 6), (6, 7), (7, 6), (8, 6), (9, 6)}),
        (14, {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}),
    ],
)
def test_targets_have_the_shapes_that_the_released_code_draws(
    side: int, released: set[tuple[int, int]]
) -> None:
    """All that 3,000 draws of its `_sample_block_size` gave: large targets are tall ones."""
    masks, found = MultiBlock(4, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), 10), set()
    places = torch.Generator().manual_seed(0)
    for seed in range(300):
        target = masks.draw(1, (side, side), torch.Generator().manual_seed(seed), places)[1][0, 0]
        height = len((target // side).unique())
        found.add((height, len(target) // height))
    assert found == released


def test_a_context_that_is_too_small_is_drawn_again_and_never_shows_a_target() -> None:
    masks = MultiBlock(4, (0.15, 0.2), (0.75, 1.5), (0.85, 0.85), 28)
    masks.check((8, 8), "IJEPA")
    sizes, places = (torch.Generator().manual_seed(k) for k in (0, 1))
    context, targets = masks.draw(32, (8, 8), sizes, places)
    assert context.shape[1] > 28
    for i in range(32):
        assert not set(context[i].tolist()) & set(targets[i].flatten().tolist())
    assert (targets.sort(dim=2).values == targets[:, :1].sort(dim=2).values).all(2).all(1).any()


def test_masks_are_new_at_each_step_and_part_and_the_same_within_one() -> None:
    method, found = ijepa(), []
    for step, part in ((0, 0), (1, 0), (1, 1)):
        method.begin_step(Progress(step, 9, 3, seed=5))
        if part:
            method.begin_part(part)
        targets = method.masks_of(6, (6, 6)).targets
        assert torch.equal(targets, method.masks_of(6, (6, 6)).targets)
        assert len(targets.flatten(1).unique(dim=0)) > 1
        found.append(targets)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_the_momentum_rises_linearly_to_1() -> None:
    method: Any = perturbed(ijepa(encoder_momentum=0.6))
    before, own = (next(f.parameters()).detach().clone() for f in (method.f_t, method.f))
    method.begin_step(Progress(5, 10, 5))
    expected = 0.8 * before + 0.2 * own
    torch.testing.assert_close(next(method.f_t.parameters()), expected)


def test_the_target_of_a_patch_is_the_token_of_its_owner() -> None:
    method, x = perturbed(ijepa()), images()
    draw = CutMix(per="sample", align=4).draw(x.shape, torch.Generator().manual_seed(3))
    assert draw.is_mixed.any()
    query = method.query(draw.apply(x))
    clean = method.targets([x], {}, torch.arange(4), torch.Generator())[0]
    owner = draw.apply(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 24, 24))
    owner = owner[:, 0, ::4, ::4].long()
    own = torch.stack(
        [clean[owner[i], torch.arange(6)[:, None], torch.arange(6)][range(6)] for i in range(4)]
    )
    expected = method.compare(query, own).mean()
    found = objective(
        method, [x], torch.arange(4), torch.Generator(), Mixture(draw, RULES["unmix"])
    )
    torch.testing.assert_close(found.mixed, expected.detach())
    torch.testing.assert_close(found.loss, loss_of(method, x) + expected)


def test_a_global_mixture_takes_both_terms_token_by_token() -> None:
    method, x = perturbed(ijepa()), images()
    draw = MixUp(per="sample").draw(x.shape, torch.Generator().manual_seed(3))
    query = method.query(draw.apply(x))
    target = method.targets([x], {}, torch.arange(4), torch.Generator())[0]
    w = draw.weight
    expected = w * method.compare(query, target)
    expected = expected + (1 - w) * method.compare(query, target[draw.partner])
    found = objective(
        method, [x], torch.arange(4), torch.Generator(), Mixture(draw, RULES["replace"])
    )
    torch.testing.assert_close(found.loss, expected.mean())


def test_the_encoder_is_as_published_and_its_features_the_average() -> None:
    name = "timm:vit_tiny_patch16_224"
    vit: Any = IJEPA.build_backbone(name, size=16, patch=4, depth=1).eval()
    assert vit.cls_token is None
    assert not vit.pos_embed.requires_grad
    torch.testing.assert_close(vit.pos_embed[0], sine_cosine_positions(192, 4, 4))
    x = images(size=16)
    torch.testing.assert_close(vit(x), vit.forward_features(x).mean(dim=1))
    vit = IJEPA.build_backbone(name, size=16, patch=4, depth=1, class_token=True)
    torch.testing.assert_close(vit(x), vit.forward_features(x)[:, 1:].mean(dim=1))
    with pytest.raises(UserError, match="'class' would be features that I-JEPA does not train"):
        IJEPA.build_backbone(name, size=16, patch=4, pooling="class")


def test_a_class_token_is_seen_with_every_context() -> None:
    method = ijepa(class_token=True)
    loss_of(method, images()).backward()
    assert method.f.vit.cls_token.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_keep": 20}, "may have 16 beside a target of 0.2, and needs more than `min_keep=20`"),
        ({"target_scale_max": 0.9, "target_scale_min": 0.8}, "may have 0 beside a target of 0.9"),
        ({"target_scale_min": 0.3}, "target_scale_min must be"),
        ({"context_scale_max": 1.2}, "context_scale_max must be"),
        ({"target_ratio_min": 2.0}, "target_ratio_min must be"),
        ({"target_blocks": 0}, "target_blocks"),
        ({"predictor_dim": 18, "predictor_heads": 3}, "predictor_dim: 18 must be a multiple of 4"),
        ({"encoder_momentum": 1.1}, "encoder_momentum"),
    ],
)
def test_masks_and_sizes_that_do_not_fit_are_refused_in_a_line(options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        ijepa(**options)
    assert "\n" not in str(error.value)


def test_a_network_without_patches_is_refused_in_a_line() -> None:
    for name in ("resnet18", "timm:resnet18"):
        with pytest.raises(UserError, match=r"I-JEPA is for the patches|has no class token"):
            IJEPA.build_backbone(name, size=32)
    with pytest.raises(UserError, match=r"I-JEPA is for the patches.*vit_tiny_patch16_224"):
        IJEPA(nn.Flatten())


def tiled(n: int, generator: torch.Generator) -> Tensor:
    """Each image repeats one of four patches: what is hidden follows from what is seen."""
    patterns = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    chosen = patterns[torch.randint(4, (n,), generator=generator)].repeat(1, 1, 6, 6)
    return chosen + 0.3 * torch.randn(n, 3, 24, 24, generator=generator)


def learned(guarded: bool = True, **options: Any) -> IJEPA:
    """After 100 steps beside mixtures; not guarded: the targets are trained, too."""
    method: Any = ijepa(predictor_depth=1, **options)
    if not guarded:

        def targets(views: Sequence[Tensor], *rest: Any) -> dict[int, Tensor]:
            tokens = method.f(views[0]).patches
            normalized = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
            return {0: normalized.unflatten(1, method.f.grid(views[0]))}

        method.targets = targets
    step = Stepper(method, total_steps=100, steps_per_epoch=50, mixture=CutMix())
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        loss = step([tiled(16, generator)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return method


@torch.no_grad()
def targets_of(method: IJEPA, x: Tensor) -> Tensor:
    return method.targets([x], {}, torch.arange(len(x)), torch.Generator())[0]


def test_it_learns_to_predict_blocks_of_images_that_it_has_not_seen() -> None:
    """Better than the targets' mean at each place, and than other images' targets."""
    method, x = learned(encoder_momentum=0.99), tiled(64, torch.Generator().manual_seed(1))
    target = targets_of(method, x)
    with torch.no_grad():
        query = method.query(x)
    mean = target.mean(dim=0).flatten(0, 1)[query.places]
    found = method.compare(query, target).mean()
    assert target.std(dim=0).mean() > 0.3
    assert found < 0.6 * method.compare(query._replace(predicted=mean), target).mean()
    assert found < 0.6 * method.compare(query, target.roll(1, 0)).mean()


def test_without_a_teacher_that_takes_no_gradient_all_images_get_the_same() -> None:
    """The standard deviation of a target over images."""
    x = tiled(64, torch.Generator().manual_seed(1))
    guarded, trained = (targets_of(learned(g, encoder_momentum=0.99), x) for g in (True, False))
    assert guarded.std(dim=0).mean() > 0.3
    assert trained.std(dim=0).mean() < 0.1
