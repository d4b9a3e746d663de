"""SimSiam: its loss, the stop-gradient, its heads, and the rate of the predictor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unmix import backbones
from unmix.methods import SimSiam
from unmix.methods.simsiam import SimSiamOutput
from unmix.step import objective


def simsiam(**options: Any) -> SimSiam:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    sizes = {"dim": 16, "hidden": 12, "predictor_hidden": 4}
    return SimSiam(backbone, **sizes | options)


def test_the_loss_is_half_the_negative_cosines() -> None:
    """Eq. 4: D(p1, stop z2) / 2 + D(p2, stop z1) / 2, written out with PyTorch's own cosine."""
    method = simsiam().eval()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    z = [method.g(method.f(view)) for view in views]
    p = [method.h(x) for x in z]
    expected = sum(-torch.cosine_similarity(p[a], z[1 - a]).mean().item() / 2 for a in (0, 1))
    loss = objective(method, views, torch.arange(6), torch.Generator()).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_no_gradient_goes_through_a_target() -> None:
    """The first direction alone: the second view's pixels get none."""
    method = simsiam().eval()
    views = [torch.randn(6, 3, 8, 8).requires_grad_() for _ in range(2)]
    queries = method.queries(views)
    targets = method.targets(views, queries, torch.arange(6), torch.Generator())
    assert not targets[1].requires_grad
    method.compare(queries[0], targets[1]).sum().backward()
    assert views[0].grad is not None
    assert views[0].grad.abs().sum() > 0
    assert views[1].grad is None


@pytest.mark.parametrize("layers", [2, 3])
def test_heads_have_the_papers_layers(layers: int) -> None:
    """Batch norm after every layer of the projector, the last without scale; not at p."""
    method = simsiam(layers=layers)
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(x) for x in method.g] == hidden * (layers - 1) + [nn.Linear, nn.BatchNorm1d]
    assert method.g[-1].weight is None
    assert [type(x) for x in method.h] == [*hidden, nn.Linear]


def test_the_predictors_rate_stays_if_asked() -> None:
    method = simsiam()
    assert list(method.constant_lr_modules()) == [method.h]
    assert list(simsiam(fix_predictor_rate=False).constant_lr_modules()) == []


def test_a_target_is_never_compared_with_its_own_prediction() -> None:
    """Features that are all the same cost -1, the least there is."""
    same = torch.ones(5, 16)
    loss = simsiam().compare(SimSiamOutput(same, -same), same)
    torch.testing.assert_close(loss, -torch.ones(5))
