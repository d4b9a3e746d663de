"""PIRL: the jigsaw's tiles and their order, the loss written out, and what the bank follows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import Reading
from unmix import backbones
from unmix.errors import UserError
from unmix.methods import PIRL, Progress
from unmix.methods.pirl import tiles_of
from unmix.mixtures import UnMix
from unmix.step import Mixture, objective

N, SIZE, N_DATA = 6, 18, 20


@pytest.fixture(autouse=True)
def _the_global_generator_left_as_it_was() -> Iterator[None]:
    """Weights start from PyTorch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def build(**options: Any) -> PIRL:
    backbone = backbones.build("resnet10", width=0.125, size=SIZE)
    return PIRL(backbone, N_DATA, **{"dim": 16, "negatives": 12, **options})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views_of(seed: int = 0) -> list[Tensor]:
    return [torch.randn(N, 3, SIZE, SIZE, generator=seeded(seed + v)) for v in (0, 50)]


def step(method: PIRL, views: list[Tensor], mixture: Mixture | None = None) -> Any:
    return objective(method, views, torch.arange(N), seeded(), mixture)


@pytest.mark.parametrize(("height", "width", "grid"), [(18, 18, 3), (32, 32, 3), (10, 13, 2)])
def test_tiles_are_the_pictures_middle_row_by_row(height: int, width: int, grid: int) -> None:
    view = torch.randn(2, 3, height, width, generator=seeded())
    tiles = tiles_of(view, grid).reshape(2, grid, grid, 3, height // grid, width // grid)
    h, w = height // grid, width // grid
    top, left = (height % grid) // 2, (width % grid) // 2
    for r in range(grid):
        for c in range(grid):
            y, x = top + r * h, left + c * w
            assert torch.equal(tiles[:, r, c], view[:, :, y : y + h, x : x + w])


def test_the_loss_is_that_of_picture_and_jigsaw_with_the_pictures_row() -> None:
    """(1 - lambda) l(f(v_I), m_I) + lambda l(g(v_It), m_I), tiles put together in a loop."""
    method = build(jigsaw_weight=0.3)
    method.begin_step(Progress(4, 8, 2))
    reference = copy.deepcopy(method)
    views = views_of()
    result = step(method, views)
    result.loss.backward()

    candidates = reference.targets(views, {}, torch.arange(N), seeded())[0]
    rows = reference.contrast.bank.rows[candidates]
    picture = reference.f(views[0])
    side = SIZE // 3
    cut = [
        views[1][:, :, side * r : side * (r + 1), side * c : side * (c + 1)]
        for r in range(3)
        for c in range(3)
    ]
    stacked = torch.stack(cut, dim=1).flatten(0, 1)  # batch norm sees all tiles of the batch
    parts = reference.tile_head(reference.f.backbone(stacked)).reshape(N, 9, 16)
    orders = orders_of(reference, views[1])
    jigsaw = torch.stack(
        [reference.g(torch.cat([parts[i, t] for t in orders[i]])) for i in range(N)]
    )
    jigsaw = F.normalize(jigsaw, dim=1)
    expected = torch.zeros(())
    for share, v in ((0.7, picture), (0.3, jigsaw)):
        logits = torch.einsum("nd,nkd->nk", v, rows) / 0.07
        expected = expected + share * F.cross_entropy(logits, torch.zeros(N, dtype=torch.long))
    torch.testing.assert_close(result.loss, expected)
    expected.backward()
    for p, q in zip(method.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


class Position(nn.Module):
    """A stand-in for the second projection: says in which order the tiles' features come."""

    def forward(self, parts: Tensor) -> Tensor:
        self.order = parts.reshape(len(parts), 9, -1)[:, :, 0]
        return parts


def orders_of(method: PIRL, view: Tensor) -> list[list[int]]:
    """The order of tiles of each sample, by a stand-in head that numbers them."""
    spy = copy.deepcopy(method)
    position = Position()
    spy.g = position  # type: ignore[assignment]

    class Number(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return (torch.arange(len(features)) % 9)[:, None].float()

    spy.tile_head = Number()  # type: ignore[assignment]
    spy.query(view, 1)
    return position.order.long().tolist()


def test_every_sample_has_an_order_of_its_own_that_follows_from_the_step() -> None:
    method, view = build(), views_of()[1]
    orders = []
    for number in (0, 1, 0):
        method.begin_step(Progress(number, 8, 2))
        orders.append(orders_of(method, view))
        assert all(sorted(order) == list(range(9)) for order in orders[-1])
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert len({tuple(order) for order in orders[0]}) > 1


def test_the_bank_follows_the_picture_and_neither_the_jigsaw_nor_a_mixture() -> None:
    method, views = build().eval(), views_of()
    draw = UnMix().draw(views[0].shape, seeded(3))
    before = method.contrast.bank.rows.clone()
    result = step(method, views, Mixture(draw))
    result.loss.backward()
    assert torch.equal(method.contrast.bank.rows, before)
    result.update_memory()
    moved = F.normalize(0.5 * before[:N] + 0.5 * method.f(views[0]), dim=1)
    torch.testing.assert_close(method.contrast.bank.rows[:N], moved)
    assert torch.equal(method.contrast.bank.rows[N:], before[N:])


def test_mixtures_share_between_the_rows_of_both_pictures() -> None:
    """At weight w: w l(f(mix), m_I) + (1 - w) l(f(mix), m_J), with a share of 1 in all."""
    method, views = build().eval(), views_of()
    draw = UnMix().draw(views[0].shape, seeded(3))
    found = step(method, views, Mixture(draw)).mixed
    target = method.targets(views, {}, torch.arange(N), seeded())[0]
    q = method.f(draw.apply(views[0]))
    w = draw.shares[0, 0]
    expected = w * method.compare(q, target) + (1 - w) * method.compare(
        q, target[draw.owners[:, 1]]
    )
    torch.testing.assert_close(found, expected.mean())


def test_chance_loss_is_that_of_features_which_are_all_the_same() -> None:
    method = build()
    rows = method.contrast.bank.rows
    rows.copy_(rows[:1].expand_as(rows))
    target = method.targets([], {}, torch.arange(N), seeded())[0]
    loss = method.compare(rows[:N], target).mean().item()
    assert loss == pytest.approx(method.chance_loss, rel=1e-5) == math.log(13)
    assert build(contrast="nce").chance_loss is None


@pytest.mark.parametrize("contrast", ["softmax", "nce"])
def test_what_is_saved_and_loaded_goes_on_as_it_would_have(contrast: str) -> None:
    def run(method: PIRL, first: int) -> Tensor:
        optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
        for number in (first, first + 1):
            method.begin_step(Progress(number, 8, 4))
            result = step(method, views_of(number))
            optimizer.zero_grad()
            result.loss.backward()
            result.update_memory()
            optimizer.step()
        return result.loss.detach()

    method = build(contrast=contrast)
    run(method, 0)
    torch.manual_seed(9)
    other = build(contrast=contrast)
    other.load_state_dict(method.state_dict())
    assert torch.equal(run(method, 2), run(other, 2))
    for p, q in zip(method.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(p, q)


def test_no_value_is_read_within_a_step() -> None:
    """The host runs ahead of the device."""
    method = build()
    with Reading() as seen:
        method.begin_step(Progress(1, 8, 4))
        result = step(method, views_of())
        result.loss.backward()
        result.update_memory()
    assert seen.read == []


def test_bfloat16_gives_a_float32_loss_near_that_of_float32() -> None:
    method = build(temperature=0.5)
    plain = step(method, views_of()).loss
    with torch.autocast("cpu", torch.bfloat16):
        result = step(method, views_of())
    assert result.loss.dtype == torch.float32
    assert result.loss.item() == pytest.approx(plain.item(), rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jigsaw_weight": 1.5}, "--jigsaw_weight: 1.5 is out of range"),
        ({"grid": 0}, "--grid: 0 is out of range; it must be at least 1."),
        ({"negatives": 20}, "--negatives: 20 are more than the 19 other samples"),
        ({"contrast": "nse"}, "--contrast: 'nse' is unknown. Did you mean 'nce'?"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(**options)
    assert caught.value.on_command_line().startswith(message)


def test_a_grid_finer_than_the_view_and_a_transformer_are_told() -> None:
    with pytest.raises(UserError, match=r"^grid: 20 tiles do not fit into a view of 18 px"):
        step(build(grid=20), views_of())
    vit = nn.Module()
    vit.patch_embed, vit.blocks, vit.feature_dim = nn.Identity(), nn.Identity(), 4  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^backbone: the tiles of pirl's jigsaw"):
        PIRL(vit, N_DATA)  # type: ignore[arg-type]
