"""Small tensors on their way to a GPU: what is pinned has its own memory for every value."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from unmix.credit.patchmix import Among
from unmix.credit.sdmp import Between
from unmix.transfer import _own_places, all_to_device, to_device


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(3.0).expand(4, 3), torch.arange(4.0)[:, None].expand(4, 3),
        torch.ones(1).expand(0, 1), torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.arange(12.0).view(3, 4).t(), torch.tensor(2.0), torch.rand(6)[::2],
    ],
)  # fmt: skip
def test_a_pinned_copy_can_be_written(tensor):
    """Pinning copies into memory of the same strides, which PyTorch refuses where they overlap."""
    own = _own_places(tensor)
    assert torch.equal(own, tensor)
    copied = torch.empty_strided(own.size(), own.stride()).copy_(own)
    assert torch.equal(copied, tensor)


def test_what_has_places_of_its_own_is_not_copied():
    tensor = torch.rand(4, 3).t()
    assert _own_places(tensor) is tensor
    assert to_device(tensor, "cpu") is tensor


def test_several_tensors_keep_their_shapes_and_values():
    tensors = [torch.rand(2, 3), torch.empty(0, 4), torch.tensor(5.0), torch.rand(3, 2).t()]
    for found, given in zip(all_to_device(tensors, "cpu", torch.float64), tensors, strict=True):
        assert found.dtype == torch.float64
        assert torch.equal(found.float(), given)


class Drawn(NamedTuple):
    owners: Tensor
    shares: Tensor
    per_sample: bool = True


@pytest.mark.parametrize(
    "of", [Between.of, lambda draw: Among.of(draw, 4)], ids=["sdmp", "patchmix"]
)
@pytest.mark.parametrize("places", [("cpu", "meta"), ("meta", "cpu")], ids=["pixels", "neighbor"])
def test_owners_and_shares_may_be_on_two_devices(of: Any, places: tuple[str, str]) -> None:
    """Masks made of pixels are on the device, as are nearest neighbors; tensors without values."""
    with FakeTensorMode():
        owners = torch.zeros(4, 2, dtype=torch.int64, device=places[0])
        found = of(Drawn(owners, torch.rand(4, 2, device=places[1])))
    assert found.owners.device.type == found.shares.device.type == "meta"
