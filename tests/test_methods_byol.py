"""BYOL: its loss and the golden value, and the momentum of the target network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unmix import backbones
from unmix.errors import UserError
from unmix.methods import BYOL, Progress
from unmix.step import objective


def byol(**options: Any) -> BYOL:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    return BYOL(backbone, **{"dim": 8, "hidden": 16} | options)


def test_value_and_gradient_are_the_published_ones(golden):
    g = golden("byol_cosine")
    prediction = g["prediction"].requires_grad_()
    loss = byol().compare(prediction, g["target"]).mean()
    loss.backward()
    torch.testing.assert_close(loss, g["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prediction.grad, g["grad"], rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_squared_distance_of_unit_vectors() -> None:
    """Eq. 2, in both directions: the predictions of each view and the target network's z'."""
    method = byol().eval()
    views = [torch.randn(6, 3, 8, 8) for _ in range(2)]
    expected = 0.0
    for a, b in ((0, 1), (1, 0)):
        q, z = method.q(method.g(method.f(views[a]))), method.g_k(method.f_k(views[b]))
        distance = q / q.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)
        expected += distance.square().sum(dim=1).mean().item()
    loss = objective(method, views, torch.arange(6), torch.Generator()).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_momentum_rises_from_its_start_to_1() -> None:
    """At the start of the run tau of the target stays, in the middle it is half way, then all."""
    for progress, m in (
        (Progress(0, 8, 2), 0.9),
        (Progress(4, 8, 2), 0.95),
        (Progress(8, 8, 2), 1),
    ):
        method = byol(encoder_momentum=0.9)
        before = [p.clone() for p in (*method.f_k.parameters(), *method.g_k.parameters())]
        online = [*method.f.parameters(), *method.g.parameters()]
        with torch.no_grad():
            for p in online:
                p.add_(1)
        method.begin_step(progress)
        after = [*method.f_k.parameters(), *method.g_k.parameters()]
        for old, p, source in zip(before, after, online, strict=True):
            torch.testing.assert_close(p, m * old + (1 - m) * source, rtol=0, atol=1e-5)


def test_the_target_network_starts_as_a_copy_of_backbone_and_projector() -> None:
    method = byol()
    for ours, theirs in ((method.f, method.f_k), (method.g, method.g_k)):
        for name, x in ours.state_dict().items():
            assert torch.equal(x, theirs.state_dict()[name])
    assert [type(x) for x in method.q] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_a_momentum_out_of_range_is_told(momentum: float) -> None:
    with pytest.raises(UserError) as caught:
        byol(encoder_momentum=momentum)
    assert caught.value.on_command_line() == (
        f"--encoder_momentum: {momentum:g} is out of range; it must be at least 0 and at most 1."
    )
