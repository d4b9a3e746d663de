"""What is not finite is never saved, what exploded is not exported; advice fits the method."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unmix.config import GROUPS, Settings, field_names, method_options
from unmix.errors import UserError
from unmix.methods import METHODS, MoCo
from unmix.training import pretrain
from unmix.training.loop.health import Health, advice_for
from unmix.training.loop.module import Pretraining

TINY: dict[str, Any] = {
    "data": "digits", "limit": 48, "backbone": "resnet10", "width": 0.125, "size": 8,
    "batch_size": 16, "epochs": 4, "knn_every": 0, "logger": "none", "device": "cpu",
    "precision": "32",
}  # fmt: skip
NOT_FINITE = r"^the features of 48 of 48 images are not finite.*; try a smaller --lr"
MOCO = {"method": "moco", "queue_size": 32, "bn_splits": 1}


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU between two looks at the loss: no step reads it."""
    monkeypatch.setattr(Pretraining, "check_loss", lambda self: None)


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, what: str) -> None:
    """Make the loss, or a weight, not a number in one step."""
    compute, after = Pretraining.compute, Pretraining.on_after_backward

    def spoiled(self: Pretraining, *arguments: Any) -> Any:
        step = compute(self, *arguments)
        if self.global_step != at:
            return step
        return dataclasses.replace(step, loss=step.loss * torch.nan)

    def spoiled_gradient(self: Pretraining) -> None:
        after(self)
        if self.global_step == at:
            gradient = next(p.grad for p in self.parameters() if p.grad is not None)
            gradient.view(-1)[0] = torch.nan

    if what == "loss":
        monkeypatch.setattr(Pretraining, "compute", spoiled)
    else:
        monkeypatch.setattr(Pretraining, "on_after_backward", spoiled_gradient)


@pytest.mark.parametrize("evaluate", [True, False])
@pytest.mark.parametrize("what", ["loss", "weight"])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_diverges_keeps_its_last_good_checkpoint(
    unseen: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    what: str, evaluate: bool, steps: int,
) -> None:  # fmt: skip
    spoil(monkeypatch, 7, what)
    with pytest.raises(UserError, match=r"(the loss is nan|not finite) at step \d+.*--lr"):
        pretrain(run=str(tmp_path / "r"), evaluate=evaluate, checkpoint_steps=steps, **TINY, **MOCO)
    kept = torch.load(tmp_path / "r" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == (7 if steps else 6)
    values = [v for v in kept["state_dict"].values() if v.is_floating_point()]
    assert all(bool(v.isfinite().all()) for v in values)
    assert not (tmp_path / "r" / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "lr"), [("moco", 1e9), ("simclr", 1e9), ("barlow", 1e3), ("barlow", 1e9)]
)
def test_a_learning_rate_beyond_all_reason_is_no_success(
    method: str, lr: float, tmp_path: Path
) -> None:
    own = MOCO if method == "moco" else {"method": method}
    small = {"hidden": 32, "dim": 16} if method == "barlow" else {}
    with pytest.raises(UserError, match=r"try a smaller --lr"):
        pretrain(run=str(tmp_path / "r"), lr=lr, optimizer="sgd", evaluate=False,
                 **TINY, **own, **small)  # fmt: skip
    assert not (tmp_path / "r" / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("fill", "why"),
    [
        (1.0, "is not exported: it gives all images the same"),
        (torch.nan, NOT_FINITE),
    ],
)
def test_an_encoder_without_use_is_not_exported(
    fill: float, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(self: MoCo, images: Tensor) -> Tensor:
        return torch.full((len(images), 8), fill)

    monkeypatch.setattr(MoCo, "features", features)
    with pytest.raises(UserError, match=why):
        pretrain(run=str(tmp_path / "r"), evaluate=False, **TINY, **MOCO)
    assert (tmp_path / "r" / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "r" / "encoder.safetensors").exists()
    assert not (tmp_path / "r" / "results.json").exists()


@pytest.mark.parametrize("method", METHODS)
def test_each_flag_that_is_advised_exists_for_the_method(method: str) -> None:
    words: dict[str, Any] = {"method": method, "precision": "bf16"}
    known = {name for group in GROUPS for name in field_names(group)} | set(method_options(method))
    contrasts = ("softmax", "nce") if "contrast" in known else (None,)
    for contrast in contrasts:
        own = {} if contrast is None else {"contrast": contrast}
        advice = advice_for(Settings.of({**words, **own}))
        texts = (advice.if_diverged, advice.if_collapsed, advice.if_not_learning)
        flags = {flag for text in texts for flag in re.findall(r"--(\w+)", text)}
        assert {"lr", "precision", "epochs"} <= flags <= known
        assert ("--contrast softmax" in advice.if_diverged) == (contrast == "nce")
        assert ("queue_size" in flags) == (method in ("densecl", "moco", "nnbyol", "ressl"))


def test_what_is_advised_for_insdis_with_few_images_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {**TINY, "width": 0.25, "limit": 150, "batch_size": 25, "method": "insdis",
             "negatives": 64, "evaluate": False}  # fmt: skip
    nce = pretrain(run=str(tmp_path / "nce"), contrast="nce", **words)
    (warning,) = [
        line for line in capsys.readouterr().out.splitlines() if "warning: diverging" in line
    ]
    assert "try --contrast softmax" in warning
    softmax = pretrain(run=str(tmp_path / "softmax"), contrast="softmax", **words)
    assert "diverging" not in capsys.readouterr().out
    assert softmax.training["loss"] < 10 < nce.training["loss"]


def test_a_loss_is_judged_beside_what_it_began_with_and_the_chance_level() -> None:
    health = Health(4.0)
    health.first_loss = 2.0
    assert health.warnings({"loss": 39.0}, 0.1) == []
    (line,) = health.warnings({"loss": 41.0}, 0.1)
    assert "41 (2 at the first step, 4 at chance level)" in line
