"""A loss by position is shared position by position, as the pixels that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unmix.credit import RULES, of_partner, shared_position_loss
from unmix.errors import UserError
from unmix.methods import Method, Pair
from unmix.mixtures import (
    MIXTURES,
    DirichletMixture,
    FMix,
    GridMix,
    ManifoldMixture,
    PairDraw,
    RegionMixture,
    ResizeMix,
    ScaleMix,
    UnMix,
)
from unmix.mixtures.crops import CropDraw
from unmix.mixtures.own_draws import OneOwner
from unmix.step import Mixture, objective
from unmix.together import Names, check_together

NEEDED: dict[str, dict[str, Any]] = {
    "gridmix": {"cells": 2},
    "mixmask": {"cells": 3},
    "patchmix": {"patch_size": 2},
    "manifold": {"layer": "layer1"},
}
sides = st.integers(2, 5).map(lambda half: 2 * half)
counts = st.integers(1, 6)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def operator_of(name: str, per: str) -> Any:
    choice = MIXTURES[name]
    return choice.kind(**{**choice.defaults, **NEEDED.get(name, {}), **choice.fixed, "per": per})


def counted(draw: Any, n: int, size: tuple[int, int], rows: int, columns: int) -> Tensor:
    """The content of each cell by image, (M, n, rows, columns), counted in one-hot images.

    A cell may end within a pixel: each pixel is as many as the grid has cells.
    """
    one_hot = torch.eye(n)[:, :, None, None].expand(n, n, *size).contiguous()
    crops = draw.order.shape[1] if isinstance(draw, CropDraw) else int(isinstance(draw, OneOwner))
    mixed = draw.apply(one_hot, [one_hot] * crops)
    fine = mixed.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
    return torch.nn.functional.avg_pool2d(fine, size)


@pytest.mark.parametrize("name", MIXTURES)
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["batch", "sample"]), st.integers(2, 6), sides, sides, counts, counts,
    st.integers(0, 2**31),
)  # fmt: skip
def test_shares_of_a_cell_are_those_of_its_pixels(name, per, n, height, width, rows, columns, seed):
    images = torch.rand(n, 3, height, width, generator=seeded(seed + 1))
    attention = torch.rand(n, 2, 3, generator=seeded(seed + 2))
    draw = operator_of(name, per).draw_for(images, seeded(seed), None, attention)
    shares = draw.shares_at(rows, columns)
    assert shares.shape == (*draw.owners.shape, rows, columns)
    assert ((shares >= 0) & (shares <= 1)).all()
    by_owner = torch.zeros(len(draw.owners), n, rows, columns)
    owners = draw.owners[:, :, None, None].expand_as(shares)
    by_owner.scatter_add_(1, owners, shares.float())
    found = counted(draw, n, (height, width), rows, columns)
    torch.testing.assert_close(by_owner, found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shares.mean(dim=(2, 3)).float(), draw.shares.float())
    if isinstance(draw, OneOwner):
        assert (shares[:, 0] == 1).all()


@pytest.mark.parametrize("patch", [2, 3, 4])
def test_a_box_of_whole_cells_has_one_owner_in_each(patch):
    """Exactly, so no position has a trace of the other's loss."""
    grid, n = 6, 5
    first = torch.randint(0, grid, (n, 2), generator=seeded(patch))
    last = first + 1 + torch.randint(0, grid, (n, 2), generator=seeded(patch + 1))
    box = patch * torch.cat([first, last.clamp(max=grid)], dim=1)
    draw = PairDraw(torch.arange(n).flip(0), box, torch.zeros(n), (grid * patch, grid * patch))
    shares = draw.shares_at(grid, grid)
    for i, (top, left, bottom, right) in enumerate((box // patch).tolist()):
        expected = torch.ones(grid, grid)
        expected[top:bottom, left:right] = 0
        assert torch.equal(shares[i, 0], expected)
        assert torch.equal(shares[i, 1], 1 - expected)


def test_a_global_mixture_has_one_weight_everywhere():
    draw = operator_of("global", "sample").draw((4, 3, 8, 8), seeded(0))
    shares = draw.shares_at(2, 4)
    assert torch.equal(shares, draw.shares[:, :, None, None].expand(-1, -1, 2, 4))


def by_tokens(query: Tensor, target: Tensor) -> Tensor:
    """A loss that is not linear, and 0 at the first position: (N, 2, 3) of (N, 2, 3, D)."""
    loss = torch.logsumexp(query * target, dim=-1)
    return loss.index_fill(2, torch.tensor(0), 0.0)


@pytest.mark.parametrize("name", ["coin", "region", "fmix", "dirichlet", "patchmix", "scalemix"])
def test_the_loss_of_mixtures_is_written_out_token_by_token(name):
    n, height, width = 5, 4, 6
    target = torch.randn(n, 2, 3, 7, generator=seeded(1))
    draw = operator_of(name, "sample").draw((n, 3, height, width), seeded(3))
    query = torch.randn(n, 2, 3, 7, generator=seeded(2), requires_grad=True)
    shares = draw.shares_at(2, 3)
    expected = torch.zeros(())
    for i in range(n):
        for row in range(2):
            for column in range(1, 3):
                for k, owner in enumerate(draw.owners[i].tolist()):
                    at = (query[i, row, column] * target[owner, row, column]).logsumexp(0)
                    expected = expected + shares[i, k, row, column] * at / n
    found = shared_position_loss(by_tokens, query, target, draw)
    torch.testing.assert_close(found, expected)
    (wanted,) = torch.autograd.grad(expected, query)
    torch.testing.assert_close(torch.autograd.grad(found, query)[0], wanted)


class Patches(Method):
    """Cells of the image are regressed, place by place, and the pooled features by sample."""

    views = 2
    pairs = (Pair(0, 1),)
    position_pairs = (Pair(0, 0, 0.5), Pair(1, 1, 0.5))

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Conv2d(3, 4, 4, 4)

    def query(self, view: Tensor, number: int = 0) -> Any:
        z = self.f(view)
        return {"cls": z.mean(dim=(2, 3)), "tokens": z}

    def targets(
        self, views: Sequence[Tensor], queries: Mapping[int, Any], index: Tensor, generator: Any
    ) -> dict[int, Any]:
        with torch.no_grad():
            return {v: self.query(view) for v, view in enumerate(views)}

    def compare(self, query: Any, target: Any) -> Tensor:
        return (query["cls"] - 2 * target["cls"]).square().sum(dim=1)

    def compare_positions(self, query: Any, target: Any) -> Tensor:
        return (query["tokens"] - 3 * target["tokens"]).square().sum(dim=1)

    def projections(self, images: Tensor) -> Tensor:
        return self.query(images)["cls"]

    @property
    def backbone(self) -> nn.Module:
        return self.f


def setting(name: str = "region") -> tuple[Patches, list[Tensor], Any, dict[int, Any]]:
    torch.manual_seed(0)
    method, views = Patches(), [torch.randn(4, 3, 8, 8, generator=seeded(v)) for v in range(2)]
    draw = operator_of(name, "sample").draw((4, 3, 8, 8), seeded(5))
    return method, views, draw, method.targets(views, {}, torch.arange(4), None)


def step(method: Method, views: list[Tensor], draw: Any, rule: str) -> Any:
    return objective(method, views, torch.arange(4), seeded(9), Mixture(draw, RULES[rule]))


def test_a_method_may_have_losses_by_sample_and_by_position():
    method, views, draw, targets = setting()
    q = [method.query(view) for view in views]
    tokens = [method.compare_positions(q[v], targets[v]).sum(dim=(1, 2)).mean() for v in range(2)]
    clean = method.compare(q[0], targets[1]).mean() + sum(tokens) / 2
    found = objective(method, views, torch.arange(4), seeded(9))
    torch.testing.assert_close(found.loss, clean)
    mixed = method.query(draw.apply(views[0]))
    w, at = draw.weight, draw.shares_at(2, 2)[:, 0]
    other = of_partner(targets, draw.partner)
    by_sample = w * method.compare(mixed, targets[1]) + (1 - w) * method.compare(mixed, other[1])
    # Only the first view is mixed, and its places are not those of the second.
    by_place = at * method.compare_positions(mixed, targets[0])
    by_place = by_place + (1 - at) * method.compare_positions(mixed, other[0])
    expected = by_sample.mean() + by_place.sum(dim=(1, 2)).mean()
    for rule in ("unmix", "replace", "imix"):
        made = step(method, views, draw, rule)
        torch.testing.assert_close(made.mixed, expected.detach())
        assert (made.clean is None) == (rule != "unmix")
    torch.testing.assert_close(step(method, views, draw, "unmix").loss, clean + expected)


def test_image_space_leaves_both_losses_as_they_are():
    method, views, draw, targets = setting()
    mixed = method.query(draw.apply(views[0]))
    expected = method.compare(mixed, targets[1]).mean()
    expected = expected + method.compare_positions(mixed, targets[0]).sum(dim=(1, 2)).mean() / 2
    second = method.compare_positions(method.query(views[1]), targets[1])
    expected = expected + second.sum(dim=(1, 2)).mean() / 2
    torch.testing.assert_close(step(method, views, draw, "image_space").loss, expected)


def test_a_rule_for_samples_is_refused_for_a_loss_by_position():
    for name, rule in RULES.items():
        reason = rule.refusal(Patches)
        assert reason == rule.refusal(Patches())
        if name in ("unmix", "replace", "imix", "image_space"):
            assert reason is None
        elif name == "esvit":  # it shares a loss by position too, of each view that is a query
            assert "first view alone" in str(reason)
        else:
            assert reason is not None
            assert "position" in reason
    contrastive = type("Contrastive", (Patches,), {"contrastive": True, "soft_labels": True})
    assert "position" in str(RULES["imix"].refusal(contrastive))
    assert RULES["unmix"].refusal(contrastive) is None


@pytest.mark.parametrize("name", ["coin", "region", "gridmix", "fmix", "patchmix"])
@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["batch", "sample"]), st.integers(1, 3), st.integers(2, 5), st.integers(2, 5),
    st.integers(0, 2**31),
)  # fmt: skip
def test_aligned_boxes_and_masks_leave_each_cell_one_owner(name, per, side, rows, columns, seed):
    """But in a global mixture, which a coin may choose."""
    operator = operator_of(name, per)
    operator = replace(operator, patch_size=side) if name == "patchmix" else operator.aligned(side)
    assert operator.cell == side
    assert operator.aligned(side) == operator
    shape = (5, 3, rows * side, columns * side)
    draw = operator.draw(shape, seeded(seed))
    shares = draw.shares_at(rows, columns)
    is_global = torch.zeros(5, dtype=torch.bool)
    if name == "coin":
        is_global = draw.ratio > 0
    assert ((shares == 0) | (shares == 1))[~is_global].all()
    if is_global.all():
        plain = operator_of(name, per).draw(shape, seeded(seed))
        assert torch.equal(draw.apply(pixels(shape)), plain.apply(pixels(shape)))


def pixels(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=seeded(3))


def test_rounded_boxes_cover_as_much_on_average():
    """A box may vanish and another one grow: the share that is pasted has no bias to speak of."""
    shape, seed = (2000, 3, 32, 32), 4
    share = [op.draw(shape, seeded(seed)).weight.mean() for op in (
        RegionMixture(), RegionMixture(align=4), RegionMixture(align=8))]  # fmt: skip
    torch.testing.assert_close(share[1], share[0], atol=0.01, rtol=0)
    torch.testing.assert_close(share[2], share[0], atol=0.02, rtol=0)


class ByPatch(Patches):
    @property
    def cell(self) -> int:
        return 4


def checked(operator: Any, method: Method | None = None) -> Any:
    method = method or ByPatch()
    return check_together(operator, RULES["unmix"], method, Names.of(method, "unmix", operator))


def test_boxes_are_aligned_with_the_patches_of_the_loss():
    assert checked(UnMix()) == UnMix(align=4)
    assert checked(FMix()).align == 4
    assert checked(GridMix(2)).align == 4
    assert checked(UnMix(align=8)) == UnMix(align=8)
    assert checked(UnMix(1.0)) == UnMix(1.0)
    assert checked(DirichletMixture()) == DirichletMixture()
    assert checked(UnMix(), Patches()) == UnMix()


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (UnMix(align=6), "cells of 6 pixels would cut the patches of 4"),
        (ResizeMix(), "does not leave an image's pixels in their place; use coin"),
        (ScaleMix(), "does not leave an image's pixels"),
        (ManifoldMixture("f"), "does not leave an image's pixels"),
        (UnMix(pairing="second_view"), "another crop shows other things in the same place"),
    ],
)
def test_mixtures_that_do_not_go_with_a_loss_by_place_are_refused_in_a_line(operator, words):
    with pytest.raises(UserError, match=words) as error:
        checked(operator)
    assert "\n" not in str(error.value)


def test_matched_positions_need_no_pixels_in_place():
    """As DenseCL's, whose positions are matched by what is there."""

    class Matched(ByPatch):
        position_pairs = (Pair(0, 1),)

    assert checked(ResizeMix(), Matched()) == ResizeMix()


def test_cells_that_do_not_fit_are_refused_in_a_line():
    with pytest.raises(UserError, match="cells of 6 pixels do not fill images of 8 x 8"):
        RegionMixture(align=6).draw((2, 3, 8, 8))
    with pytest.raises(UserError, match="at least as many patches of 4 pixels, not 2 x 2"):
        GridMix(4, align=4).draw((2, 3, 8, 8))
    with pytest.raises(UserError, match="a global mixture has none"):
        UnMix(1.0, align=4)
