"""Activation checkpointing: the same gradients, statistics and random numbers, less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmix import backbones
from unmix.backbones import HalfEncoders, checkpoint_activations
from unmix.config import Settings
from unmix.errors import UserError
from unmix.training.run.parts import build_parts

KINDS: dict[str, Callable[[], nn.Module]] = {
    "resnet10": lambda: backbones.build("resnet10", width=0.25, size=32),
    "resnet50": lambda: backbones.build("resnet50", width=0.25, size=32),
    "split": lambda: backbones.convert_split_batch_norm(
        backbones.build("resnet10", width=0.25, size=32), 2
    ),
    "halves": lambda: HalfEncoders("resnet10", width=0.25, size=32),
    "vit": lambda: backbones.build("timm:vit_tiny_patch16_224", size=32, patch=8),
    "timm-resnet": lambda: backbones.build("timm:resnet18", size=32),
    "timm-convnext": lambda: backbones.build("timm:convnext_atto", size=32),
    "timm-regnet": lambda: backbones.build("timm:resnet10t", size=32),
}


def built(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = KINDS[kind]()
    return made if isinstance(made, nn.Module) else made[0]


def two_views(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients and state after two forwards and a backward pass, and bytes that were kept."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = [network(torch.randn(4, 3, 32, 32, generator=generator)) for _ in range(2)]
    parts = [torch.cat(o, dim=1) if isinstance(o, tuple) else o for o in outputs]
    sum((part.square() * (n + 1)).sum() for n, part in enumerate(parts)).backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    return gradients, dict(network.state_dict()), sum(kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_statistics_are_those_of_the_network_and_less_is_kept(kind: str) -> None:
    plain, less = built(kind), built(kind)
    checkpoint_activations(less)
    less = copy.deepcopy(less)  # as a copy is
    one, other = two_views(plain), two_views(less)
    assert one[0].keys() == other[0].keys()
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[0].items():
        torch.testing.assert_close(other[0][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in one[1].items():
        assert torch.equal(other[1][name], value), name
    assert other[2] < 0.75 * one[2]


def test_paths_are_dropped_alike_in_both_passes() -> None:
    timm = pytest.importorskip("timm")
    words: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_classes": 0, "depth": 4}
    found = []
    for less in (False, True):
        torch.manual_seed(0)
        network = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.5, **words)
        if less:
            checkpoint_activations(network)
        found.append(two_views(network)[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_without_gradients_and_in_evaluation_nothing_changes() -> None:
    plain, less = built("resnet10").eval(), built("resnet10").eval()
    checkpoint_activations(less)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(less(images), plain(images))
    less(images).sum().backward()
    assert torch.equal(less.state_dict()["layer1.0.bn1.running_mean"], torch.zeros(16))


def test_compiled_it_gives_the_same_gradients_and_statistics() -> None:
    plain, less = built("resnet10"), built("resnet10")
    checkpoint_activations(less)
    less.compile(dynamic=False, backend="aot_eager")
    one, other = two_views(plain), two_views(less)
    for name, gradient in one[0].items():
        torch.testing.assert_close(other[0][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    for name, value in one[1].items():
        torch.testing.assert_close(other[1][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("network", [nn.Linear(2, 2), backbones.build("alexnet", size=32)])
def test_networks_without_known_blocks_are_refused(network: nn.Module) -> None:
    with pytest.raises(UserError, match="blocks are not known"):
        checkpoint_activations(network)


@pytest.mark.parametrize("method", ["moco", "cmc", "byol"])
def test_a_run_has_it_in_the_trained_network_alone(method: str) -> None:
    words = {"method": method, "data": "digits", "limit": 32, "size": 8, "batch_size": 16,
             "backbone": "resnet10", "width": 0.125, "device": "cpu",
             "checkpoint_activations": True}  # fmt: skip
    found = build_parts(Settings.of(words)).module.method
    ours = [n for n, m in found.named_modules() if "forward" in vars(m)]
    assert len(ours) == (8 if method == "cmc" else 4)
    assert not any(name.startswith(("f_k", "f_t")) for name in ours)
