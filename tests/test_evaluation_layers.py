"""Features of any layer of an encoder."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from unmix.backbones import HalfEncoders, build
from unmix.errors import UserError
from unmix.evaluation import LayerFeatures, layer_names

SIZE = 32


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=generator)


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet10", width=0.125, size=SIZE).eval().requires_grad_(False)


def test_the_last_layer_pooled_is_the_encoder(resnet: nn.Module, images: Tensor) -> None:
    last = LayerFeatures(resnet, "layer4", SIZE)
    assert last.feature_dim == resnet.feature_dim
    torch.testing.assert_close(last(images), resnet(images))
    torch.testing.assert_close(LayerFeatures(resnet, "avgpool", SIZE)(images), resnet(images))


def test_a_layer_within_is_what_its_part_computes(resnet: nn.Module, images: Tensor) -> None:
    stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    expected = resnet.layer2(resnet.layer1(stem))
    found = LayerFeatures(resnet, "layer2", SIZE)
    torch.testing.assert_close(found(images), expected.mean((2, 3)))
    assert found.feature_dim == expected.shape[1]
    whole = LayerFeatures(resnet, "layer2", SIZE, pool=False)
    assert torch.equal(whole(images), expected)
    assert whole.feature_dim == expected[0].numel()
    # The ReLU after it works in place, and does not change it.
    plain = resnet.bn1(resnet.conv1(images)).clone()
    assert torch.equal(LayerFeatures(resnet, "bn1", SIZE, pool=False)(images), plain)
    assert plain.min() < 0


def test_a_layer_that_is_used_twice_gives_its_last_output(
    resnet: nn.Module, images: Tensor
) -> None:
    block = LayerFeatures(resnet, "layer1.0", SIZE, pool=False)(images)
    assert torch.equal(LayerFeatures(resnet, "layer1.0.relu", SIZE, pool=False)(images), block)


def test_later_layers_are_not_computed_and_batch_norm_is_not_touched(images: Tensor) -> None:
    backbone = build("resnet10", width=0.125, size=SIZE).train()
    before = copy.deepcopy(backbone.state_dict())
    layer = LayerFeatures(backbone, "layer1", SIZE)
    assert backbone.training
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    backbone.layer2.register_forward_hook(lambda *_: pytest.fail("layer2 was computed"))
    layer(images)


def test_half_encoders_have_the_layers_of_both(images: Tensor) -> None:
    torch.manual_seed(0)
    halves = HalfEncoders("resnet10", width=0.125, size=SIZE).eval().requires_grad_(False)
    both = LayerFeatures(halves, "layer4", SIZE)
    torch.testing.assert_close(both(images), halves.features(images))
    assert both.feature_dim == halves.feature_dim
    one = LayerFeatures(halves, "ab.layer4", SIZE)
    torch.testing.assert_close(one(images), halves.ab(images[:, 1:]))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_tokens_are_pooled_as_the_transformer_pools(pool: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
    kinds = {
        "num_classes": 0,
        "global_pool": pool,
        "fc_norm": False,
        "class_token": pool == "token",
    }
    vit = timm.models.VisionTransformer(**sizes, **kinds).eval().requires_grad_(False)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(LayerFeatures(vit, "norm", 32)(images), vit(images))
    assert LayerFeatures(vit, "blocks.0", 32).feature_dim == 24
    # Its patch embedding has no class token yet: the mean of all patches, not the first alone.
    patches = LayerFeatures(vit, "patch_embed", 32)(images)
    torch.testing.assert_close(patches, vit.patch_embed(images).mean(dim=1))
    with pytest.raises(UserError, match=r"'blocks.0.attn.q_norm' gives .* no map of features"):
        LayerFeatures(vit, "blocks.0.attn.q_norm", 32)


def test_maps_with_channels_last_are_averaged_over_positions() -> None:
    class Swin(nn.Module):
        output_fmt = "NHWC"

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.turned = nn.Conv2d(3, 5, 3), nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            return self.turned(self.conv(images).permute(0, 2, 3, 1)).mean((1, 2))

    backbone = Swin()
    images = torch.randn(2, 3, 9, 9)
    layer = LayerFeatures(backbone, "turned", 9)
    assert layer.feature_dim == 5
    torch.testing.assert_close(layer(images), backbone(images))


def test_names_that_are_wrong(resnet: nn.Module) -> None:
    assert layer_names(resnet)[:3] == ("conv1", "bn1", "relu")
    with pytest.raises(UserError, match=r"no layer 'layer5'. Did you mean 'layer4'") as error:
        LayerFeatures(resnet, "layer5", SIZE)
    assert error.value.on_command_line().startswith("--layer: ")
    assert "conv1, bn1, relu, maxpool, layer1" in str(error.value)

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.unused, self.two = nn.Conv2d(3, 4, 3), nn.Identity(), Two()

        def forward(self, images: Tensor) -> Tensor:
            return self.two(self.conv(images))[0].mean((2, 3))

    class Two(nn.Module):
        def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
            return maps, maps

    with pytest.raises(UserError, match="'unused' is not used"):
        LayerFeatures(Parts(), "unused", SIZE)
    with pytest.raises(UserError, match="'two' does not give one tensor"):
        LayerFeatures(Parts(), "two", SIZE)
