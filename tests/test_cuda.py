"""On a CUDA device: what is drawn and mixed, runs from start to use, and stops, as on a CPU.

`python benchmarks/gpu.py` checks every method and mixture there; this is what users do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import unmix
from unmix.backbones import build
from unmix.cli import main
from unmix.mixtures import (
    Cutout,
    DirichletMixture,
    FMix,
    GridMix,
    ImageMixture,
    MixMask,
    RandomErasing,
    RegionSwap,
    ResizeMix,
    SaliencyMix,
    SmoothMix,
    UnMix,
)
from unmix.training import pretrain
from unmix.training.loop.module import Pretraining

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

OPERATORS = (
    UnMix(0.0), UnMix(1.0), UnMix(per="sample"), ResizeMix(), GridMix(cells=2), RegionSwap(),
    FMix(), MixMask(), SmoothMix(), SaliencyMix(), DirichletMixture(),
    ImageMixture(g_prob=1, r_prob=1), Cutout(cutout_p=1), RandomErasing(random_erasing_prob=1),
)  # fmt: skip
RUN: dict[str, Any] = {
    "data": "photos", "method": "moco", "queue_size": 256, "backbone": "resnet10", "width": 0.25,
    "limit": 640, "batch_size": 64, "epochs": 3, "knn_every": 0, "logger": "none", "unmix": True,
    "device": "cuda", "compile": "no",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "run"
    pretrain(run=str(folder), **RUN)
    return folder


def top1(words: list[str], capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    return float((found[0] if isinstance(found, list) else found)["top1"])


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda each: type(each).__name__)
def test_the_same_draw_makes_the_same_images(operator):
    images = torch.rand(8, 3, 32, 32)
    generator = torch.Generator().manual_seed(3)
    if hasattr(operator, "draw_for"):
        draw = operator.draw_for(images, generator)
    else:
        draw = operator.draw(images.shape, generator)
    there = draw.apply(images.cuda())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), draw.apply(images), atol=1e-5, rtol=1e-5)
    assert not torch.equal(there.cpu(), images)


def test_a_run_learns_and_its_encoder_is_the_same_on_both_devices(run, capsys, tmp_path):
    for command in ("knn", "probe"):
        found = [
            top1([command, str(run), "--device", device, "--json"], capsys)
            for device in ("cuda", "cpu")
        ]
        assert found[0] > 35  # chance is 10%, raw pixels 40%
        assert abs(found[0] - found[1]) < 2
    features = []
    for device in ("cuda", "cpu"):
        out = tmp_path / f"{device}.npz"
        assert main(["embed", str(run), "--device", device, "--out", str(out)]) == 0
        with np.load(out) as file:
            features.append(torch.from_numpy(file["features"]).float())
    cosine = nn.functional.cosine_similarity(*features)
    assert cosine.min() > 0.999


@pytest.mark.parametrize(
    "others",
    [
        {"precision": "32"}, {"precision": "16"}, {"compile": "auto"}, {"compile": "yes"},
        {"accumulate": 2},
        {"resident": "no"}, {"workers": 2, "resident": "no"}, {"checkpoint_activations": True},
        {"IM": True, "g_prob": 1.0, "r_prob": 1.0}, {"mix_from_epoch": 1}, {"bn_splits": 4},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_the_machine_train_alike(others, tmp_path):
    found = pretrain(run=str(tmp_path / "run"), **{**RUN, **others})
    assert found.training["steps"] == 30
    assert 0 < found.training["loss"] < 12
    final = found.final("knn")
    assert final is not None
    assert final.top1 > 30


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    settings = {**RUN, "precision": "32"}
    whole = pretrain(run=str(tmp_path / "whole"), **settings)
    step = Pretraining.training_step

    def stop_at_15(self, batch, batch_idx):
        if self.global_step == 15:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Pretraining, "training_step", stop_at_15)
    stopped = tmp_path / "stopped"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(run=str(stopped), checkpoint_steps=4, **settings)
    monkeypatch.setattr(Pretraining, "training_step", step)
    resumed = pretrain(run=str(stopped), checkpoint_steps=4, **settings)
    assert resumed.training["steps"] == whole.training["steps"]
    # Sums on the device are of no fixed order.
    assert resumed.training["loss"] == pytest.approx(whole.training["loss"], rel=0.05)


def test_steps_of_an_own_loop_with_the_images_on_the_device():
    method = unmix.MoCo(build("resnet10", width=0.25, size=32), 32, queue_size=128)
    step = unmix.Stepper(
        method, steps_per_epoch=12, epochs=1, mixture=unmix.UnMix(per="sample")
    ).cuda()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
    images, index = torch.rand(32, 3, 32, 32, device="cuda"), torch.arange(32)
    before = method.state_dict()["queue.keys"].clone()
    for _ in range(12):
        loss = step([images, images.flip(3)], index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert step.steps == 12
    assert not torch.equal(before, method.state_dict()["queue.keys"])
