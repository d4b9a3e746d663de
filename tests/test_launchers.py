"""Launchers that start the processes of a run: torchrun with restarts, and srun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment

from unmix.training.run.launching import cluster_plugins, join_again

TWO = ["--method", "simclr", "--data", "digits", "--limit", "64", "--size", "8",
       "--backbone", "resnet10", "--width", "0.125", "--batch_size", "16", "--epochs", "12",
       "--knn_every", "0", "--no-evaluate", "--device", "cpu", "--precision", "32",
       "--logger", "none", "--devices", "2"]  # fmt: skip
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert isinstance(state, dict)
    return state


def same(run: Path, other: Path) -> bool:
    one, two = weights(run), weights(other)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rows(run: Path) -> int:
    """The epochs that are recorded so far."""
    file = run / "metrics.csv"
    return len(file.read_text().splitlines()) - 1 if file.exists() else 0


def child_of_rank(parent: int, rank: int) -> int:
    """The process of a rank, of those that a process has started."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            of = (folder / "status").read_text().split("\nPPid:\t")[1].split("\n")[0]
            words = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):  # it has ended meanwhile
            continue
        if int(of) == parent and f"RANK={rank}".encode() in words:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that Lightning has started."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    subprocess.run(
        [sys.executable, "-m", "unmix", "pretrain", *TWO, "--run", str(run)],
        check=True, capture_output=True, timeout=300, env=ENV,
    )  # fmt: skip
    return run


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process in /proc")
def test_torchrun_starts_a_killed_run_again_and_it_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
             "--max-restarts=2", "-m", "--", "unmix", "pretrain", *TWO, "--run", str(run)],
            stdout=file, stderr=subprocess.STDOUT, env=ENV,
        )  # fmt: skip
        until = time.monotonic() + 240
        while rows(run) < 3:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
        assert process.wait(timeout=300) == 0, log.read_text()
    assert log.read_text().count("resuming from") == 1
    assert rows(run) == 12
    assert same(run, undisturbed)


def test_only_processes_that_torchrun_has_started_again_are_joined_by_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    for restarts in (None, "0"):
        if restarts is not None:
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        join_again(False, timedelta(seconds=1))
        assert not torch.distributed.is_initialized()


def test_slurm_is_not_asked_by_lightning_to_requeue_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of the two may, and what submits the job does: both would queue it twice."""
    assert cluster_plugins() == []
    for name, value in {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0",
                        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "unmix",
                        "SLURM_JOB_ID": "7"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (plugin,) = cluster_plugins()
    assert isinstance(plugin, SLURMEnvironment)
    assert not plugin.auto_requeue
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun within a job of SLURM
    assert cluster_plugins() == []
