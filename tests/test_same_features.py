"""All ways to an encoder's features give the same ones, whatever the images are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unmix
from checkpoints import randomized
from unmix.commands import embed, export
from unmix.commands.finished import FinishedRun
from unmix.config import MachineSettings
from unmix.evaluation import load_encoder
from unmix.hardware.devices import choose_machine
from unmix.methods import method_class
from unmix.training.console import silent
from unmix.training.run.folder import RunFolder

ENCODERS: dict[str, dict[str, Any]] = {
    "resnet": {"backbone": "resnet10", "width": 0.125, "size": 16},
    "vit": {"backbone": "timm:vit_tiny_patch16_224", "size": 24, "patch": 8, "depth": 2,
            "registers": 1, "heads": 4},
    "cmc": {"method": "cmc", "backbone": "resnet10", "width": 0.125, "size": 16,
            "color_space": "Lab"},
}  # fmt: skip
LIMITS = [0.0, 4095.0]


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder file of a run on images of 12 bits."""
    facts: dict[str, Any] = {
        "method": "moco", "width": 1.0, "stem": "auto", "color_space": "RGB", "range": LIMITS,
        "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], **ENCODERS[request.param],
    }  # fmt: skip
    names = ("width", "stem", "size", "patch", "depth", "registers", "heads")
    options = {name: facts[name] for name in names if name in facts}
    made = method_class(facts["method"]).build_backbone(facts["backbone"], **options)
    folder = tmp_path_factory.mktemp(request.param)
    RunFolder(folder).write_encoder(randomized(made), facts)
    return folder / "encoder.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures of several sizes: RGB, gray, 16 bits of which 12 are used, JPEG."""
    root = tmp_path_factory.mktemp("pictures")
    numbers = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(8):
            path = root / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (20 + 3 * i, 37 - i)
            if i < 2:
                image = Image.fromarray(numbers.integers(0, 256, (*shape, 3), dtype=np.uint8))
            elif i < 4:
                image = Image.fromarray(numbers.integers(0, 256, shape, dtype=np.uint8))
            elif i < 6:
                image = Image.fromarray(numbers.integers(0, 4096, shape, dtype=np.uint16))
            else:
                path = path.with_suffix(".jpg")
                image = Image.fromarray(numbers.integers(0, 256, (*shape, 3), dtype=np.uint8))
            image.save(path)
    return root


def test_knn_embed_encode_transform_and_graphs_agree(
    encoder: Path, pictures: Path, tmp_path: Path
) -> None:
    finished = FinishedRun.open(encoder, "cpu")
    splits = finished.splits("the test", str(pictures), None)
    paths = sorted(pictures.glob("train/*/*"))
    # The evaluation's features, as kNN and the probe have them, and those in a file.
    wanted = finished.features(finished.encoder.features, splits.train).features
    embed(encoder, data=str(pictures), split="train", out=tmp_path / "f.npz", say=silent)
    with np.load(tmp_path / "f.npz") as file:
        assert np.array_equal(file["features"], wanted.numpy())
        assert [Path(path) for path in file["paths"]] == paths
    # The others compute in float32.
    machine = choose_machine(MachineSettings(device="cpu", precision="32"))
    exact = replace(finished, machine=machine)
    wanted = exact.features(exact.encoder.features, splits.train).features
    scale = float(wanted.abs().max())
    loaded = load_encoder(encoder)

    def same(found: torch.Tensor) -> None:
        torch.testing.assert_close(found, wanted, atol=1e-5 * scale, rtol=1e-4)

    same(loaded.encode(paths))
    same(loaded.encode(pictures / "train"))
    prepared = torch.stack([loaded.transform(path) for path in paths])
    same(loaded(prepared).detach())
    export(encoder, to="hub", out=tmp_path / "hub", say=silent)
    same(unmix.load_encoder(tmp_path / "hub").encode(paths))
    export(encoder, to="torch-export", out=tmp_path / "m.pt2", say=silent)
    same(torch.export.load(tmp_path / "m.pt2").module()(prepared).detach())


def test_the_range_of_12_bits_counts(encoder: Path, pictures: Path, tmp_path: Path) -> None:
    """Without it the pictures would be nearly black, which no command would say."""
    deep = sorted(pictures.glob("train/*/[45].png"))
    with_range = load_encoder(encoder).encode(deep)
    folder = tmp_path / "other"
    folder.mkdir()
    weights = load_encoder(encoder)
    RunFolder(folder).write_encoder(weights.backbone, {**weights.facts, "range": None})
    without = load_encoder(folder).encode(deep)
    assert float((with_range - without).abs().max()) > 1e-3
    few = shutil.copytree(pictures, tmp_path / "few")
    finished = FinishedRun.open(folder, "cpu")
    assert finished.settings.run.limits is None
    assert FinishedRun.open(encoder, "cpu").settings.run.limits == tuple(LIMITS)
    assert len(finished.splits("the test", str(few), None).train) == 8
