"""NNBYOL: its step written out as solo-learn has it, and BYOL's where the queue holds the views."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmix import backbones
from unmix.errors import UserError
from unmix.methods import BYOL, NNBYOL
from unmix.mixtures import UnMix
from unmix.step import Mixture, objective


def nnbyol(**options: Any) -> NNBYOL:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    method = NNBYOL(backbone, **{"dim": 5, "hidden": 16, "queue_size": 12} | options).eval()
    for p in (*method.f_k.parameters(), *method.g_k.parameters()):
        p.data += 0.1 * torch.randn(p.shape)
    return method


def images(n: int = 6) -> list[Tensor]:
    return [torch.randn(n, 3, 8, 8) for _ in range(2)]


def written_out(method: NNBYOL, views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of p with neighbors of the other view's momentum z, and what the queue takes."""
    neighbors, keys = [], []
    for view in views:
        with torch.no_grad():
            z = F.normalize(method.g_k(method.f_k(view)), dim=-1)
        keys.append(z)
        distances = torch.cdist(z, method.Q.keys)
        neighbors.append(method.Q.keys[distances.argmin(dim=1)])
    p = [method.q(method.g(method.f(view))) for view in views]
    one = F.cosine_similarity(p[0], neighbors[1], dim=-1).mean()
    other = F.cosine_similarity(p[1], neighbors[0], dim=-1).mean()
    return (2 - 2 * one) + (2 - 2 * other), keys[0]


def test_loss_gradients_and_queue_are_those_of_the_step_written_out() -> None:
    method, views = nnbyol(), images()
    reference = copy.deepcopy(method)
    expected, keys = written_out(reference, views)
    expected.backward()
    found = objective(method, views, torch.arange(6), torch.Generator())
    found.loss.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(method.named_parameters(), reference.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
        else:
            assert ours.grad is None
    before = method.Q.keys.clone()
    assert torch.equal(before, reference.Q.keys)
    found.update_memory()
    torch.testing.assert_close(method.Q.keys[:6], keys)
    assert torch.equal(method.Q.keys[6:], before[6:])
    assert method.state() == {"queue_fill": 0.5}


def test_with_its_own_targets_in_the_queue_it_is_byol() -> None:
    """Then each target's nearest neighbor is itself."""
    method, views = nnbyol(), images()
    byol = BYOL(copy.deepcopy(method.f), dim=5, hidden=16).eval()
    own = method.state_dict()
    byol.load_state_dict({key: own[key] for key in byol.state_dict()})
    generator = torch.Generator()
    for targets in method.targets(views, {}, torch.arange(6), generator).values():
        method.Q.push(targets.z)
    found = objective(method, views, torch.arange(6), generator).loss
    expected = objective(byol, views, torch.arange(6), generator).loss
    torch.testing.assert_close(found, expected)


def test_a_mixture_meets_the_neighbors_of_both_images() -> None:
    method, views = nnbyol(), images()
    draw = UnMix(1.0).draw((6, 3, 8, 8), torch.Generator().manual_seed(5))
    found = objective(method, views, torch.arange(6), torch.Generator(), Mixture(draw))
    q_mix = method.query(draw.apply(views[0]))
    w, p = draw.shares[:, 0], draw.owners[:, 1]
    expected = torch.zeros(())
    for target in method.targets(views, {}, torch.arange(6), torch.Generator()).values():
        own = 2 - 2 * F.cosine_similarity(q_mix, target.neighbor)
        other = 2 - 2 * F.cosine_similarity(q_mix, target.neighbor[p])
        expected = expected + (w * own + (1 - w) * other).mean()
    torch.testing.assert_close(found.mixed, expected.detach())


@pytest.mark.parametrize("count", [1, 3])
def test_the_nearest_keys_come_first(count: int) -> None:
    method = nnbyol()
    z = F.normalize(torch.randn(4, 5), dim=1)
    found = method.Q.nearest(z, count)
    expected = torch.stack(
        [method.Q.keys[(one - method.Q.keys).norm(dim=1).argsort()[:count]] for one in z]
    )
    assert torch.equal(found, expected)
    assert torch.equal(method.Q.nearest(z), expected[:, 0])


@pytest.mark.parametrize(("flag", "value"), [("queue_size", 0), ("dim", 0), ("hidden", -1)])
def test_values_out_of_range_are_told(flag: str, value: int) -> None:
    with pytest.raises(UserError) as caught:
        nnbyol(**{flag: value})
    assert caught.value.on_command_line().startswith(f"--{flag}: {value} is out of range")
