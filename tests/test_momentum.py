"""The momentum copy is a full copy, and follows parameters but no buffers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from unmix.errors import UserError
from unmix.momentum import cosine_ema_momentum, ema_update, momentum_copy


@pytest.fixture
def source() -> nn.Module:
    """A module with a head and batch norm, whose statistics are not those of a fresh one."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    module(torch.randn(6, 3, 4, 4, generator=generator))
    return module


def moved(module: nn.Module) -> nn.Module:
    """A copy of a module with other parameters and buffers."""
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(7)
    return other


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_the_copy_has_every_parameter_and_buffer_and_shares_none(source: nn.Module) -> None:
    twin = momentum_copy(source)
    assert twin.state_dict().keys() == source.state_dict().keys()
    for name, tensor in source.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor)
        assert twin.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_the_copy_takes_no_gradient_and_the_original_still_does(source: nn.Module) -> None:
    twin = momentum_copy(source)
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in source.parameters())


@pytest.mark.parametrize("m", [0.0, 0.3, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_parameters_move_by_the_formula_and_buffers_stay(source: nn.Module, m: float) -> None:
    """k <- m k + (1 - m) q, computed in double precision beside it (He et al. 2020, Eq. 2)."""
    twin = momentum_copy(moved(source))
    k, q = state(twin), state(source)
    ema_update(twin, source, m)
    parameters = dict(twin.named_parameters())
    for name, tensor in twin.state_dict().items():
        if name in parameters:
            expected = m * k[name].double() + (1 - m) * q[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)
        else:
            assert torch.equal(tensor, k[name]), name
    assert all(torch.equal(tensor, q[name]) for name, tensor in source.state_dict().items())


def test_following_for_many_steps_keeps_the_original_less_and_less(source: nn.Module) -> None:
    """After s steps the share m ** s of the start is left."""
    twin = momentum_copy(moved(source))
    start, target = twin[0].weight.clone(), source[0].weight.detach()  # type: ignore[index]
    for _ in range(20):
        ema_update(twin, source, 0.9)
    expected = target + 0.9**20 * (start - target)
    torch.testing.assert_close(twin[0].weight.detach(), expected, rtol=0, atol=1e-5)  # type: ignore[index]


def test_following_leaves_no_graph_and_no_gradient(source: nn.Module) -> None:
    twin = momentum_copy(source)
    ema_update(twin, source, 0.5)
    assert all(p.grad_fn is None and not p.requires_grad for p in twin.parameters())


@pytest.mark.parametrize("m", [-0.1, 1.5, float("nan")])
def test_a_momentum_outside_0_to_1_is_told(source: nn.Module, m: float) -> None:
    with pytest.raises(UserError, match=rf"^momentum must be at least 0 and at most 1, got {m:g}$"):
        ema_update(momentum_copy(source), source, m)


@pytest.mark.parametrize(("done", "m"), [(0.0, 0.996), (1 / 3, 0.997), (0.5, 0.998), (1.0, 1.0)])
def test_the_momentum_rises_to_one_by_half_a_cosine(done: float, m: float) -> None:
    """BYOL, Sec. 3.3: tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2; cos 60 degrees is 1/2."""
    assert cosine_ema_momentum(0.996, done) == pytest.approx(m, abs=1e-12)
