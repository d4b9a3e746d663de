"""Small tensors on their way to a GPU: what is pinned has its own memory for every value."""

from __future__ import annotations

import pytest
import torch

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
