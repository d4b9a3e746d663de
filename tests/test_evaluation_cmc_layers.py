"""CMC's numbered layers are its stages, pooled to the published sides."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from unmix.backbones import AlexNet, HalfEncoders, ResNet, build
from unmix.errors import UserError
from unmix.evaluation import LayerFeatures
from unmix.evaluation.cmc_layers import layer_features

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet("resnet10", width=0.125, stem="large", size=224).eval()


def test_each_number_of_a_resnet_is_its_stage_at_the_published_side(resnet):
    maps = [resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(IMAGES))))]
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        maps.append(stage(maps[-1]))
    for number, (value, side) in enumerate(zip(maps, (8, 6, 4, 3, 2), strict=True), start=1):
        # Map 5 is left as it is, 2x2 of 64 pixels.
        expected = adaptive_avg_pool2d(value, side).flatten(1)
        found = layer_features(resnet, str(number), 64)(IMAGES)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer_features(resnet, "6", 64)(IMAGES), resnet(IMAGES))


def test_a_name_is_averaged_over_positions(resnet):
    found = layer_features(resnet, "layer3", 64)(IMAGES)
    torch.testing.assert_close(found, LayerFeatures(resnet, "layer3", 64)(IMAGES))
    assert found.shape == (2, 32)


def test_an_alexnets_maps_are_pooled_by_maximum():
    torch.manual_seed(0)
    net = AlexNet(width=0.05, stem="large", size=224).eval()
    images = torch.randn(1, 3, 224, 224)
    expected = adaptive_max_pool2d(net.conv1(images), 10).flatten(1)
    torch.testing.assert_close(layer_features(net, "1", 224)(images), expected)
    torch.testing.assert_close(layer_features(net, "7", 224)(images), net(images))


def test_half_encoders_are_put_side_by_side():
    torch.manual_seed(0)
    halves = HalfEncoders("resnet10", width=0.125, size=32).eval()
    found = layer_features(halves, "3", 64)(IMAGES)
    parts = [layer_features(halves.l, "3", 64)(IMAGES[:, :1]),
             layer_features(halves.ab, "3", 64)(IMAGES[:, 1:])]  # fmt: skip
    torch.testing.assert_close(found, torch.cat(parts, dim=1))


def test_a_number_that_is_not_there_is_told(resnet):
    with pytest.raises(UserError, match=r"7 is none of the ResNet's layers: 1 maxpool, 2 layer1"):
        layer_features(resnet, "7", 64)
    vit = build("timm:vit_tiny_patch16_224", size=32, patch=16)
    with pytest.raises(UserError, match="5 is CMC's number of a ResNet's or an AlexNet's layer"):
        layer_features(vit, "5", 32)
