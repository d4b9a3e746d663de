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

from unmix.cli import main
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


def tasks_of(folder: Path) -> list[int]:
    """The processes of a job of submitit, whose files are in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            line = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"submitit.core._submit" in line and str(folder).encode() in line:
            found.append(int(process.name))
    return found


def wait_for_rows(run: Path, count: int, log: Path) -> None:
    until = time.monotonic() + 240
    while rows(run) < count:
        assert time.monotonic() < until, log.read_text() if log.exists() else "no output"
        time.sleep(0.02)


def wait_for_end(process: int, log: Path) -> None:
    until = time.monotonic() + 240
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, *a, **k: None if name == "sbatch" else which(name, *a, **k)
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the tasks in /proc")
def test_a_job_of_this_machine_that_is_warned_is_queued_again_and_a_stopped_one_goes_on(
    undisturbed: Path, tmp_path: Path, no_slurm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGUSR2 as before the end of its time, then SIGTERM to it, then the same command."""
    run = tmp_path / "run"
    words = ["submit", *TWO, "--run", str(run), "--executor", "local"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    job = int(shown.split("job: ")[1].split()[0])
    log = run / "jobs" / f"{job}_0_log.out"
    assert str(run) in shown
    wait_for_rows(run, 3, log)
    for task in tasks_of(run / "jobs"):
        os.kill(task, signal.SIGUSR2)
    before = rows(run)
    wait_for_rows(run, before + 3, log)
    assert f"Requeued job {job}" in log.read_text()
    os.kill(job, signal.SIGTERM)
    wait_for_end(job, log)
    text = log.read_text()
    assert text.count("resuming from") == 1
    assert "the job is queued again" in text
    assert f"unmix: stopped by SIGTERM; to go on: unmix pretrain --run {run}." in text
    assert "Traceback" not in text
    assert 6 <= rows(run) < 12
    assert main(words) == 0
    job = int(capsys.readouterr().out.split("job: ")[1].split()[0])
    wait_for_end(job, run / "jobs" / f"{job}_0_log.out")
    assert rows(run) == 12
    assert same(run, undisturbed)


def test_a_job_of_slurm_is_queued_again_once_and_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's programs are replaced; its two tasks are started as srun would."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in {
        "sbatch": "echo Submitted batch job 70",
        "srun": "exit 1",
        "scontrol": f'echo "$@" >> {tmp_path}/asked',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    run = tmp_path / "run"
    assert main(["submit", *TWO, "--run", str(run)]) == 0
    jobs = run / "jobs"
    script = next(jobs.glob("*.sh")).read_text()
    assert "#SBATCH --ntasks-per-node=2" in script
    assert "#SBATCH --signal=USR2@120" in script
    log = tmp_path / "log"

    def started() -> list[subprocess.Popen[bytes]]:
        common = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "70", "SLURM_NTASKS": "2",
                  "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1",
                  "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "127.0.0.1",
                  "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "run"}  # fmt: skip
        with log.open("ab") as file:
            return [
                subprocess.Popen(
                    [sys.executable, "-m", "submitit.core._submit", str(jobs)], stdout=file,
                    stderr=file, env={**os.environ, **common, "OMP_NUM_THREADS": "1",
                                      "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
                )
                for rank in (0, 1)
            ]  # fmt: skip

    first, second = started()
    wait_for_rows(run, 3, log)
    second.send_signal(signal.SIGUSR2)  # whichever gets it: all stop, and the first requeues
    assert second.wait(timeout=120) == 0, log.read_text()
    assert first.wait(timeout=120) != 0
    assert (tmp_path / "asked").exists(), log.read_text()
    assert (tmp_path / "asked").read_text() == "requeue 70\n"
    assert [process.wait(timeout=240) for process in started()] == [0, 0], log.read_text()
    assert "Traceback" not in log.read_text()
    assert rows(run) == 12
    assert same(run, undisturbed)
