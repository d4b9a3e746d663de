"""Several processes train together: each has its share of a batch, one of them writes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from forked import program
from unmix.cli import main
from unmix.config import Settings
from unmix.results import load_results
from unmix.training.loading import loaders
from unmix.training.loading.loaders import Batch, EpochOrder
from unmix.training.run.parts import build_parts

FLAGS = ["--data", "photos", "--limit", "72", "--batch_size", "16", "--size", "16",
         "--queue_size", "32", "--device", "cpu", "--precision", "32", "--logger", "none",
         "--knn_k", "5"]  # fmt: skip


def test_a_batch_is_shared_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 35 images in batches of 8 for two: the last batch of 3 gives one to each, so it is out."""
    shares = []
    for process in (0, 1):
        monkeypatch.setattr(loaders, "rank", lambda process=process: process)
        shares.append([index for _, index in EpochOrder(35, 8, seed=0, processes=2)])
    whole = [index for _, index in EpochOrder(35, 8, seed=0)]
    assert [len(index) for index in shares[0]] == [4] * 4
    assert len(whole) == 5
    for first, second, together in zip(*shares, whole, strict=False):
        assert sorted([*first.tolist(), *second.tolist()]) == sorted(together.tolist())


def test_two_processes_train_one_model_and_leave_one_run(tmp_path: Path) -> None:
    """Two epochs, stopped after one and gone on with: one line an epoch, one set of results."""
    run = tmp_path / "run"
    words = ["--method", "moco", *FLAGS, "--epochs", "2", "--devices", "2", "--run", str(run)]
    ended = subprocess.run(
        [sys.executable, "-m", "unmix", "pretrain", *words], capture_output=True, text=True,
        check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch 1/2") == 1
    assert "device: 2 x cpu" in ended.stdout
    assert "Warning" not in ended.stderr
    found = load_results(run)
    assert found.training["steps"] == 10
    assert torch.isfinite(torch.tensor(found.training["loss"]))
    with (run / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["loss"]] == ["0", "1"]
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["method.queue.seen"] == 2 * (4 * 16 + 8)


def test_torchrun_starts_the_processes_with_the_form_that_the_docs_show(tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "how-to" / "several-devices.md"
    assert "torchrun --nproc_per_node=2 -m -- unmix pretrain" in page.read_text(encoding="utf-8")
    run = tmp_path / "run"
    words = ["--method", "simclr", "--data", "digits", "--limit", "64", "--size", "8",
             "--backbone", "resnet10", "--width", "0.125", "--batch_size", "16", "--epochs", "1",
             "--no-evaluate", "--device", "cpu", "--logger", "none",
             "--devices", "2", "--run", str(run)]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "--", "unmix",
         "pretrain", *words],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch 1/1") == 1
    assert load_results(run).training["steps"] == 4


def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A process of pytest-xdist is a `python -c`, from which several devices are refused.
    monkeypatch.setattr("sys.argv", ["unmix"])
    assert main(["pretrain", *FLAGS, "--devices", "3", "--run", "nowhere"]) == 2
    line = capsys.readouterr().err
    assert "--batch_size: 16 cannot be shared by 3 devices; use a multiple of 3." in line
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(("images", "eager"), [(8, []), (4, ["force_eager"])])
def test_a_process_runs_what_was_compiled_for_its_share_of_a_batch(
    images: int, eager: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of 16 is a full batch of one of two processes; a shorter one is not compiled for."""
    words = {"method": "simclr", "data": "photos", "limit": 64, "size": 16, "batch_size": 16,
             "backbone": "resnet10", "width": 0.25, "device": "cpu", "precision": "32",
             "devices": 2}  # fmt: skip
    module = build_parts(Settings.of(words)).module
    module.compiled = True
    seen: list[str] = []

    def stance(name: str) -> nullcontext[None]:
        seen.append(name)
        return nullcontext()

    monkeypatch.setattr(torch.compiler, "set_stance", stance)
    monkeypatch.setattr(type(module), "global_step", 0)
    monkeypatch.setattr(module, "check_loss", lambda: None)
    module.on_train_epoch_start()
    assert module.training_step(Batch(torch.arange(images)), 0) is not None
    assert seen == eager


def test_a_process_whose_images_are_all_broken_goes_on_with_those_before(tmp_path: Path) -> None:
    """48 of 64 images are broken: one device trains on the rest, and so do two."""
    draw = np.random.default_rng(0)
    for i in range(64):
        (tmp_path / "data").mkdir(exist_ok=True)
        path = tmp_path / "data" / f"{i:02}.png"
        Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
        if i % 4:
            path.write_bytes(path.read_bytes()[:60])
    order = EpochOrder(64, 8, seed=3, processes=2)
    shares = [[n for n in index if n % 4 == 0] for _, index in order]
    assert not all(shares)
    words = ["--method", "moco", "--data", str(tmp_path / "data"), *FLAGS[4:], "--batch_size", "8",
             "--backbone", "resnet10", "--width", "0.125", "--seed", "3", "--bn_splits", "1",
             "--resident", "no", "--epochs", "1", "--no-evaluate", "--devices", "2", "--threads",
             "1", "--run", str(tmp_path / "run")]  # fmt: skip
    said = tmp_path / "said"
    assert program(["pretrain", *words], said, devices=2).wait() == 0, said.read_text()
    assert "48" in said.read_text()
    assert load_results(tmp_path / "run").training["steps"] == 8
