"""Files of weights: what is read without running code, and what is refused, in one line."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import socket
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from unmix.backbones import build
from unmix.errors import UserError
from unmix.weights import open_weights, read_checkpoint

STATE = {"conv1.weight": torch.ones(4, 3, 3, 3)}


class Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def bomb(path: Path) -> None:
    """An archive whose record would take 300 times the size of the file."""
    torch.save({"a": torch.zeros(5_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def truncated(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-300])


def truncated_old(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


def truncated_safetensors(path: Path) -> None:
    safetensors.torch.save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-8])


def script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/code/__torch__.py", b"")
        archive.writestr("m/constants.pkl", b"")


def tar(path: Path) -> None:
    inner = path.with_name("inner.pth")
    torch.save(STATE, inner)
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "inner.pth")


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", b"hello")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "LFS pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a pointer of Git LFS, and not the file itself; fetch that with git lfs pull",
    ),
    "web page": (
        lambda p: p.write_text("\n<!DOCTYPE html><html>Quota exceeded</html>"),
        "is a web page, and not weights",
    ),
    "empty": (lambda p: p.write_bytes(b""), "is empty; download it again"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x")), "is compressed by gzip; gunzip it"),
    "JSON": (lambda p: p.write_text('{"architectures": ["ViT"]}'), "is JSON; give the file of"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file"),
    "NumPy": (lambda p: np.savez(p.open("wb"), a=np.ones(2)), "is a NumPy archive, as of JAX"),
    "tar": (tar, "is a tar archive; unpack it"),
    "another zip": (other_zip, "is a zip archive of something else"),
    "truncated": (truncated, "is truncated"),
    "truncated, old format": (truncated_old, "is truncated, or not a file of PyTorch"),
    "random bytes": (lambda p: p.write_bytes(bytes(range(1, 200))), "is truncated, or not a file"),
    "TorchScript": (script, "is a TorchScript program"),
    "bomb": (bomb, "would take 20 MB, and has [0-9.]+ kB"),
    "a whole module": (
        lambda p: torch.save(torchvision.models.resnet18(), p),
        r"Python objects \(torchvision.models.resnet.ResNet\), and only running their code could "
        "load them, so it is not loaded. If you trust its author: python -c",
    ),
    "a list": (lambda p: torch.save([1, 2], p), "holds a list, not tensors by name"),
    "plain pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is truncated, or not a"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_line(kind: str, tmp_path: Path):
    path = tmp_path / "weights.pth"
    write, words = REFUSED[kind]
    write(path)
    with pytest.raises(UserError, match=words) as refused:
        read_checkpoint(path)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"init: {path} ")


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    truncated_safetensors(path)
    with pytest.raises(UserError, match="is truncated or not a safetensors file"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_code_is_never_run(zipped: bool, tmp_path: Path):
    path, touched = tmp_path / "w.pth", tmp_path / "touched"
    content = {**STATE, "args": Runs(touched)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"holds Python objects \((posix|nt|os)\.system\)"):
        read_checkpoint(path)
    assert not touched.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_settings_beside_the_weights_are_not_imported(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of argparse, NumPy, or packages that are not installed here."""
    module: Any = types.ModuleType("omegaconf.dictconfig")
    made: list[str] = []

    class DictConfig(dict):
        def __setstate__(self, state: Any) -> None:
            made.append("ran")

    DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"
    module.DictConfig = DictConfig
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    path = tmp_path / "w.ckpt"
    content = {
        "state_dict": STATE, "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "best": np.float64(3), "cfg": DictConfig(),
    }  # fmt: skip
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(path)
    assert torch.equal(read.content["state_dict"]["conv1.weight"], STATE["conv1.weight"])
    assert made == []
    assert not isinstance(read.content["args"], argparse.Namespace)


def test_what_a_safetensors_file_begins_with_is_no_reason(tmp_path: Path):
    """The length of its header may be the code of `<`, or of `{`."""
    for wanted in b"<{":
        for extra in range(256):
            path = tmp_path / "a.pth"
            safetensors.torch.save_file(STATE, path, {"note": "x" * extra})
            if path.read_bytes()[0] == wanted:
                break
        # Headers are padded to multiples of 8, so not every length exists.
        assert "conv1.weight" in read_checkpoint(path).content


def test_a_folder_of_hugging_face(tmp_path: Path):
    with pytest.raises(UserError, match="is neither a run folder nor one of Hugging Face"):
        open_weights(str(tmp_path))
    safetensors.torch.save_file(STATE, tmp_path / "model.safetensors")
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 384}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    prepared = open_weights(str(tmp_path)).preparation
    assert prepared is not None
    assert (prepared.mean, prepared.size) == ((0.5, 0.5, 0.5), 384)


def test_another_file_than_then_is_refused(tmp_path: Path):
    path = saved(STATE, tmp_path / "w.pth")
    digest = open_weights(str(path)).sha256
    assert open_weights(str(path), digest).sha256 == digest
    saved({"conv1.weight": torch.zeros(4, 3, 3, 3)}, path)
    with pytest.raises(UserError, match="is not the file that it was: its SHA-256 is"):
        open_weights(str(path), digest)


def test_missing_files_and_unfinished_runs(tmp_path: Path):
    with pytest.raises(UserError, match=r"init: .*nowhere.pth does not exist"):
        open_weights(str(tmp_path / "nowhere.pth"))
    (tmp_path / "config.yaml").write_text("method: moco\n")
    with pytest.raises(UserError, match=r"is a run without encoder\.safetensors"):
        open_weights(str(tmp_path))
    with pytest.raises(UserError, match=r"https://a\.org/w\.pth is an address; download"):
        open_weights("https://a.org/w.pth")
    trained = {"state_dict": {"method.f.conv1.weight": torch.zeros(1)}, "epoch_samples": [4]}
    with pytest.raises(UserError, match=r"a checkpoint of a run of unmix.*give the run's folder"):
        open_weights(str(saved(trained, tmp_path / "last.ckpt")))


def offline(*_: Any, **__: Any) -> None:
    raise OSError("Temporary failure in name resolution")


def test_torchvisions_weights_are_taken_from_the_cache_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    with pytest.raises(UserError) as refused:
        open_weights("torchvision:resnet18")
    assert url in str(refused.value)
    assert str(tmp_path / "checkpoints") in str(refused.value)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    theirs = torchvision.models.resnet18()
    saved(theirs.state_dict(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    weights = open_weights("torchvision:resnet18.IMAGENET1K_V1")
    assert weights.preparation is not None
    assert (weights.preparation.mean, weights.preparation.size) == ((0.485, 0.456, 0.406), 224)
    ours = build("resnet18")
    weights.load(ours)
    assert torch.equal(ours.state_dict()["conv1.weight"], theirs.conv1.weight)
    with pytest.raises(UserError, match=r"torchvision has no classifier 'resnet19'\. Did you mean"):
        open_weights("torchvision:resnet19")
    with pytest.raises(UserError, match="no weights 'V9'; it has IMAGENET1K_V1"):
        open_weights("torchvision:resnet18.V9")


def test_timms_weights_are_taken_from_the_cache_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub
    import timm

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(
        UserError, match=r"download model\.safetensors from https://huggingface\.co/"
    ):
        open_weights("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda _, name: str(tmp_path / name)
    )
    weights = open_weights("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert weights.preparation is not None
    assert weights.preparation.mean == (0.5, 0.5, 0.5)
    ours: nn.Module = build("timm:vit_tiny_patch16_224", size=32)
    assert weights.load(ours).missing == ()
    with pytest.raises(UserError, match="timm has no trained weights 'vit_tinny_patch16_224'"):
        open_weights("timm:vit_tinny_patch16_224")
