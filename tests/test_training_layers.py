"""Layer-wise learning rates, and a backbone that is frozen for the first epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forked import program
from harness import OF_PATCHES, views_of
from harness import build as build_small
from harness import step as step_of
from unmix.backbones import HalfEncoders, ResNet, TokenEncoder, build, layer_scales
from unmix.cli import main
from unmix.config import OptimizerSettings, Settings
from unmix.errors import UserError
from unmix.methods import SimSiam
from unmix.training import pretrain
from unmix.training.loop.module import Pretraining
from unmix.training.loop.optimizers import build_optimizer, build_schedule, learning_rate
from unmix.training.run.parts import build_parts
from unmix.training.run.pretrain import settings_for

CPU = torch.device("cpu")


def by_name(backbone: nn.Module, decay: float) -> dict[str, float]:
    scales = layer_scales(backbone, decay)
    return {name: scales[p] for name, p in backbone.named_parameters()}


def test_a_transformer_has_the_rates_of_mae() -> None:
    """util/lr_decay.py there: depth + 1 layers; embedding 0, block i is i + 1, norm the last."""
    vit = build("timm:vit_tiny_patch16_224", size=32)
    depth = len(vit.blocks)
    for name, scale in by_name(vit, 0.65).items():
        if name.split(".")[0] in ("cls_token", "pos_embed", "patch_embed"):
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            assert name.startswith("norm.")
            layer = depth + 1
        assert scale == pytest.approx(0.65 ** (depth + 1 - layer))


def test_ibot_has_the_rates_of_dinov2_from_scratch() -> None:
    """param_groups.py there: mask token and patches in layer 0, patches times .2; heads have 1."""
    words = {
        "method": "ibot", "data": "digits", "backbone": "timm:vit_tiny_patch16_224", "patch": 4,
        "size": 8, "depth": 3, "limit": 32, "batch_size": 16, "device": "cpu", "lr": 0.5,
        "lr_decay": 0.9, "patch_embed_lr_mult": 0.2, "dim": 16, "hidden": 8, "bottleneck": 8,
    }  # fmt: skip
    module = build_parts(Settings.of(words)).module
    method, optimizer = module.method, module.configure_optimizers()["optimizer"]
    rates = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    vit: Any = method.backbone
    for name, parameter in vit.named_parameters():
        if name.startswith("blocks."):
            expected = 0.9 ** (3 - int(name.split(".")[1]))
        elif name.startswith("norm."):
            expected = 1.0
        else:
            expected = 0.9**4 * (0.2 if name.startswith("patch_embed.") else 1.0)
        assert rates[id(parameter)] == pytest.approx(expected), name
    head: Any = method.f.head
    assert rates[id(head.mask_token)] == pytest.approx(0.9**4)
    assert {rates[id(p)] for p in head.image.parameters() if p.requires_grad} == {1.0}


def test_learned_rotary_positions_are_of_the_embedding() -> None:
    vit = build("timm:vit_small_patch16_rope_mixed_224", size=16, patch=4, heads=2, depth=2)
    scales = layer_scales(vit, 0.5)
    found = {name: scales[p] for name, p in vit.named_parameters()}
    assert found["rope.freqs"] == found["patch_embed.proj.weight"] == 0.5**3
    assert {v for name, v in found.items() if name.startswith("norm.")} == {1.0}


def test_the_factor_of_patches_needs_no_decay_and_needs_patches() -> None:
    vit = build("timm:vit_tiny_patch16_224", size=32)
    scales = layer_scales(vit, 1.0, 0.2)
    assert {n for n, p in vit.named_parameters() if scales[p] == 0.2} == {
        "patch_embed.proj.weight", "patch_embed.proj.bias",
    }  # fmt: skip
    assert set(scales.values()) == {0.2, 1.0}
    with pytest.raises(
        UserError, match=r"patch_embed_lr_mult: 0[.]2 applies to vision transformers"
    ):
        layer_scales(ResNet("resnet10", width=0.1), 1.0, 0.2)


def test_a_resnet_has_a_rate_for_the_stem_and_each_stage() -> None:
    for backbone in (ResNet("resnet50", width=0.125), build("timm:resnet18")):
        found = by_name(backbone, 0.5)
        assert found["conv1.weight"] == found["bn1.bias"] == 0.5**5
        for stage in (1, 2, 3, 4):
            assert {s for n, s in found.items() if n.startswith(f"layer{stage}.")} == {
                0.5 ** (5 - stage)
            }


def test_other_backbones_are_taken_by_layers_or_by_the_stages_of_timm() -> None:
    alexnet = by_name(build("alexnet", width=0.05, size=32), 0.5)
    assert [alexnet[f"{n}.0.weight"] for n in ("conv1", "conv5", "fc6", "fc7")] == [
        0.5**7, 0.5**3, 0.5**2, 0.5,
    ]  # fmt: skip
    convnext = by_name(build("timm:convnext_atto"), 0.5)
    rates = [convnext[n] for n in ("stem.0.weight", "stages.0.blocks.0.norm.weight",
                                   "stages.3.blocks.1.norm.weight")]  # fmt: skip
    assert rates == sorted(rates)
    assert len(set(rates)) == 3
    with pytest.raises(UserError, match="lr_decay: the layers of Linear are not known"):
        layer_scales(nn.Linear(2, 2), 0.5)


def test_both_encoders_of_cmc_are_counted_by_themselves() -> None:
    found = by_name(HalfEncoders("resnet10", width=0.1), 0.5)
    for half in ("l", "ab"):
        assert found[f"{half}.conv1.weight"] == 0.5**5
        assert found[f"{half}.layer4.0.conv1.weight"] == 0.5


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars", "larc"])
def test_every_optimizer_takes_steps_in_proportion(name: str) -> None:
    """Without momentum and decay, the first step of a layer is its factor times the undecayed."""
    steps = {}
    for decay in (1.0, 0.5):
        torch.manual_seed(0)
        backbone = ResNet("resnet10", width=0.1, stem="small")
        before = {n: p.detach().clone() for n, p in backbone.named_parameters()}
        settings = OptimizerSettings(
            optimizer=name, lr=0.01, momentum=0.0, weight_decay=0.0, lr_decay=decay
        )
        optimizer = build_optimizer(settings, backbone.parameters(), CPU, (), backbone)
        build_schedule(optimizer, settings, 2, 5)
        for p in backbone.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        steps[decay] = {n: p.detach() - before[n] for n, p in backbone.named_parameters()}
    scales = by_name(backbone, 0.5)
    for n, step in steps[0.5].items():
        torch.testing.assert_close(step, steps[1.0][n] * scales[n], rtol=1e-3, atol=1e-6)


def test_a_module_of_constant_rate_keeps_it_and_the_schedule_scales_all_layers() -> None:
    method = SimSiam(ResNet("resnet10", width=0.1), dim=8, hidden=8, predictor_hidden=4)
    settings = OptimizerSettings(lr=0.4, lr_decay=0.5, final_lr=0.04)
    optimizer = build_optimizer(
        settings, method.parameters(), CPU, method.constant_lr_modules(), method.backbone
    )
    schedule = build_schedule(optimizer, settings, 1, 10)
    steady = {id(p) for m in method.constant_lr_modules() for p in m.parameters()}
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert learning_rate(optimizer) == pytest.approx(0.04)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert {rates[i] for i in steady} == {0.4}
    assert rates[id(method.backbone.conv1.weight)] == pytest.approx(0.04 * 0.5**5)
    assert rates[id(method.g[0].weight)] == pytest.approx(0.04)


def test_without_decay_the_groups_are_those_of_earlier_checkpoints() -> None:
    method = SimSiam(ResNet("resnet10", width=0.1), dim=8, hidden=8, predictor_hidden=4)
    parts = (OptimizerSettings(optimizer="adamw"), list(method.parameters()), CPU, ())
    groups = build_optimizer(*parts, method.backbone).param_groups
    assert [list(g) for g in groups] == [list(g) for g in build_optimizer(*parts).param_groups]
    assert not any("lr_scale" in g for g in groups)


TINY: dict[str, Any] = {
    "data": "digits", "backbone": "resnet10", "width": 0.25, "size": 8, "limit": 64,
    "batch_size": 16, "knn_every": 0, "evaluate": False, "logger": "none", "device": "cpu",
    "precision": "32", "epochs": 3, "checkpoint_every": 1, "freeze_backbone_epochs": 2,
}  # fmt: skip
FROZEN: dict[str, dict[str, Any]] = {
    "moco": {"queue_size": 64, "bn_splits": 2, "unmix": True},
    "moco-lars": {"method": "moco", "queue_size": 64, "optimizer": "lars", "lr": 0.3},
    "byol": {"hidden": 16, "dim": 8, "optimizer": "adamw", "lr": 1e-3},
    "cmc": {"negatives": 32, "IM": True},
    "dino": {"dim": 32, "hidden": 16, "bottleneck": 8, "local_crops": 2, "local_size": 4},
    "ibot": {
        "backbone": "timm:vit_tiny_patch16_224", "width": 1.0, "patch": 4, "depth": 1,
        "dim": 32, "hidden": 16, "bottleneck": 8, "limit": 32,
    },
    "swav": {"prototypes": 8, "hidden": 16, "queue_size": 0, "freeze_prototypes_steps": 6},
    "mocov3-vit": {
        "method": "mocov3", "backbone": "timm:vit_tiny_patch16_224", "width": 1.0, "patch": 4,
        "hidden": 16, "dim": 8, "freeze_patch_embedding": True, "limit": 32,
    },
}  # fmt: skip


def weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def of_backbones(module: Pretraining) -> set[str]:
    """Names of all parameters and buffers of the backbone and its momentum copies."""
    theirs = {
        id(tensor)
        for part in (module.method.backbone, *module.method.momentum_backbones)
        for tensor in (*part.parameters(), *part.buffers())
    }
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name for name, tensor in named if id(tensor) in theirs}


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_backbone_does_not_change_and_trains_after(name: str, tmp_path: Path) -> None:
    """Weights and batch norm's statistics, of momentum copies too; heads are trained meanwhile."""
    words = {"method": name, **TINY, **FROZEN[name], "run": str(tmp_path / "run")}
    module = build_parts(settings_for(words)[0]).module
    start = {n: t.clone() for n, t in module.state_dict().items()}
    held = of_backbones(module)
    fixed = {n for n, p in module.named_parameters() if not p.requires_grad}
    stays = "patch_embed" if words.get("freeze_patch_embedding") else None
    fixed -= {
        n for n in fixed if (".f_k." in n or ".f_t." in n) and (stays is None or stays not in n)
    }
    pretrain(**words)
    second, third = (weights(tmp_path / f"run/checkpoints/epoch-000{e}.ckpt") for e in (2, 3))
    assert [n for n in held if not torch.equal(second[n], start[n])] == []
    heads = {n for n, p in module.named_parameters() if p.requires_grad} - held
    assert any(not torch.equal(second[n], start[n]) for n in heads)
    still = {n for n in held if torch.equal(third[n], start[n])}
    assert {n for n in still if n.endswith(("weight", "running_mean"))} == {
        n for n in fixed & held if n.endswith("weight")
    }


def test_a_frozen_backbone_is_as_still_when_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_ = torch.compile

    def plainly(model: Any, **options: Any) -> Any:
        return compile_(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", plainly)
    torch._dynamo.reset()
    words = {**TINY, "method": "simclr", "epochs": 2, "freeze_backbone_epochs": 1}
    ends = []
    for how in ("yes", "no"):
        if how == "yes":
            monkeypatch.setattr(
                nn.Module, "compile",
                lambda self, **o: setattr(
                    self, "_compiled_call_impl",
                    compile_(self._call_impl, backend="eager", **o)),
            )  # fmt: skip
        pretrain(**words, compile=how, run=str(tmp_path / how))
        ends.append([weights(tmp_path / how / f"checkpoints/epoch-000{e}.ckpt") for e in (1, 2)])
    for compiled, plain in zip(*ends, strict=True):
        for name, value in plain.items():
            torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_freeze_as_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--method", "moco", "--data", "digits", "--limit", "64", "--batch_size", "16",
             "--size", "8", "--backbone", "resnet10", "--width", "0.25", "--queue_size", "32",
             "--device", "cpu", "--precision", "32", "--logger", "none", "--no-evaluate",
             "--epochs", "2", "--freeze_backbone_epochs", "1", "--checkpoint_every", "1",
             "--knn_every", "0", "--bn_splits", "2", "--lr_decay", "0.5",
             "--devices", "2"]  # fmt: skip
    said, words = tmp_path / "said", ["pretrain", *words, "--run", str(run)]
    assert program(words, said, devices=2).wait() == 0, said.read_text()
    module = build_parts(Settings.of({**TINY, "method": "moco", "queue_size": 32})).module
    start, held = module.state_dict(), of_backbones(module)
    first, second = (weights(run / f"checkpoints/epoch-000{e}.ckpt") for e in (1, 2))
    assert [n for n in held if not torch.equal(first[n], start[n])] == []
    assert all(
        not torch.equal(second[n], start[n]) for n in held if n.endswith(("conv1.weight", "_mean"))
    )


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--lr_decay", "0"], "--lr_decay: 0 is out of range; it must be greater than 0 and at"),
        (["--lr_decay", "1.5"], "--lr_decay: 1.5 is out of range"),
        (["--freeze_backbone_epochs", "-1"], "--freeze_backbone_epochs: -1 is out of range"),
        (
            ["--epochs", "3", "--freeze_backbone_epochs", "3"],
            "--freeze_backbone_epochs: 3 of --epochs 3 would leave the backbone untrained; it must "
            "be at most 2.",
        ),
        (["--layer_decay", "0.7"], "--lr_decay"),
        (["--freeze_backbone", "2"], "--freeze_backbone_epochs"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    flags: list[str],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", *flags, "--run", "nowhere"]) == 2
    assert line in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_a_run_says_what_its_layers_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {**TINY, "method": "simclr", "epochs": 2, "freeze_backbone_epochs": 1, "lr": 0.08}
    pretrain(**words, lr_decay=0.5, run=str(tmp_path / "run"))
    out = capsys.readouterr().out
    assert (
        "0.08 for what follows the backbone's layers, times 0.5 for each layer before, to 0.0025"
        in out
    )
    assert "backbone: frozen for the first epoch, weights and batch-norm statistics" in out
    assert "what is frozen are random weights; --init starts from trained ones" in out


def test_the_rate_of_a_mask_token_that_the_encoder_takes_is_the_class_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SimDINOv2's and SimMIM's had that of the heads, 14 times the released one in a ViT-L."""
    taken: list[Any] = []
    forward = TokenEncoder.forward

    def noted(self: Any, *images: Any, **options: Any) -> Any:
        taken.append(options.get("mask_token"))
        return forward(self, *images, **options)

    monkeypatch.setattr(TokenEncoder, "forward", noted)
    settings = OptimizerSettings(lr_decay=0.5)
    found = []
    for kind in OF_PATCHES:
        method = build_small(kind)
        taken.clear()
        step_of(method, views_of(method))
        optimizer = build_optimizer(
            settings, method.parameters(), CPU, (), method.backbone, embeddings=method.embeddings()
        )
        rates = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
        tokens = {id(token): token for token in taken if token is not None}
        found += [kind] * len(tokens)
        vit: Any = method.backbone
        assert {rates[each] for each in tokens} <= {rates[id(vit.cls_token)]} == {0.25}
    assert sorted(found) == ["ibot", "simdino-v2", "simmim"]


@pytest.mark.parametrize("kind", sorted(OF_PATCHES))
def test_a_mask_token_has_weight_decay(kind: str) -> None:
    """As in the released code of all five, where it is (1, D) or (1, 1, D)."""
    method = build_small(kind)
    settings = OptimizerSettings(optimizer="adamw", weight_decay=0.05)
    optimizer = build_optimizer(settings, method.parameters(), CPU, (), method.backbone)
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    trained = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    tokens = [p for name, p in trained if name.endswith("mask_token")]
    assert [decays[id(token)] for token in tokens] == [0.05]
    norms = [p for name, p in method.backbone.named_parameters() if name.endswith("norm.weight")]
    assert {decays[id(p)] for p in norms} == {0.0}


@pytest.mark.parametrize("optimizer", ["adamw", "lars", "sgd"])
@pytest.mark.parametrize("method", ["simmim", "mae"])
def test_simmims_class_token_and_positions_have_no_weight_decay(
    method: str, optimizer: str
) -> None:
    """As `no_weight_decay` of its released transformer says; MAE's code decays the token."""
    chosen: dict[str, Any] = {
        **TINY, "method": method, "backbone": "timm:vit_tiny_patch16_224", "patch": 2, "depth": 1,
        "optimizer": optimizer, "decay_all": False, "weight_decay": 0.05, "clip_grad": 0.0,
        "final_weight_decay": 0.1,
    }  # fmt: skip
    module = build_parts(settings_for({k: v for k, v in chosen.items() if k != "width"})[0]).module
    built = module.configure_optimizers()
    built["lr_scheduler"]["scheduler"].refresh()
    word = "decay" if optimizer == "lars" else "weight_decay"
    decays = {id(p): g[word] for g in built["optimizer"].param_groups for p in g["params"]}
    vit: Any = module.method.backbone
    expected = 0.0 if method == "simmim" else 0.05
    assert decays[id(vit.cls_token)] == expected
    assert vit.pos_embed.requires_grad is (method == "simmim")
    assert decays.get(id(vit.pos_embed), expected) == expected
    assert decays[id(vit.patch_embed.proj.weight)] == 0.05
