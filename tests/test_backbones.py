"""Backbones are torchvision's in names and initialization, with CMC's widths and small stems."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch
import torchvision
from torch import Tensor, nn

from unmix.backbones import (
    BACKBONES,
    AlexNet,
    HalfEncoders,
    ResNet,
    build,
    check_stem,
    is_vit,
    linear_head,
    mlp_head,
    takes_size,
)
from unmix.errors import UserError

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@pytest.mark.parametrize("name", TORCHVISION)
def test_state_dict_is_torchvisions_without_fc(name: str):
    with torch.device("meta"):
        ours = build(name).state_dict()
        theirs = getattr(torchvision.models, name)().state_dict()
    expected = [(key, value.shape) for key, value in theirs.items() if not key.startswith("fc.")]
    assert [(key, value.shape) for key, value in ours.items()] == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_weights_loaded_into_torchvision_give_the_same_features(name: str, generator):
    ours = build(name).eval()
    theirs = getattr(torchvision.models, name)().eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64, generator=generator)
    assert missing == ["fc.weight", "fc.bias"]
    assert unexpected == []
    torch.testing.assert_close(ours(images), theirs(images))


def test_initialization_has_torchvisions_spread():
    """Convolutions start from N(0, 2 / fan_out), as the default of torchvision's ResNet."""
    model = build("resnet18")
    for name in ("layer1.0.conv1", "layer3.1.conv2", "layer4.0.downsample.0"):
        weight = model.get_submodule(name).weight
        fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_init_residual_is_torchvisions(name: str):
    """The same norms at 0, and no others; a block is then the identity of what it adds to."""
    ours = build(name, zero_init_residual=True).state_dict()
    theirs = getattr(torchvision.models, name)(zero_init_residual=True).state_dict()
    zeros = [
        {key for key, value in state.items() if key.endswith("weight") and not value.any()}
        for state in (ours, theirs)
    ]
    assert zeros[0] == zeros[1] != set()
    halves = HalfEncoders("resnet10", width=0.25, size=32, zero_init_residual=True)
    assert not halves.ab.layer4[0].bn2.weight.any()


@pytest.mark.parametrize("name", ["alexnet", "timm:vit_tiny_patch16_224"])
def test_zero_init_residual_is_refused_where_there_are_no_such_blocks(name: str):
    message = f"zero_init_residual: does not apply to {name}, only to resnet10, "
    with pytest.raises(UserError, match=message):
        build(name, zero_init_residual=True)


def test_resnet10_has_one_basic_block_a_stage():
    with torch.device("meta"):
        model = build("resnet10")
    assert [len(getattr(model, f"layer{stage}")) for stage in (1, 2, 3, 4)] == [1, 1, 1, 1]
    convolutions = [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)
    ]
    assert len(convolutions) + 1 == 10  # the classifier counts as the tenth layer


@pytest.mark.parametrize(
    ("name", "width", "feature_dim"),
    [
        ("resnet10", 0.25, 128),
        ("resnet18", 0.5, 256),
        ("resnet18", 1.0, 512),
        ("resnet50", 0.5, 1024),
        ("resnet50", 2.0, 4096),
        ("resnet101", 1.0, 2048),
        ("alexnet", 0.5, 2048),
        ("alexnet", 1.0, 4096),
    ],
)
def test_width_scales_the_features(name: str, width: float, feature_dim: int):
    with torch.device("meta"):
        assert build(name, width=width).feature_dim == feature_dim


def test_width_scales_the_stem_too():
    with torch.device("meta"):
        assert build("resnet18", width=0.5).conv1.out_channels == 32


@pytest.mark.parametrize(
    ("size", "stem"), [(8, "small"), (32, "small"), (33, "medium"), (64, "medium"), (65, "large")]
)
def test_auto_stem_follows_the_size(size: int, stem: str):
    assert check_stem("auto", size) == stem


@pytest.mark.parametrize(("stem", "reduction"), [("small", 1), ("medium", 2), ("large", 4)])
def test_stem_reduces_the_resolution(stem: str, reduction: int):
    model = build("resnet10", width=0.125, stem=stem)
    sides: list[int] = []
    model.layer1.register_forward_hook(lambda m, args, out: sides.append(args[0].shape[-1]))
    model(torch.zeros(2, 3, 32, 32))
    assert sides == [32 // reduction]


@pytest.mark.parametrize("size", [32, 48, 64, 96])
@pytest.mark.parametrize("in_channels", [1, 2])
@pytest.mark.parametrize("name", ["resnet10", "alexnet"])
def test_features_have_feature_dim_and_are_not_negative(name, in_channels, size, generator):
    model = build(name, in_channels=in_channels, width=0.03125, size=size)
    features = model(torch.randn(2, in_channels, size, size, generator=generator))
    assert features.shape == (2, model.feature_dim)
    assert features.min() >= 0
    assert features.max() > 0


@pytest.mark.parametrize(
    ("stem", "size", "side"), [("large", 224, 6), ("small", 32, 7), ("medium", 64, 7)]
)
def test_alexnet_map_before_its_linear_layers_is_about_the_published_one(stem, size, side):
    """6x6 at 224 pixels, so that the adaptive pooling changes nothing there."""
    model = AlexNet(width=0.03125, stem=stem, size=size)
    shapes: list[torch.Size] = []
    model.conv5.register_forward_hook(lambda m, args, out: shapes.append(out.shape))
    model(torch.zeros(2, 3, size, size))
    assert shapes[0][-2:] == (side, side)


@pytest.mark.parametrize(("stem", "smallest"), [("small", 7), ("medium", 15), ("large", 63)])
def test_alexnet_takes_the_smallest_size_it_allows_and_refuses_less(stem: str, smallest: int):
    model = AlexNet(width=0.03125, stem=stem, size=smallest)
    assert model(torch.zeros(2, 3, smallest, smallest)).shape == (2, 128)
    with pytest.raises(UserError, match=rf"size: {smallest - 1} is too small.*{smallest}"):
        AlexNet(width=0.03125, stem=stem, size=smallest - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "--backbone: 'resnet19' is unknown. Did you mean 'resnet1"),
        ({"name": "resnet18", "stem": "tiny"}, "--stem: 'tiny'"),
        ({"name": "resnet18", "width": 0}, "--width: 0 "),
        ({"name": "alexnet", "width": -1}, "--width: -1 "),
        ({"name": "resnet18", "size": 0}, "--size: 0 "),
        ({"name": "resnet18", "in_channels": 0}, "--in_channels: 0 "),
    ],
)
def test_mistakes_are_told_with_flag_and_value(arguments: dict, message: str):
    with pytest.raises(UserError) as caught:
        build(**arguments)
    assert caught.value.on_command_line().startswith(message)
    assert not str(caught.value).startswith("--")
    assert "\n" not in str(caught.value)


def test_every_listed_backbone_can_be_built():
    with torch.device("meta"):
        for name in BACKBONES:
            assert build(name, size=32).feature_dim > 0


class _FakeTimmModel(nn.Module):
    num_features = 7

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_chans, self.num_features)
        self.size: int | None = None

    def set_input_size(self, img_size: int) -> None:
        self.size = img_size

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean(dim=(2, 3)))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Stand in for timm, and record the calls."""
    calls: list[dict] = []

    def create_model(name: str, **arguments: object) -> nn.Module:
        if "img_size" in arguments:
            raise TypeError("got an unexpected keyword argument 'img_size'")
        calls.append({"name": name, **arguments})
        return _FakeTimmModel(arguments["in_chans"])

    module = ModuleType("timm")
    module.create_model = create_model
    module.is_model = lambda name: name == "vit"
    monkeypatch.setitem(sys.modules, "timm", module)
    return calls


def test_timm_model_is_built_without_head_and_keeps_its_names(timm: list[dict]):
    model = build("timm:vit", in_channels=2, size=48)
    assert timm == [{"name": "vit", "pretrained": False, "num_classes": 0, "in_chans": 2}]
    assert model.feature_dim == 7
    assert model.size == 48
    assert list(model.state_dict()) == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "timm:what"}, "--backbone: timm has no model 'what'"),
        ({"name": "timm:vit", "width": 0.5}, "--width: 0.5"),
        ({"name": "timm:vit", "stem": "small"}, "--stem: 'small'"),
        ({"name": "timm:vit", "patch": 8}, "--patch: 8 applies only to vision transformers"),
        ({"name": "timm:vit", "patch": 0}, "--patch: 0 is out of range; it must be at least 1."),
    ],
)
def test_timm_mistakes_are_told(timm: list[dict], arguments: dict, message: str):
    with pytest.raises(UserError) as caught:
        build(**arguments)
    assert caught.value.on_command_line().startswith(message)


def test_timm_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"backbone: 'timm:vit' needs the timm package"):
        build("timm:vit")


@pytest.mark.parametrize("name", ["mixer_s32_224", "levit_128s"])
def test_networks_of_timm_that_are_made_for_one_size_are_built_for_it(name: str):
    """Without a size they have 224 pixels, and fail at the first batch by an error of their own."""
    pytest.importorskip("timm")
    model = build(f"timm:{name}", size=64)
    assert model.training
    assert takes_size(model, 64)
    assert not takes_size(model, 96)
    assert model.training
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, model.feature_dim)


def test_a_size_that_a_network_of_timm_has_no_layers_for_is_told():
    pytest.importorskip("timm")
    with pytest.raises(UserError) as caught:
        build("timm:efficientformer_l1", size=64)
    assert caught.value.on_command_line() == (
        "--size: 64 is no size of images that timm:efficientformer_l1 takes; use --size 224, for "
        "which timm builds it, or another backbone."
    )


VIT = "timm:vit_tiny_patch16_224"


def test_a_vision_transformer_takes_smaller_crops_and_keeps_timms_names(generator):
    """Its positions are interpolated for them; layers stay where a mixture within can find them."""
    pytest.importorskip("timm")
    vit = build(VIT, size=32, patch=8).eval()
    assert vit.patch_embed.num_patches == 16
    assert vit.feature_dim == 192
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= vit.state_dict().keys()
    assert vit.pos_embed.shape == (1, 17, 192)
    for side in (32, 16, 24):
        images = torch.randn(2, 3, side, side, generator=generator)
        assert vit(images).shape == (2, 192)
    assert dict(vit.named_modules())["blocks.3"] is vit.blocks[3]


def test_a_vision_transformers_patches_are_the_models_own_by_default():
    pytest.importorskip("timm")
    assert build(VIT, size=32).patch_embed.patch_size == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 7, "size": 32}, "--patch: patches of 7 pixels do not fill images of --size 32; "
         "use a divisor of it, such as 4."),
        ({"size": 40}, "--patch: patches of 16 pixels do not fill images of --size 40; use a "
         "divisor of it, such as 10."),
    ],
)  # fmt: skip
def test_patches_that_do_not_fill_the_image_are_told(arguments: dict, message: str):
    pytest.importorskip("timm")
    with pytest.raises(UserError) as caught:
        build(VIT, **arguments)
    assert caught.value.on_command_line() == message


def test_patches_of_a_network_without_any_are_told():
    pytest.importorskip("timm")
    for name in ("resnet18", "alexnet", "timm:resnet18"):
        with pytest.raises(
            UserError, match=f"patch: 8 applies only to .*; {name} has no patches to set"
        ):
            build(name, patch=8)


def test_what_is_a_vision_transformer():
    pytest.importorskip("timm")
    assert is_vit(build(VIT, size=32))
    assert not is_vit(build("resnet10", width=0.125))
    assert not is_vit(build("timm:resnet18"))


def test_half_encoders_see_only_their_own_channels(generator):
    halves = HalfEncoders("resnet10", width=0.125, size=16).eval()
    images = torch.randn(4, 3, 16, 16, generator=generator)
    lightness, ab = halves(images)
    other = images.clone()
    other[:, 0] += 1
    new_lightness, new_ab = halves(other)
    assert not torch.equal(new_lightness, lightness)
    assert torch.equal(new_ab, ab)
    for channel in (1, 2):
        other = images.clone()
        other[:, channel] += 1
        new_lightness, new_ab = halves(other)
        assert torch.equal(new_lightness, lightness)
        assert not torch.equal(new_ab, ab)


def test_half_encoders_put_l_before_ab(generator):
    halves = HalfEncoders("resnet10", width=0.125, size=16).eval()
    images = torch.randn(2, 3, 16, 16, generator=generator)
    lightness, ab = halves(images)
    features = halves.features(images)
    assert features.shape == (2, halves.feature_dim)
    assert torch.equal(features, torch.cat([lightness, ab], dim=1))


@pytest.mark.parametrize(("width", "feature_dim"), [(0.5, 2048), (1.0, 4096), (2.0, 8192)])
def test_half_encoders_have_cmcs_sizes(width: float, feature_dim: int):
    """CMC's ResNet-50 v1, v2 and v3."""
    with torch.device("meta"):
        assert HalfEncoders("resnet50", width=width).feature_dim == feature_dim


def test_heads_have_the_published_layers():
    assert isinstance(linear_head(8, 4), nn.Linear)
    assert [type(layer) for layer in mlp_head(8, 16, 4)] == [nn.Linear, nn.ReLU, nn.Linear]
    assert mlp_head(8, 16, 4)(torch.zeros(3, 8)).shape == (3, 4)


def test_resnet_reports_unknown_names_itself():
    with pytest.raises(UserError, match="backbone: 'alexnet' is unknown"):
        ResNet("alexnet")
