"""Checkpoints in every layout give the outputs of the original network."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoints import RESNETS, VITS, in_chunks, randomized, resnet, under, vit
from unmix.backbones import HalfEncoders, build
from unmix.errors import UserError
from unmix.weights import (
    LAYOUTS,
    NAMINGS,
    Checkpoint,
    Found,
    find,
    load_found,
    network_in,
    network_of,
)
from unmix.weights.layouts import HALVES

SIZE = 32
IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
HUGGING_FACE = json.loads((Path(__file__).parent / "hugging_face.json").read_text())
SEEN: set[int] = set()


def found_in(content: Any, backbone: nn.Module | None = None) -> Found:
    ours = () if backbone is None else list(backbone.state_dict())
    found = find(Checkpoint(Path("w.pth"), content), ours)
    assert found is not None
    SEEN.add(next(n for n, layout in enumerate(LAYOUTS) if layout is found.layout))
    return found


def imported(content: Any, backbone: nn.Module) -> nn.Module:
    load_found(backbone, found_in(content, backbone), "w.pth")
    return backbone.eval()


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return resnet()


@pytest.fixture(scope="module")
def transformer() -> nn.Module:
    return vit(img_size=SIZE)


@pytest.mark.parametrize("name", RESNETS)
def test_a_resnet_gives_torchvisions_outputs(name: str, original: nn.Module):
    ours = imported(RESNETS[name](original.state_dict()), build("resnet18", stem="large"))
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), original(IMAGES))


@pytest.mark.parametrize("name", VITS)
def test_a_vision_transformer_gives_timms_outputs(name: str, transformer: nn.Module):
    content = VITS[name](transformer.state_dict())
    ours = imported(content, build("timm:vit_tiny_patch16_224", size=SIZE))
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), transformer(IMAGES))


@pytest.mark.parametrize("stem", ["conv_block", "resnet", "pycontrast"])
def test_cmcs_halves(stem: str):
    name = "alexnet" if stem == "conv_block" else "resnet18"
    theirs = HalfEncoders(name, width=0.5 if name == "alexnet" else 1, stem="large", size=64)
    randomized(theirs)
    halves = [half.state_dict() for half in (theirs.l, theirs.ab)]
    if name == "alexnet":
        halves = [
            {k.replace("conv", "conv_block_") if k.startswith("conv") else k: v
             for k, v in half.items()}
            for half in halves
        ]  # fmt: skip
        head = {"fc8.0.weight": torch.ones(128, 2048), "fc8.0.bias": torch.ones(128)}
    else:
        head = {"fc.weight": torch.ones(128, 512), "fc.bias": torch.ones(128)}
    prefixes = ["encoder.module.l_to_ab.", "encoder.module.ab_to_l."]
    if stem == "pycontrast":
        prefixes = ["module.encoder1.", "module.encoder2."]
    model = {}
    for prefix, half in zip(prefixes, halves, strict=True):
        model |= under(prefix, {**half, **head})
    ours = HalfEncoders(name, width=0.5 if name == "alexnet" else 1, stem="large", size=64)
    found = found_in({"model": model, "epoch": 240})
    assert load_found(ours, found, "w").missing == ()
    network = network_of(found.tensors)
    assert network is not None
    assert network.halves
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_the_resnets_of_cmc_keep_64_channels_in_the_first_layer():
    ours = HalfEncoders("resnet18", width=0.5, stem="large")
    state = ours.state_dict()
    for half in HALVES:
        state[f"{half}conv1.weight"] = torch.ones(64, state[f"{half}conv1.weight"].shape[1], 7, 7)
    with pytest.raises(UserError, match="first layer is 64, not 32; the original of CMC keeps 64"):
        load_found(ours, Found(LAYOUTS[0], None, state, ()), "w")


def value(name: str, shape: list[int]) -> Tensor:
    """The values under which transformers gave the features in hugging_face.json."""
    n = int(torch.tensor(shape).prod()) if shape else 1
    phase = zlib.crc32(name.encode()) % 1000
    wave = torch.sin(torch.arange(n, dtype=torch.float64) * 0.7310585 + phase)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        wave = 1 + 0.1 * wave
    else:
        wave = (0.05 if len(shape) == 4 else 0.02) * wave
    if "lambda1" in name:
        wave = 0.5 + 0.1 * torch.sin(torch.arange(n, dtype=torch.float64) + phase)
    return wave.reshape(shape).float()


def names_of(model: str) -> dict[str, list[int]]:
    """The names and shapes of a model of transformers, as it saves them."""
    return {
        name.replace("{}", str(layer)): shape
        for name, shape in HUGGING_FACE[model]["names"].items()
        for layer in range(12 if "{}" in name else 1)
    }


@pytest.mark.parametrize(
    ("model", "backbone"),
    [
        ("resnet", "resnet18"),
        ("vit", "timm:vit_tiny_patch16_224"),
        ("dinov2", "timm:vit_small_patch14_dinov2"),
        ("dinov2-registers", "timm:vit_small_patch14_reg4_dinov2"),
        ("dinov3", "timm:vit_small_patch16_dinov3_qkvb"),
        ("dinov3-gated", "timm:vit_small_plus_patch16_dinov3_qkvb"),
    ],
)
def test_features_are_those_of_transformers(model: str, backbone: str):
    known = HUGGING_FACE[model]
    state = {name: value(name, shape) for name, shape in names_of(model).items()}
    size = known["size"]
    stem = {} if backbone.startswith("timm:") else {"stem": "large"}
    ours = imported(state, build(backbone, size=size, **stem))
    n = 3 * size * size
    image = torch.sin(torch.arange(n, dtype=torch.float64) * 0.0173).reshape(1, 3, size, size)
    with torch.no_grad():
        features = ours(image.float())[0]
    expected = torch.tensor(known["features"])
    torch.testing.assert_close(features[:8], expected, atol=2e-4, rtol=2e-3)
    torch.testing.assert_close(features.norm(), torch.tensor(known["norm"]), atol=0, rtol=1e-3)


@pytest.mark.parametrize("model", list(HUGGING_FACE))
def test_names_of_transformers_become_timms_or_torchvisions(model: str):
    names = names_of(model)
    found = found_in({name: torch.zeros(1) for name in names})
    assert found.naming is not None
    heads = ("classifier", "decoder", "pooler")
    known = {
        "resnet": r"conv1|bn1|layer\d",
        "vit": r"cls_token|pos_embed|patch_embed|blocks|norm|mask_token|\w+_tokens",
    }["resnet" if "resnet" in model else "vit"]
    for name in found.tensors:
        assert re.match(rf"({known})\b", name) or name.startswith(heads), name
        assert "attention" not in name
        assert "normalization" not in name


def test_names_in_the_memory_of_transformers_5():
    """It saves the names of earlier versions, but a state dict of its modules has others."""
    saved = {name: value(name, shape) for name, shape in names_of("vit").items()}
    current = {}
    for name, tensor in saved.items():
        for old, new in (
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"), ("encoder.layer.", "layers."),
        ):  # fmt: skip
            name = name.replace(old, new)
        current[name] = tensor
    one, other = found_in(saved).tensors, found_in(current).tensors
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def as_facebook_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's DINOv2 with registers under the original names."""
    first = torch.ones(1, 1, 384)
    found = {
        name: tensor
        for name, tensor in state.items()
        if name not in ("pos_embed", "reg_token", "cls_token")
    }
    return {
        **found,
        "pos_embed": torch.cat([first, state["pos_embed"]], dim=1),
        "cls_token": state["cls_token"] - first[:, :1],
        "register_tokens": state["reg_token"],
        "mask_token": torch.zeros(1, 384),
    }


def as_facebook_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's DINOv3 under the original names."""
    found = {}
    for name, tensor in state.items():
        for old, new in (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")):
            name = name.replace(old, new)
        if name.endswith("v_bias") or "k_bias" in name:
            continue
        if name.endswith("q_bias"):
            value_bias = state[name.replace("q_bias", "v_bias")]
            name = name.replace("q_bias", "qkv.bias")
            found[name + "_mask"] = torch.ones(3 * 384)
            tensor = torch.cat([tensor, torch.full((384,), 5.0), value_bias])
        found["storage_tokens" if name == "reg_token" else name] = tensor
    periods = {"rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 384)}
    return {**found, **periods}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("vit_small_patch14_reg4_dinov2", as_facebook_dinov2),
        ("vit_small_patch16_dinov3_qkvb", as_facebook_dinov3),
        ("vit_medium_patch16_gap_240", lambda s: {"target_encoder": under("module.", s),
                                                  "encoder": {"module.norm.bias": torch.ones(1)}}),
        ("vit_medium_patch16_gap_240", lambda s: {"encoder": under("module.", s)}),
    ],
    ids=["DINOv2", "DINOv3", "I-JEPA", "I-JEPA encoder"],
)  # fmt: skip
def test_the_originals_of_facebook(name: str, write: Any):
    size = 56 if "patch14" in name else 48
    theirs = vit(name, img_size=size)
    ours = imported(write(theirs.state_dict()), build(f"timm:{name}", size=size))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_biases_that_timm_would_drop_are_refused():
    state = as_facebook_dinov3(vit("vit_small_patch16_dinov3_qkvb", img_size=32).state_dict())
    with pytest.raises(UserError, match=r"biases of queries and values.*_qkvb"):
        imported(state, build("timm:vit_small_patch16_dinov3", size=32))


def test_mocos_small_transformer_has_12_heads():
    theirs = vit("vit_small_patch16_224", img_size=SIZE, num_heads=12)
    content = VITS["MoCo v3"](theirs.state_dict())
    with pytest.raises(UserError, match=r"12 attention heads.*encoder has 6.*`heads=12`"):
        imported(content, build("timm:vit_small_patch16_224", size=SIZE))
    ours = imported(content, build("timm:vit_small_patch16_224", size=SIZE, heads=12))
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))


def test_positions_and_patches_of_another_size_are_interpolated_and_said(transformer: nn.Module):
    import timm

    backbone = build("timm:vit_tiny_patch16_224", size=SIZE, patch=8)
    loaded = load_found(backbone, found_in(transformer.state_dict()), "w.pth")
    assert "interpolated: position embeddings from 5 tokens to 17 tokens" in loaded.line("w.pth")
    assert "patch embedding from 16 px to 8 px" in loaded.line("w.pth")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIZE, patch_size=8)
    convert = timm.models.vision_transformer.checkpoint_filter_fn
    theirs.load_state_dict(convert(transformer.state_dict(), theirs))
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval()(IMAGES), theirs.eval()(IMAGES))


def test_a_network_of_lightly_for_cifar():
    """Its parts in a sequence without pooling: the second is the first stage."""
    theirs = randomized(build("resnet18", size=32))
    places = {"conv1": "0", "bn1": "1", **{f"layer{n}": str(n + 1) for n in range(1, 5)}}
    state = {}
    for name, tensor in theirs.state_dict().items():
        part, _, rest = name.partition(".")
        state[f"backbone.{places[part]}.{rest.replace('downsample', 'shortcut')}"] = tensor
    ours = imported({"state_dict": state}, build("resnet18", size=32))
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))


@pytest.mark.parametrize("name", ["solo-learn", "solo-learn of 2021"])
def test_a_network_of_solo_learn_for_cifar_keeps_its_padding(name: str):
    """Its 3x3 convolution has padding 2, of which no tensor tells; the features differ by 10%."""
    model = resnet()
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=2, bias=False), nn.Identity()
    model.fc = nn.Identity()
    content = RESNETS[name](model.eval().state_dict())
    network = network_in(found_in(content))
    assert network is not None
    assert network.settings() == {"backbone": "resnet18", "width": 1.0, "stem": "padded"}
    ours = build("resnet18", stem=network.stem)
    images = torch.rand(4, 3, 32, 32)
    loaded = load_found(ours, found_in(content, ours), "w.pth")
    assert "padding" not in loaded.line("w.pth")
    small = build("resnet18", stem="small")
    said = load_found(small, found_in(content, small), "w.pth").line("w.pth")
    assert said.endswith(
        "the 3x3 stem of solo-learn has padding 2, and this one has 1, so that it computes other "
        "features; --stem padded is theirs"
    )
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(ours.eval()(images), expected)
        assert (small.eval()(images) - expected).norm() > 0.05 * expected.norm()


def test_other_networks_of_timm_by_their_own_names():
    import timm

    theirs = randomized(timm.create_model("mobilenetv3_small_050", num_classes=0))
    ours = imported({"state_dict": under("backbone.", theirs.state_dict())},
                    build("timm:mobilenetv3_small_050", size=SIZE))  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))


@pytest.mark.parametrize(
    ("given", "wanted", "words"),
    [
        ("resnet34", {}, "its network is resnet34, not resnet18; give `backbone=resnet34`"),
        ("resnet18", {"stem": "small"}, "an ImageNet stem .large., not a CIFAR stem .3x3"),
        ("resnet18", {"width": 0.5}, "its width is 1.0, not 0.5; give .*`width=1`"),
        ("wide_resnet50_2", {"name": "resnet50"}, "wide resnet50, 2x, not resnet50; give "
         "`backbone=timm:wide_resnet50_2`"),
        ("resnext50_32x4d", {"name": "resnet50"}, "ResNeXt .*there is no such backbone here"),
        ("resnet18", {"name": "alexnet"}, "its network is resnet18, not AlexNet"),
        ("resnet18", {"name": "timm:vit_tiny_patch16_224"}, "its kind is one encoder of 3"),
    ],
)  # fmt: skip
def test_other_networks_are_refused_by_name(given: str, wanted: dict[str, Any], words: str):
    import torchvision

    with torch.device("meta"):
        state = getattr(torchvision.models, given)().state_dict()
    options = {"stem": "large", **wanted}
    if options.get("name", "").startswith("timm:"):
        options.pop("stem")
    backbone = build(options.pop("name", "resnet18"), **options)
    with pytest.raises(UserError, match=words):
        imported(state, backbone)


def test_too_few_tensors_are_refused_with_the_first_and_the_known_layouts(original: nn.Module):
    state = {f"my.{name}": tensor for name, tensor in original.state_dict().items()}
    with pytest.raises(UserError) as refused:
        imported(state, build("resnet18", stem="large"))
    text = str(refused.value)
    assert "has 0 of the encoder's 100 tensors" in text
    assert "my.conv1.weight" in text
    assert "facebook MoCo v1 and v2, Un-Mix; facebook MoCo v3; facebook SimSiam" in text
    assert "\n" not in text


def test_a_few_tensors_that_are_missing_are_said(original: nn.Module):
    state = original.state_dict()
    del state["layer4.1.bn2.weight"]
    backbone = build("resnet18", stem="large")
    loaded = load_found(backbone, found_in(state), "w.pth")
    assert loaded.line("w.pth") == (
        "weights: 99 of 100 tensors of the encoder from w.pth (torchvision ResNet); not in it, so "
        "they start random: layer4.1.bn2.weight"
    )


def test_a_norm_before_the_blocks_is_part_of_the_network():
    """CLIP's transformers have one; without it their weights give other features."""
    backbone = build("timm:vit_tiny_patch16_224", size=32, patch=8)
    state = {**backbone.state_dict(), "norm_pre.weight": torch.ones(192)}
    with pytest.raises(UserError, match=r"has a norm before the blocks \(norm_pre\)"):
        load_found(backbone, found_in(state), "w.pth")
    load_found(backbone, found_in(backbone.state_dict()), "w.pth")


def test_values_that_are_not_finite_are_refused(original: nn.Module):
    state = dict(original.state_dict())
    state["layer1.0.conv1.weight"] = torch.full((64, 64, 3, 3), torch.nan)
    with pytest.raises(UserError, match=r"values of layer1\.0\.conv1.weight that are not finite"):
        imported(state, build("resnet18", stem="large"))


def test_files_without_step_counters_are_complete(original: nn.Module):
    """PyTorch before 0.4.1 had none."""
    state = {n: t for n, t in original.state_dict().items() if "num_batches" not in n}
    backbone = build("resnet18", stem="large")
    assert load_found(backbone, found_in(state), "w").missing == ()


def test_a_layout_is_found_by_each_row_and_a_naming_by_each_marker(original: nn.Module):
    halves = HalfEncoders("resnet10", width=0.125, size=32).state_dict()
    assert found_in(halves).layout.halves == HALVES
    for layout in LAYOUTS:
        if layout.name == "HF transformers":
            names = names_of("resnet" if layout.prefix == "resnet." else "vit")
            content = {layout.prefix + name: torch.ones(1) for name in names}
            assert found_in(content).layout is layout
    written = [write(original.state_dict()) for write in RESNETS.values()]
    written += [
        write(in_chunks({"patch_embed.proj.weight": torch.ones(1)})) for write in VITS.values()
    ]
    written.append({"target_encoder": {"patch_embed.proj.weight": torch.ones(1)}})
    written.append({"encoder": {"patch_embed.proj.weight": torch.ones(1)}})
    for prefixes in (("encoder.module.l_to_ab.", "encoder.module.ab_to_l."),
                     ("module.encoder1.", "module.encoder2.")):  # fmt: skip
        parts = {f"{prefix}layer1.0.conv1.weight": torch.ones(1) for prefix in prefixes}
        written.append({"model": parts})
    found = [found_in(content) for content in written]
    assert [layout for n, layout in enumerate(LAYOUTS) if n not in SEEN] == []
    seen = {each.naming.title for each in found if each.naming is not None}
    others = {"hf-resnet", "hf-vit", "hf-dinov3", "cmc-alexnet", "resnet-sequence-cifar"}
    assert seen == {n.title for key, n in NAMINGS.items() if key not in others}


def test_methods_that_are_known_here_are_recognized(transformer: nn.Module):
    state = transformer.state_dict()
    names = ("MAE", "iBOT", "iBOT, whole", "iBOT, student", "DINO", "MoCo v3")
    found = {name: found_in(VITS[name](state)).layout.method for name in names}
    assert list(found.values()) == ["mae", "ibot", "ibot", "ibot", "dino", "mocov3"]


def test_depth_and_registers_of_a_transformer_are_seen_in_its_tensors(transformer: nn.Module):
    from unmix.weights import network_of

    made = build("timm:vit_tiny_patch16_224", size=SIZE, patch=8, depth=3, registers=2)
    network = network_of(made.state_dict())
    assert network is not None
    assert network.settings() == {
        "backbone": "timm:vit_tiny_patch16_224", "patch": 8, "depth": 3, "registers": 2,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"give .*`patch=8`, `depth=3`, `registers=2`"):
        imported(made.state_dict(), build("timm:vit_tiny_patch16_224", size=SIZE, patch=8))
    with pytest.raises(UserError, match=r"give .*`depth=12`, `registers=0`"):
        imported(transformer.state_dict(), made)


def test_a_network_of_mixmims_code_is_none_of_these():
    """Its hierarchy of windows has the first name of a vision transformer, and no other."""
    state = {
        "patch_embed.proj.weight": torch.zeros(128, 3, 4, 4), "absolute_pos_embed": torch.ones(1),
        "layers.0.blocks.0.attn.qkv.weight": torch.ones(384, 128),
        "decoder_embed.weight": torch.ones(512, 1024), "mask_token": torch.ones(1),
    }  # fmt: skip
    with pytest.raises(UserError, match="has 1 of the encoder's 150 tensors, which is too few"):
        imported({"model": state}, build("timm:vit_tiny_patch16_224", size=SIZE))
