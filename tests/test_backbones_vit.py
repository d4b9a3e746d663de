"""Options of vision transformers: depth, registers, pooling, stochastic depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unmix
from unmix.backbones import POOLINGS, TokenEncoder, build, draws_in_training
from unmix.commands.export import export
from unmix.commands.import_weights import import_weights
from unmix.config.groups import CHOICES, ModelSettings
from unmix.errors import UserError
from unmix.evaluation.encoder import build_encoder
from unmix.export.base import Source
from unmix.export.weights import timm_arguments
from unmix.methods import Method
from unmix.methods import build as build_method
from unmix.momentum import momentum_copy
from unmix.step import objective
from unmix.weights import network_of

pytest.importorskip("timm")
VIT = "timm:vit_tiny_patch16_224"


def vit(**options: Any) -> torch.nn.Module:
    return build(VIT, size=16, patch=8, heads=2, **{"depth": 2, **options})


def test_depth_and_registers_are_those_asked_for() -> None:
    """Features are those of the class token; registers are tokens between it and the patches."""
    model = vit(registers=3)
    assert len(model.blocks) == 2
    assert model.reg_token.shape == (1, 3, 192)
    images = torch.randn(2, 3, 16, 16)
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 1 + 3 + 4, 192)
    assert torch.equal(model.eval()(images), model.forward_features(images)[:, 0])


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "timm:resnet18", "timm:convnext_atto"])
@pytest.mark.parametrize(
    ("option", "what"),
    [
        ({"depth": 2}, "transformer blocks"),
        ({"registers": 1}, "register tokens"),
        ({"class_token": False}, "class token"),
        ({"pooling": "average"}, "pooling of tokens"),
    ],
)
def test_networks_without_them_refuse(name: str, option: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=rf"applies only to vision .*{name} has no {what}"):
        build(name, **option)


def test_a_transformer_without_registers_names_them_and_not_what_it_takes() -> None:
    with pytest.raises(UserError, match=r"registers: 2 applies only .* has no register tokens"):
        build("timm:beit_base_patch16_224", depth=1, registers=2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"drop_path": 1}, "drop_path must be at least 0 and less than 1, got 1"),
        ({"drop_path": -0.1}, "drop_path must be at least 0 and less than 1, got -0.1"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"registers": -1}, "registers must be at least 0, got -1"),
    ],
)
def test_values_out_of_range_are_told(option: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(VIT, size=32, **option)
    assert str(caught.value) == message


def test_stochastic_depth_rises_linearly_and_networks_of_stages_take_it() -> None:
    """Huang et al. 2016, Eq. 4, as timm has it: 0 in the first block, the rate in the last."""
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0) for block in vit(depth=3, drop_path=0.4).blocks
    ]
    assert rates == pytest.approx([0.0, 0.2, 0.4])
    assert draws_in_training(build("timm:convnext_atto", drop_path=0.2))
    assert not draws_in_training(vit())
    with pytest.raises(UserError, match=r"drop_path: 0.1 .* resnet10 has no stochastic depth"):
        build("resnet10", drop_path=0.1)


def test_stochastic_depth_can_be_the_same_in_every_block() -> None:
    """As `drop_path_uniform` of DINOv2's and SimDINOv2's code has it."""
    model = vit(depth=3, drop_path=0.4, drop_path_uniform=True)
    rates = [drop.drop_prob for b in model.blocks for drop in (b.drop_path1, b.drop_path2)]
    assert rates == [0.4] * 6
    assert not draws_in_training(momentum_copy(model))
    assert not draws_in_training(vit(depth=3, drop_path=0.0, drop_path_uniform=True))
    assert draws_in_training(build("timm:convnext_atto", drop_path=0.2, drop_path_uniform=True))
    with pytest.raises(UserError, match="drop_path_uniform: applies to `drop_path`; give it too"):
        vit(depth=3, drop_path_uniform=True)
    with pytest.raises(UserError, match="drop_path_uniform: applies to `drop_path`; give it too"):
        ModelSettings(backbone=VIT, drop_path_uniform=True)


def test_momentum_encoders_keep_all_blocks() -> None:
    model = vit(drop_path=0.5)
    assert not draws_in_training(momentum_copy(model))
    assert draws_in_training(model)


@pytest.fixture
def method() -> Callable[[float], Method]:
    """MoCo v3 whose last block is often left out."""

    def make(drop_path: float) -> Method:
        torch.manual_seed(0)
        return build_method("mocov3", vit(drop_path=drop_path), 8, dim=8, hidden=8)

    return make


def test_what_is_dropped_is_drawn_from_the_steps_generator(method: Callable) -> None:
    """The same generator, the same loss and gradients, whatever was drawn before."""
    views = [torch.randn(8, 3, 16, 16) for _ in range(2)]

    def step(seed: int, drop_path: float = 0.5) -> tuple[float, torch.Tensor]:
        model = method(drop_path)
        torch.rand(seed + 5)  # what other parts of the program have drawn
        before = torch.get_rng_state()
        generator = torch.Generator().manual_seed(seed)
        found = objective(model, views, torch.arange(8), generator)
        found.loss.backward()
        assert torch.equal(torch.get_rng_state(), before)
        return found.loss.item(), model.backbone.blocks[1].mlp.fc1.weight.grad

    (loss, gradient), (again, same) = step(1), step(1)
    assert loss == again
    assert torch.equal(gradient, same)
    assert step(2)[0] != loss
    assert step(1, 0.0)[0] == step(2, 0.0)[0]


def test_an_encoder_is_rebuilt_from_its_facts() -> None:
    """Facts of earlier versions have neither depth nor registers: then the model's own."""
    facts = {
        "method": "mocov3", "backbone": VIT, "width": 1.0, "stem": "auto", "size": 16, "patch": 8,
        "heads": 2, "depth": 1, "registers": 2, "mean": [0.5] * 3, "std": [0.2] * 3,
        "color_space": "RGB",
    }  # fmt: skip
    encoder, _ = build_encoder(Path("x"), facts, channels_last=False)
    assert (len(encoder.blocks), encoder.num_prefix_tokens) == (1, 3)
    early = {key: facts[key] for key in facts if key not in ("depth", "registers")}
    encoder, _ = build_encoder(Path("x"), early, channels_last=False)
    assert (len(encoder.blocks), encoder.num_prefix_tokens) == (12, 1)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("class_token", [True, False])
def test_features_are_the_average_of_the_patches_tokens(registers: int, class_token: bool) -> None:
    """After the last norm, which is of each token: the weights are those of a class token's."""
    model = vit(registers=registers, class_token=class_token, pooling="average").eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = model.forward_features(images)
    assert tokens.shape == (2, class_token + registers + 4, 192)
    torch.testing.assert_close(model(images), tokens[:, -4:].mean(dim=1))
    torch.testing.assert_close(TokenEncoder(model, "x")(images).pooled, model(images))
    names = vit(registers=registers, class_token=class_token).state_dict().keys()
    assert model.state_dict().keys() == names
    assert ("cls_token" in names) == class_token


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (VIT, {"pooling": "max"}, "pooling: 'max' is unknown"),
        (VIT, {"pooling": "class", "class_token": False}, "'class' needs a class token"),
        ("timm:vit_medium_patch16_gap_240", {"pooling": "class"}, "has no class token"),
        (
            "timm:vit_base_patch16_siglip_224",
            {"pooling": "average"},
            "a trained pooling of its own",
        ),
        ("timm:deit_tiny_distilled_patch16_224", {"pooling": "average"}, "a pooling of its own"),
    ],
)
def test_a_pooling_that_would_be_ignored_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    size = 240 if "240" in name else 224
    with pytest.raises(UserError, match=message):
        build(name, size=size, depth=1, **options)


@pytest.mark.parametrize("to", ["timm", "hub"])
@pytest.mark.parametrize("class_token", [None, False])
def test_an_encoder_keeps_its_pooling(tmp_path: Path, class_token: bool | None, to: str) -> None:
    """Loaded from its file, imported and exported, with the heads that it has."""
    import timm

    words = {"backbone": VIT, "size": 16, "patch": 8, "heads": 2, "depth": 1}
    words |= {"pooling": "average", "class_token": class_token}
    run = tmp_path / "run"
    unmix.pretrain(
        method="simclr", data=[Image.new("RGB", (16, 16), (i, 9, 9)) for i in range(4)], epochs=1,
        batch_size=2, run=run, dim=8, logger="none", evaluate=False, device="cpu",
        **words,
    )  # fmt: skip
    encoder = unmix.load_encoder(run)
    images = torch.randn(2, 3, 16, 16)
    tokens = encoder.backbone.forward_features(images)
    expected = tokens[:, -4:].mean(dim=1)
    assert encoder.backbone.num_prefix_tokens == (class_token is None)
    torch.testing.assert_close(encoder(images), expected)
    import_weights(str(run), run=tmp_path / "imported", device="cpu", say=lambda _: None)
    torch.testing.assert_close(unmix.load_encoder(tmp_path / "imported")(images), expected)
    out = tmp_path / ("x.safetensors" if to == "timm" else "x")
    export(run, to=to, out=out, say=lambda _: None)
    if to == "hub":
        model = timm.create_model(f"local-dir:{out}", pretrained=True)
    else:
        source = Source(encoder, "x", None)  # type: ignore[arg-type]
        name, arguments = timm_arguments(source, "timm")
        model = timm.create_model(name, num_classes=0, **arguments, checkpoint_path=str(out))
    torch.testing.assert_close(model.eval()(images), expected)


def test_the_command_line_knows_the_poolings() -> None:
    assert CHOICES["pooling"] == POOLINGS


def test_weights_without_a_class_token_are_known_by_their_tensors() -> None:
    own = vit(class_token=False).state_dict()
    known = network_of(own)
    assert known is not None
    assert known.settings()["class_token"] is False
    assert "class_token" not in network_of(vit().state_dict()).settings()  # type: ignore[union-attr]


def test_attention_is_pytorchs_fused_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block calls `scaled_dot_product_attention` once, which picks the kernel."""
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **options: calls.append(args[0].shape) or fused(*args, **options),
    )
    vit(registers=1)(torch.randn(3, 3, 16, 16))
    assert calls == [(3, 2, 1 + 1 + 4, 96)] * 2
