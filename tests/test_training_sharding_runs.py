"""Runs with sharded weights (`--strategy fsdp`) end as runs with whole ones, also after a stop."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing import start_processes

from harness import in_float64
from unmix.cli import main
from unmix.config import Settings
from unmix.errors import UserError
from unmix.methods import method_class
from unmix.training import pretrain
from unmix.training.loop.module import Pretraining
from unmix.training.run.parts import build_parts
from unmix.training.run.sharded import pretraining_class

PROCESSES = 2

# Without color: the views' constants of it are float32.
RUN: dict[str, Any] = {
    "method": "dino", "data": "digits", "limit": 48, "size": 16, "backbone": "timm:test_vit",
    "patch": 8, "dim": 24, "hidden": 16, "bottleneck": 8, "batch_size": 16, "epochs": 2,
    "optimizer": "adamw", "lr": 1e-3, "unmix": True, "knn_every": 1, "knn_k": 5,
    "augmentation": "crop-flip",
    "device": "cpu", "precision": "32", "logger": "none", "devices": 2, "threads": 1,
}  # fmt: skip


def stopping_at(step: int, who: int) -> Callable[..., Any]:
    """A training step in which one process gets SIGTERM."""
    train = Pretraining.training_step

    def wrapped(self: Pretraining, *arguments: Any) -> Any:
        if self.global_step == step and dist.get_rank() == who:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *arguments)

    return wrapped


def call(folder: Path, strategy: str, stop: int | None = None, **words: Any) -> None:
    """A call of pretrain, in each of the processes."""
    train = Pretraining.training_step
    if stop is not None:
        Pretraining.training_step = stopping_at(stop, who=1)  # type: ignore[method-assign]
    try:
        with suppress(SystemExit, KeyboardInterrupt):
            # Without its own default of float32.
            pretrain.__wrapped__(  # type: ignore[attr-defined]
                run=str(folder), strategy=strategy, **{**RUN, **words}
            )
    finally:
        Pretraining.training_step = train  # type: ignore[method-assign]
    dist.barrier()


def copied(folder: Path, other: Path) -> None:
    if dist.get_rank() == 0:
        shutil.copytree(folder, other)
    dist.barrier()


def damaged(folder: Path) -> None:
    if dist.get_rank() == 0:
        last = folder / "checkpoints" / "last.ckpt"
        last.write_bytes(last.read_bytes()[:-2000])
    dist.barrier()


def runs(number: int, folder: Path, port: int) -> None:
    """What each process does: runs that are stopped by SIGTERM within 6 steps and gone on with."""
    os.environ.update(
        LOCAL_RANK=str(number), RANK=str(number), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="x", TORCHELASTIC_RESTART_COUNT="0",
    )  # fmt: skip
    from unmix.training.console import set_rank

    set_rank(number)
    torch.set_num_threads(1)
    in_float64()
    call(folder / "ddp", "ddp")
    call(folder / "fsdp", "fsdp")
    call(folder / "stopped", "fsdp", stop=3, checkpoint_steps=1)
    copied(folder / "stopped", folder / "to-ddp")
    damaged(folder / "stopped")
    call(folder / "stopped", "fsdp")
    call(folder / "to-ddp", "ddp")
    call(folder / "to-fsdp", "ddp", stop=3)
    call(folder / "to-fsdp", "fsdp")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("runs")
    start_processes(runs, (folder, port), PROCESSES, start_method="fork")
    return folder


def rows(run: Path) -> list[list[str]]:
    """`metrics.csv` without the speed."""
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    speed = lines[0].index("images_per_second")
    return [line[:speed] + line[speed + 1 :] for line in lines]


@pytest.mark.parametrize("name", ["fsdp", "stopped", "to-ddp", "to-fsdp"])
def test_runs_with_sharded_weights_end_as_without(trained_runs: Path, name: str) -> None:
    """The exported encoder, the checkpoint and the metrics; evaluated twice, by one process."""
    whole, run = trained_runs / "ddp", trained_runs / name
    encoder = load_file(run / "encoder.safetensors")
    expected = load_file(whole / "encoder.safetensors")
    assert encoder.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(encoder[key], value, rtol=1e-7, atol=1e-7)
    ours, theirs = (
        torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, whole)
    )
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for key, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][key], value, rtol=1e-7, atol=1e-7)
    assert ours["global_step"] == 6
    assert (
        ours["optimizer_states"][0]["param_groups"] == theirs["optimizer_states"][0]["param_groups"]
    )
    found, before = rows(run), rows(whole)
    assert found[0] == before[0]
    for line, expected_line in zip(found[1:], before[1:], strict=True):
        for value, wanted in zip(line, expected_line, strict=True):
            assert (value, wanted) == ("", "") or float(value) == pytest.approx(
                float(wanted), rel=1e-3
            )


def test_a_damaged_checkpoint_was_set_aside_and_the_one_before_used(trained_runs: Path) -> None:
    assert (trained_runs / "stopped" / "checkpoints" / "last.ckpt.damaged").exists()


# --- mistakes -----------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one device": ({"devices": 1}, "--strategy: fsdp shares the weights among several devices"),
    "ray": ({"engine": "ray"}, "--strategy: fsdp does not go with --engine ray"),
    "compiled": ({"compile": "yes"}, "--strategy: fsdp does not go with --compile yes"),
    "lars": ({"optimizer": "lars"}, "needs the norm of each whole weight at each step"),
    "larc": ({"optimizer": "larc"}, "--strategy: fsdp does not go with --optimizer larc"),
    "a ResNet": ({"backbone": "resnet10", "patch": None}, "ResNet is no vision transformer"),
    "clusters": (
        {"method": "deepclusterv2", "prototypes": (9, 7), "hidden": 16, "bottleneck": None},
        "fsdp does not apply to DeepClusterV2: its prototypes are set to the clusters",
    ),
    "pooled apart": (
        {"unmix": True, "unmix_rule": "regioncl", "method": "byol", "bottleneck": None},
        "--strategy: fsdp does not go with --unmix_rule regioncl",
    ),
    "another": ({"strategy": "zero"}, "--strategy: 'zero' is unknown"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_sharded_is_refused_in_a_line(what: str) -> None:
    changes, line = WRONG[what]
    words = {**RUN, "strategy": "fsdp", "unmix": False, **changes}
    with pytest.raises(UserError) as caught:
        build_parts(Settings.of({k: v for k, v in words.items() if v is not None}))
    said = caught.value.on_command_line()
    assert line in said
    assert "\n" not in said


def test_float16_is_refused() -> None:
    parts = build_parts(Settings.of({**RUN, "strategy": "fsdp"}))
    half = replace(parts.machine, precision="16-mixed")
    with pytest.raises(UserError, match="does not go with float16"):
        pretraining_class(parts.settings, parts.module.method, half)


def test_a_dry_run_takes_what_a_run_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert method_class("deepclusterv2").needs_whole_weights is not None
    words = ["pretrain", "--method", "dino", "--data", "digits", "--strategy", "fsdp"]
    assert main([*words, "--device", "cpu", "--run", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert "--strategy: fsdp shares the weights among several devices" in error
    assert error.count("\n") == 1
