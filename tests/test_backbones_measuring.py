"""Any module that gives (N, D) is a backbone; what else it gives is said in one line."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import unmix
from harness import N_DATA, OF_PATCHES, given_to, options_of, views_of
from unmix import methods
from unmix.backbones import build, feature_dim
from unmix.methods import METHODS


class Foreign(nn.Module):
    """A small network without `feature_dim`, which uses random numbers while it is trained."""

    def __init__(self, channels: int = 3, dim: int = 24) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, dim, 3), nn.BatchNorm2d(dim)
        self.drop = nn.Dropout(0.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.bn(self.conv(images)).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("name", sorted(METHODS.keys() - OF_PATCHES - {"densecl"}))
def test_every_method_takes_any_module(name: str) -> None:
    """But those of patches, and DenseCL, which needs a map of features."""
    backbone: Any = (Foreign(1), Foreign(2)) if name == "cmc" else Foreign()
    method = methods.build(name, backbone, N_DATA, **options_of(name), **given_to(name))
    step = unmix.Stepper(method, steps_per_epoch=3, epochs=2, mixture=unmix.UnMix())
    step(views_of(method), torch.arange(8)).backward()
    assert method.features(torch.zeros(2, 3, 16, 16)).shape == (2, 48 if name == "cmc" else 24)


@pytest.mark.parametrize(
    ("net", "dim"),
    [
        (torchvision.models.resnet18, 512),
        (torchvision.models.mobilenet_v3_small, 576),
    ],
)
def test_torchvision_without_its_head(net: Any, dim: int) -> None:
    backbone = net(weights=None)
    setattr(backbone, "fc" if hasattr(backbone, "fc") else "classifier", nn.Identity())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = unmix.MoCo(backbone, 512)
    assert method.f_q.head.in_features == dim


def test_a_classification_head_is_taken_but_named() -> None:
    with pytest.warns(UserWarning, match=r"1000 outputs of the classification head `fc`.*512 feat"):
        method = unmix.MoCo(torchvision.models.resnet18(weights=None), 512)
    assert method.f_q.head.in_features == 1000


def test_a_transformer_of_torchvision_is_asked_for_its_size() -> None:
    vit = torchvision.models.VisionTransformer(48, 16, 1, 2, 20, 32)
    vit.heads = nn.Identity()
    assert feature_dim(vit) == 20


def test_measuring_leaves_no_trace() -> None:
    torch.manual_seed(0)
    net = Foreign().train()
    net.bn.eval()  # a mode of its own stays
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    assert feature_dim(net) == 24
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.training
    assert net.drop.training
    assert not net.bn.training
    assert all(p.grad is None for p in net.parameters())
    assert net.feature_dim == 24


def test_lazy_layers_get_their_size() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.LazyLinear(7))
    assert feature_dim(net) == 7


class Gives(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Any:
        return self.output(images)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Conv2d(3, 8, 3), r"Conv2d gives a map \(N, C, H, W\).*AdaptiveAvgPool2d"),
        (Gives(lambda x: x.flatten(2)), r"sequence \(N, L, D\).*class token"),
        (Gives(lambda x: (x, x)), "gives a tuple.*wrap it"),
        (Gives(lambda x: {"features": x, "logits": x}), "dict with features, logits.*wrap it"),
        (Gives(lambda x: x.sum()), r"a tensor of shape \(\)"),
        (nn.Flatten(), "3072 at 32 px, 12288 at 64 px.*feature_dim"),
        (nn.Conv2d(1, 8, 3), "takes no images of 3 channels"),
        ("resnet18", r"'resnet18' is not a torch.nn.Module; build it: unmix.backbones.build"),
        (None, "None is not a torch.nn.Module"),
    ],
)
def test_what_is_no_backbone_is_named(net: Any, message: str) -> None:
    with pytest.raises(unmix.UserError, match=message) as found:
        unmix.MoCo(net, 512)
    assert "\n" not in str(found.value)


def test_networks_with_several_outputs_in_training_are_refused() -> None:
    net = Foreign()
    net.aux_logits = True  # as torchvision's GoogLeNet and Inception, whose eval mode gives one
    with pytest.raises(unmix.UserError, match="aux_logits=False"):
        unmix.SimCLR(net)


def test_cmc_needs_two() -> None:
    with pytest.raises(unmix.UserError, match=r"CMC needs two encoders, and Foreign was given"):
        unmix.CMC(Foreign(), 8)
    with pytest.raises(unmix.UserError, match="takes no images of 2 channels"):
        unmix.CMC((Foreign(1), Foreign(3)), 8)


def test_our_own_backbones_are_believed() -> None:
    net = build("resnet10", width=0.25, size=32)
    net.forward = None  # type: ignore[assignment,method-assign]
    assert feature_dim(net) == 128
