"""`--clip_grad`: norms of gradients against PyTorch's, in a run, in parts, of sharded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from unmix.cli import main
from unmix.config import OptimizerSettings, Settings
from unmix.methods import METHODS
from unmix.training.loading.loaders import build_loader
from unmix.training.loop.clipping import clip_gradients, clipped_together
from unmix.training.loop.module import Pretraining
from unmix.training.loop.optimizers import build_optimizer
from unmix.training.run.parts import build_parts

TINY: dict[str, Any] = {
    "data": "digits", "method": "byol", "hidden": 16, "dim": 8, "backbone": "resnet10",
    "width": 0.1, "size": 8, "limit": 32, "batch_size": 16, "epochs": 1, "device": "cpu",
    "precision": "32", "optimizer": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0,
    "schedule": "constant",
}  # fmt: skip
LIMIT = 0.05


def with_gradients(scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [nn.Parameter(torch.randn(n, 3, generator=generator)) for n in (2, 5, 1, 4)]
    for n, parameter in enumerate(found[:-1]):
        parameter.grad = scale * (n + 1) * torch.randn(parameter.shape, generator=generator)
    return found


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("groups", [[[0, 1, 2, 3]], [[0, 3], [1, 2]], [[0], [1], [2], [3]], [[3]]])
def test_each_group_is_clipped_as_by_pytorch(scale: float, groups: list[list[int]]) -> None:
    """Long ones to the limit, short ones not at all; the last parameter has no gradient."""
    ours, theirs = with_gradients(scale), with_gradients(scale)
    clip_gradients([[ours[i] for i in group] for group in groups], 2.0)
    for group in groups:
        torch.nn.utils.clip_grad_norm_([theirs[i] for i in group], 2.0)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_groups_are_all_networks_or_parameters_that_are_trained() -> None:
    parts = build_parts(Settings.of(TINY))
    method = parts.module.method
    trained = {p for p in method.parameters() if p.requires_grad}
    for by in ("all", "network", "parameter"):
        found = [p for group in clipped_together(method, by) for p in group]
        assert len(found) == len(set(found))
        assert set(found) == trained
    assert len(clipped_together(method, "all")) == 1
    assert [set(group) for group in clipped_together(method, "network")] == [
        set(part.parameters()) for part in (method.f, method.g, method.q)
    ]
    assert len(clipped_together(method, "parameter")) == len(trained)


@pytest.mark.parametrize("name", ["ibot", "mae", "swav"])
def test_what_is_in_no_network_has_a_norm_too(name: str) -> None:
    """Mask tokens and the like."""
    words: dict[str, Any] = {"method": name, "backbone": "timm:vit_tiny_patch16_224", "patch": 4}
    more = {"depth": 1, "data": "digits", "size": 8, "limit": 16, "device": "cpu"}
    method = build_parts(Settings.of({**words, **more})).module.method
    groups = clipped_together(method, "network")
    assert {p for group in groups for p in group} == {
        p for p in method.parameters() if p.requires_grad
    }
    assert name in METHODS


class Spy(L.Callback):
    """The gradients of each step, as the optimizer takes them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        found = module.method.named_parameters()
        self.seen.append({n: p.grad.clone() for n, p in found if p.grad is not None})


def one_step(clip: float, scaler: bool = False, **words: Any) -> tuple[dict[str, Tensor], Any]:
    """The gradients of the first step, and the module."""
    settings = Settings.of({**TINY, "clip_grad": clip, **words})
    module: Pretraining = build_parts(settings).module
    spy = Spy()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, max_epochs=1, logger=False, callbacks=[spy],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=settings.optimizer.clip_grad or None,
        plugins=[Scaled()] if scaler else [],
    )  # fmt: skip
    trainer.fit(module, build_loader(module.images, module.views, module.order))
    return spy.seen[0], module


def norm(gradients: dict[str, Tensor]) -> float:
    return torch.stack([g.norm() for g in gradients.values()]).norm().item()


@pytest.mark.parametrize("by", ["all", "network", "parameter"])
def test_a_run_takes_steps_of_clipped_gradients(by: str) -> None:
    """Of the same direction; with one norm for all, of the length of the limit."""
    plain, clipped = one_step(0.0)[0], one_step(LIMIT, clip_grad_by=by)[0]
    assert norm(plain) > 10 * LIMIT
    assert one_step(1e6, clip_grad_by=by)[0].keys() == plain.keys()
    for name, gradient in clipped.items():
        ratio = gradient.norm() / plain[name].norm().clamp(min=1e-12)
        torch.testing.assert_close(gradient, ratio * plain[name], rtol=1e-3, atol=1e-7)
    if by == "all":
        assert norm(clipped) == pytest.approx(LIMIT, rel=1e-3)
    elif by == "parameter":
        assert max(g.norm() for g in clipped.values()) == pytest.approx(LIMIT, rel=1e-3)
    else:
        for start in ("f.", "g.", "q."):
            own = {n: g for n, g in clipped.items() if n.startswith(start)}
            assert norm(own) == pytest.approx(LIMIT, rel=1e-3)


def test_gradients_below_the_limit_stay_as_they_are() -> None:
    for a, b in zip(one_step(0.0)[0].values(), one_step(1e6)[0].values(), strict=True):
        assert torch.equal(a, b)


def test_parts_of_a_step_are_clipped_together() -> None:
    """Not each part: their sum is as long as the limit."""
    words = {
        "method": "dino", "backbone": "timm:vit_tiny_patch16_224", "width": 1.0, "patch": 4,
        "depth": 1, "hidden": 16, "dim": 24, "bottleneck": 8, "head_bn": False, "limit": 16,
    }  # fmt: skip
    whole, parts = (one_step(LIMIT, **words, accumulate=n)[0] for n in (1, 4))
    assert norm(whole) == pytest.approx(LIMIT, rel=1e-3)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


class Scaled(MixedPrecision):
    """Lightning's scaling of gradients as for float16, of a network in float32."""

    def __init__(self) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        super().__init__("16-mixed", "cpu", scaler)

    def autocast_context_manager(self) -> Any:
        return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_scaled_gradients_are_clipped_at_their_true_size(optimizer: str) -> None:
    """A fused optimizer would clip what is 4,096 times as long, and Lightning refuses it."""
    words = {"optimizer": optimizer, "lr": 0.01}
    plain, module = one_step(LIMIT, **words)
    scaled, other = one_step(LIMIT, scaler=True, **words)
    for name, gradient in plain.items():
        torch.testing.assert_close(scaled[name], gradient, rtol=1e-3, atol=1e-7)
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_without_clipping_float16_keeps_its_fused_step() -> None:
    weight = nn.Parameter(torch.ones(2))
    settings = OptimizerSettings(optimizer="adamw")
    device = torch.device("cpu")
    assert build_optimizer(settings, [weight], device).param_groups[0]["fused"]
    assert not build_optimizer(settings, [weight], device, fused=False).param_groups[0]["fused"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--clip_grad", "-1"], "--clip_grad: -1 is out of range"),
        (["--clip_grad_by", "network"], "--clip_grad_by: does nothing without a limit; give "),
        (["--clip_grad", "3", "--clip_grad_by", "layer"], "--clip_grad_by: 'layer' is unknown"),
        (["--gradient_clip_val", "3"], "--clip_grad"),
        (["--max_grad_norm", "3"], "--clip_grad"),
        (["--patch_embed_lr_mult", "0"], "--patch_embed_lr_mult: 0 is out of range"),
        (
            ["--patch_embed_lr_mult", ".2", "--dry_run"],
            "--patch_embed_lr_mult: 0.2 applies to vision transformers alone, and ResNet has no",
        ),
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
    assert main(["pretrain", "--data", "digits", *flags, "--run", "nowhere"]) == 2
    assert line in capsys.readouterr().err
    assert not Path("nowhere").exists()
