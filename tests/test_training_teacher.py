"""`--teacher`: which networks it builds of what, what a run says, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import unmix
from checkpoints import randomized, resnet
from unmix.cli import main
from unmix.config import Settings
from unmix.errors import UserError
from unmix.methods import Distill
from unmix.training import pretrain
from unmix.training.run.checkpoints import AtomicCheckpoints
from unmix.training.run.parts import build_parts
from unmix.training.run.taught import teacher_of

TINY: dict[str, Any] = {
    "data": "digits", "limit": 64, "batch_size": 32, "epochs": 1, "size": 16,
    "backbone": "resnet10", "width": 0.125, "stem": "small", "evaluate": False, "knn_every": 0,
    "device": "cpu", "precision": "32", "logger": "none", "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that can be a teacher, with a stem that its tensors do not show."""
    folder = tmp_path_factory.mktemp("teacher") / "big"
    words = {**TINY, "width": 0.25, "stem": "medium", "dim": 8, "hidden": 8, "method": "simclr"}
    pretrain(**words, run=folder)
    return folder


def opened(teacher: Any, **words: Any) -> Any:
    found = teacher_of(Settings.of({"method": "distill", "teacher": str(teacher), **words}))
    assert found is not None
    return found


def saved(network: nn.Module, path: Path) -> Path:
    torch.save({"state_dict": network.state_dict()}, path)
    return path


def flags(**words: Any) -> list[str]:
    given = {k: v for k, v in {**TINY, "method": "distill", **words}.items() if k != "evaluate"}
    return [part for k, v in given.items() for part in (f"--{k}", str(v))] + ["--no-evaluate"]


def test_a_run_is_a_teacher_with_its_own_network_stem_size_and_normalization(big: Path) -> None:
    teacher = opened(big, teacher_size=64)
    facts = unmix.load_encoder(big).facts
    assert teacher.trained.size == 64
    assert list(teacher.mean) == facts["mean"]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = unmix.load_encoder(big).backbone(images)
        torch.testing.assert_close(teacher.trained.network(images), expected)
    assert opened(big).trained.size == 16


def test_a_run_distills_says_how_the_teacher_sees_and_saves_nothing_of_it(
    big: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "small"
    assert main(["pretrain", *flags(teacher=big, run=run, teacher_size=24, unmix_rule="exact"),
                 "--unmix", "--teacher_mean", "0.1", "0.2", "0.3"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "teacher: resnet10 of width 0.25, 0.3 M parameters, 128 features, frozen; " in said
    assert "it sees the views resized from 16 to 24 px, normalized by mean 0.1 0.2 0.3" in said
    assert "mixture: exact target" in said
    words = yaml.safe_load((run / "config.yaml").read_text())
    assert words["teacher"] == str(big)
    assert len(words["teacher_sha256"]) == 64
    state = AtomicCheckpoints().load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert not any("teacher" in key for key in state)
    # The student has its own width, and is an encoder like any.
    assert unmix.load_encoder(run).feature_dim == 64
    assert json.loads((run / "results.json").read_text())["method"] == "distill"


def test_a_run_goes_on_with_the_same_teacher_wherever_it_is_and_no_other(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network = unmix.load_encoder(big).backbone
    words = {**TINY, "method": "distill", "run": "r"}
    numbers = {"teacher_backbone": "resnet10"}
    first = saved(unmix.backbones.build("resnet10", size=16, stem="small"), tmp_path / "t.pth")
    pretrain(**words, teacher=str(first), **numbers)
    whole = unmix.load_encoder("r").backbone.state_dict()

    def unfinished() -> None:
        for name in ("encoder.safetensors", "results.json"):
            Path("r", name).unlink()

    unfinished()
    first.rename("moved.pth")
    with pytest.raises(UserError, match=r"t\.pth does not exist"):
        pretrain(run="r")
    capsys.readouterr()
    pretrain(run="r", teacher="moved.pth")
    again = unmix.load_encoder("r").backbone.state_dict()
    assert all(torch.equal(again[key], value) for key, value in whole.items())
    unfinished()
    pretrain(run="r")  # the place is kept
    unfinished()
    saved(randomized(network, 3), tmp_path / "moved.pth")
    with pytest.raises(UserError) as caught:
        pretrain(run="r")
    assert "moved.pth is not the file that it was" in str(caught.value)
    assert caught.value.on_command_line().startswith("--teacher: ")
    assert "leave --teacher_sha256 out" in caught.value.on_command_line()
    saved(randomized(network, 4), tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds another run: its teacher is"):
        pretrain(run="r", teacher="other.pth")


def test_one_line_says_what_is_wrong_with_a_teacher(
    big: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**words: Any) -> str:
        assert main(["pretrain", *flags(run=tmp_path / "never", **words)]) == 2
        assert not (tmp_path / "never").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("unmix: error: ")

    assert refused().startswith("--teacher: required by --method distill: the trained network")
    assert refused(teacher_size=3).startswith("--teacher_size: applies to --teacher; give it too")
    line = refused(method="moco", teacher=big)
    assert line.startswith("--teacher: applies only to --method distill")
    assert refused(teacher=tmp_path / "gone.pth").startswith("--teacher: ")
    torch.save({"epoch": 3, "names": ["a"]}, tmp_path / "empty.pth")
    assert "empty.pth has no tensors where" in refused(teacher=tmp_path / "empty.pth")
    gray = unmix.backbones.build("resnet10", in_channels=1, size=16)
    line = refused(teacher=saved(gray, tmp_path / "gray.pth"))
    assert "gray.pth is for images of 1 channel, and the views have 3 (RGB)" in line
    part = resnet().state_dict()
    del part["layer4.1.bn2.weight"]
    torch.save(part, tmp_path / "part.pth")
    line = refused(teacher=tmp_path / "part.pth")
    assert "lacks 1 of the" in line
    assert "layer4.1.bn2.weight" in line
    torch.save({"stage.weight": torch.zeros(3, 3), "x.bias": torch.zeros(3)}, tmp_path / "odd.pth")
    line = refused(teacher=tmp_path / "odd.pth")
    assert line.startswith(("--teacher_backbone: ", "--teacher: "))
    for text in (line, refused(teacher="timm:no_such_model")):
        assert "init" not in text
    line = refused(teacher="torchvision:resnet18", teacher_sha256="12")
    assert line.startswith("--teacher_sha256: '12' is not a SHA-256")


def test_an_encoder_of_cmc_is_no_teacher(tmp_path: Path) -> None:
    halves = unmix.backbones.HalfEncoders("resnet10", width=0.125, size=16)
    with pytest.raises(UserError, match=r"is an encoder of CMC .* the views are RGB"):
        opened(saved(halves, tmp_path / "cmc.pth"))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_any_classifier_of_torchvision_is_a_teacher_without_its_last_layer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file in the cache, as it is fetched; the features are what the last layer is given."""
    from torchvision import models

    network = models.get_model(name, weights=None).eval()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    url = models.get_model_weights(name)["DEFAULT"].url
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    teacher = opened(f"torchvision:{name}")
    seen: list[torch.Tensor] = []
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network(images)
        torch.testing.assert_close(teacher.trained.network(images), seen[0])
    assert teacher.trained.feature_dim == last.in_features
    assert (teacher.trained.size, teacher.trained.preparation.source) == (224, "torchvision")


def test_a_model_of_timm_is_a_teacher_at_a_size_that_its_patches_fill(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    vit = unmix.backbones.build("timm:vit_tiny_patch16_224", size=224)
    path = saved(vit, tmp_path / "vit.pth")
    teacher = opened(path, teacher_size=32)
    assert "interpolated" not in teacher.notes(32, teacher.mean, teacher.std)[0]
    assert "position embeddings from 197 tokens to 5 tokens" in teacher.trained.loaded
    (line,) = teacher.notes(32, teacher.mean, teacher.std)
    assert line.endswith("it sees the views as they are")
    assert "ImageNet's" in teacher.notes(32, (0.5,) * 3, (0.5,) * 3)[0]
    with pytest.raises(UserError) as caught:
        opened(path, teacher_size=40)
    assert caught.value.on_command_line().startswith("--teacher_size: 40 px are not filled")


def test_the_method_of_a_run_is_given_the_teacher_for_its_views(big: Path) -> None:
    parts = build_parts(
        Settings.of({"method": "distill", "teacher": str(big), **TINY, "match": "similarities"})
    )
    method = parts.module.method
    assert isinstance(method, Distill)
    facts = unmix.load_encoder(big).facts
    scale = torch.tensor(parts.train.std) / torch.tensor(facts["std"])
    torch.testing.assert_close(method.teacher.scale.flatten(), scale)  # type: ignore[union-attr, operator]
    assert parts.settings.teacher["teacher_sha256"] is not None
