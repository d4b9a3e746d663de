"""ReSSL: its loss written out, its queue, its momentum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmix import backbones
from unmix.errors import UserError
from unmix.methods import Progress, ReSSL
from unmix.step import objective


def ressl(**options: Any) -> ReSSL:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    return ReSSL(backbone, **{"dim": 5, "hidden": 16, "queue_size": 12} | options)


def unit(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.floats(0.02, 1), st.floats(0.02, 1), st.integers(0, 2**31))
def test_loss_and_gradient_are_the_formula(n: int, student: float, teacher: float, seed: int):
    """H(p2, p1) = KL(p2 || p1) + H(p2), by PyTorch's divergence and distributions."""
    method = ressl(temperature=student, teacher_temperature=teacher)
    q, t = unit(n, seed).requires_grad_(), unit(n, seed + 1)
    p_1 = torch.distributions.Categorical(logits=q @ method.Q.keys.T / student)
    p_2 = torch.distributions.Categorical(logits=t @ method.Q.keys.T / teacher)
    expected = torch.distributions.kl_divergence(p_2, p_1) + p_2.entropy()
    found = method.compare(q, t)
    assert found.shape == (n,)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (ours,) = torch.autograd.grad(found.sum(), q)
    # The gradient of cross-entropy by the logits is p1 - p2.
    theirs = (p_1.probs - p_2.probs) @ method.Q.keys / student
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=1e-4)


def test_the_queue_takes_the_weak_views_targets_after_the_step() -> None:
    method = ressl().eval()
    views = [torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(v)) for v in (0, 1)]
    before = method.Q.keys.clone()
    result = objective(method, views, torch.arange(6), torch.Generator())
    assert torch.equal(method.Q.keys, before)
    result.update_memory()
    expected = F.normalize(method.g_k(method.f_k(views[1])), dim=1)
    torch.testing.assert_close(method.Q.keys[:6], expected)
    assert torch.equal(method.Q.keys[6:], before[6:])
    assert method.state() == {"queue_fill": 0.5}


@pytest.mark.parametrize(("constant", "at_the_end"), [(True, 0.5), (False, 1.0)])
def test_the_momentum_stays_or_rises(constant: bool, at_the_end: float) -> None:
    method = ressl(encoder_momentum=0.5, constant_momentum=constant)
    with torch.no_grad():
        for p in method.g.parameters():
            p.zero_()
    before = next(method.g_k.parameters()).clone()
    method.begin_step(Progress(10, 10, 10))
    torch.testing.assert_close(next(method.g_k.parameters()), at_the_end * before)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("temperature", 0.0), ("teacher_temperature", -1.0), ("queue_size", 0), ("dim", 0)],
)
def test_values_out_of_range_are_told(flag: str, value: float) -> None:
    with pytest.raises(UserError) as caught:
        ressl(**{flag: value})
    assert caught.value.on_command_line().startswith(f"--{flag}: {value:g} is out of range")
