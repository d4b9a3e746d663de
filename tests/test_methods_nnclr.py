"""NNCLR: its loss against the paper's pseudo-code written out, the neighbours, the queue."""

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
from unmix.methods import NNCLR
from unmix.methods.nnclr import NNCLROutput
from unmix.mixtures import DirichletMixture
from unmix.step import Mixture, objective


def nnclr(**options: Any) -> NNCLR:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    sizes = {"dim": 8, "hidden": 16, "predictor_hidden": 12, "queue_size": 20}
    return NNCLR(backbone, **sizes | options)


def test_the_loss_is_that_of_the_neighbours_of_both_views() -> None:
    """Eq. 3 in both directions, half each, with the queue of before the step."""
    method = nnclr(temperature=0.2).eval()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    queue = method.Q.keys.clone()
    z = [method.g(method.f(view)) for view in views]
    p = [F.normalize(method.h(x), dim=1) for x in z]
    expected = 0.0
    for a, b in ((0, 1), (1, 0)):
        for i in range(6):
            cosines = [torch.cosine_similarity(z[a][i], row, dim=0).item() for row in queue]
            neighbour = queue[cosines.index(max(cosines))]
            scores = [math.exp((neighbour @ p[b][k]).item() / 0.2) for k in range(6)]
            expected -= math.log(scores[i] / sum(scores)) / 6 / 2
    step = objective(method, views, torch.arange(6), torch.Generator())
    assert step.loss.item() == pytest.approx(expected, rel=1e-5)


def test_in_image_space_the_second_view_is_trained_too() -> None:
    """Its prediction is first asked for where the neighbours are looked up, without a gradient."""
    method = nnclr().eval()
    views = [torch.randn(6, 3, 8, 8).requires_grad_() for _ in range(2)]
    draw = DirichletMixture().draw(views[0].shape, torch.Generator().manual_seed(0))
    mixture = Mixture(draw, RULES["image_space"])
    objective(method, views, torch.arange(6), torch.Generator(), mixture).loss.backward()
    mixed = draw.apply(views[0].detach())
    alone = [mixed, views[1].detach().clone().requires_grad_()]
    p = [method.query(view, number) for number, view in enumerate(alone)]
    targets = [method.Q.nearest(method.query(view).z) for view in views]
    (method.compare(p[1], targets[0]).mean() / 2).backward()
    assert views[1].grad is not None
    torch.testing.assert_close(views[1].grad, alone[1].grad)


def test_the_queue_gets_the_first_views_z_after_the_backward_pass() -> None:
    method = nnclr().eval()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    before = method.Q.keys.clone()
    step = objective(method, views, torch.arange(6), torch.Generator())
    step.loss.backward()
    assert torch.equal(method.Q.keys, before)
    step.update_memory()
    torch.testing.assert_close(method.Q.keys[:6], F.normalize(method.projections(views[0]), dim=1))
    assert torch.equal(method.Q.keys[6:], before[6:])
    assert method.state() == {"queue_fill": 6 / 20}


def test_neighbours_are_rows_of_the_queue_without_a_gradient() -> None:
    method = nnclr().eval()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    targets = method.targets(views, method.queries(views), torch.arange(6), torch.Generator())
    for rows in targets.values():
        assert not rows.requires_grad
        assert all((row == method.Q.keys).all(dim=1).any() for row in rows)


def test_heads_have_the_papers_layers() -> None:
    """Three layers, each with batch norm; and a predictor of two with one batch norm."""
    method = nnclr()
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(x) for x in method.g] == [*hidden, *hidden, nn.Linear, nn.BatchNorm1d]
    assert [type(x) for x in method.h] == [*hidden, nn.Linear]


def test_chance_level_is_ln_of_the_batch() -> None:
    """Exactly so where all features are the same."""
    method = nnclr()
    assert method.chance_loss is None
    method.check_batch(6)
    same = torch.full((6, 8), 8**-0.5)
    assert method.chance_loss == pytest.approx(math.log(6))
    assert method.compare(NNCLROutput(same, same), same).mean().item() == pytest.approx(math.log(6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "--temperature: -1 is out of range; it must be greater than 0."),
        ({"queue_size": 0}, "--queue_size: 0 is out of range; it must be at least 1."),
    ],
)
def test_bad_numbers_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        nnclr(**options)
    assert caught.value.on_command_line() == message
