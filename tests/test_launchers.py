"""Launchers that start the processes of a run: torchrun with restarts, and srun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment

from unmix.cli import main
from unmix.config import Settings
from unmix.errors import UserError
from unmix.training import pretrain
from unmix.training.run import engines
from unmix.training.run.launching import cluster_plugins, join_again

TWO = ["--method", "simclr", "--data", "digits", "--limit", "64", "--size", "8",
       "--backbone", "resnet10", "--width", "0.125", "--batch_size", "16", "--epochs", "12",
       "--knn_every", "0", "--no-evaluate", "--device", "cpu", "--precision", "32",
       "--logger", "none", "--devices", "2"]  # fmt: skip
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray has no wheel here")
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
    assert "unmix: stopped by SIGTERM; to go on from step" in text
    assert f"unmix pretrain --run {run}." in text
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


def on_ray(run: Path, log: Path) -> subprocess.Popen[bytes]:
    """A run on a cluster of this machine, which is started for it."""
    env = {name: value for name, value in ENV.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "unmix", "pretrain", *TWO, "--engine", "ray", "--run", str(run)],
            stdout=file, stderr=file, env=env,
        )  # fmt: skip


@needs_ray
def test_a_killed_worker_of_ray_starts_again_and_the_run_ends_with_the_same_weights(
    undisturbed: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = on_ray(run, log)
    wait_for_rows(run, 3, log)
    os.kill(json.loads((run / ".owner.json").read_text())["process"], signal.SIGKILL)
    assert process.wait(timeout=300) == 0, log.read_text()
    assert log.read_text().count("resuming from") == 1
    assert log.read_text().count("epoch 12/12") == 1
    assert rows(run) == 12
    assert same(run, undisturbed)
    assert not (run / ".ray").exists()


@needs_ray
def test_a_signal_to_a_run_on_ray_saves_the_step_and_another_engine_goes_on_from_there(
    undisturbed: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = on_ray(run, log)
    wait_for_rows(run, 2, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=200) == 128 + signal.SIGTERM, log.read_text()
    assert "unmix: stopped by SIGTERM; to go on from step" in log.read_text()
    assert f"unmix pretrain --run {run}." in log.read_text()
    assert "Traceback" not in log.read_text()
    assert 2 <= rows(run) < 12
    subprocess.run(
        [sys.executable, "-m", "unmix", "pretrain", "--run", str(run), "--engine", "lightning"],
        check=True, capture_output=True, timeout=300, env=ENV,
    )  # fmt: skip
    assert rows(run) == 12
    assert same(run, undisturbed)


ONE = [*TWO[:-2], "--epochs", "1"]


@needs_ray
@pytest.mark.parametrize(
    ("nodes", "asked", "line"),
    [
        ([{"CPU": 2.0}], {"devices": 4},
         "4 on ray need 4 CPUs, and the cluster has 2 CPUs; there is room for 2."),
        ([{"CPU": 8.0}], {"devices": 2, "device": "cuda"},
         "2 on ray need 2 GPUs, and the cluster has 0 GPUs; there is room for 0."),
        ([{"CPU": 6.0}, {"CPU": 6.0}], {"devices": 4, "nodes": 1, "workers": 4},
         "4 on ray need 4 CPUs with 4 CPUs for each, and the cluster has 12 CPUs; there is room "
         "for 2."),
        ([{"CPU": 6.0, "GPU": 1.0}, {"CPU": 6.0, "GPU": 1.0}], {"devices": 2}, None),
    ],
)  # fmt: skip
def test_a_cluster_that_is_too_small_is_refused_in_one_line(
    nodes: list[dict[str, float]], asked: dict[str, object], line: str | None
) -> None:
    class Ray:
        def nodes(self) -> list[dict[str, object]]:
            return [{"Alive": True, "Resources": node} for node in nodes]

    settings = Settings.of({"engine": "ray", **asked})
    if line is None:
        assert engines._needs(Ray(), settings) is True
        return
    with pytest.raises(UserError) as caught:
        engines._needs(Ray(), settings)
    assert caught.value.on_command_line() == f"--devices: {line}"


@needs_ray
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--engine", "spark"], "--engine: 'spark' is unknown. Known: lightning, ray."),
        (["--engine", "ray", "--device", "mps"],
         "--engine: ray has no --device mps; use cpu or cuda."),
        (["--engine", "ray", "--devices", "3"],
         "--batch_size: 16 cannot be shared by 3 devices; use a multiple of 3."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_a_cluster_is_started(
    words: list[str], line: str, tmp_path: Path, refuse: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(engines, "_start", lambda ray: pytest.fail("started"))
    assert refuse("pretrain", *ONE, "--run", tmp_path / "run", *words) == line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["bench", "study", "submit"])
def test_ray_trains_single_runs_alone(command: str, refuse: Callable[..., str]) -> None:
    name = ["a", "--vary", "lr=1,2"] if command == "study" else []
    told = refuse(command, *name, "--engine", "ray")
    assert told == f"--engine: ray applies to unmix pretrain, and not to unmix {command}."


def test_images_in_memory_are_not_sent_to_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)
    if find_spec("ray") is None:
        pytest.skip("ray has no wheel here")
    with pytest.raises(UserError, match="ray starts processes that read the data themselves"):
        pretrain(data=pixels, size=8, engine="ray", run=str(tmp_path / "run"), method="simclr")


def test_without_ray_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    for name in ("ray", "ray.train", "ray.train.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    told = refuse("pretrain", *ONE, "--engine", "ray", "--run", tmp_path / "run")
    assert told == "--engine: ray needs the package: pip install 'unmix[ray]'"


def test_workers_that_may_be_meant_as_those_of_ray_are_explained() -> None:
    note = engines.note_on_workers(Settings.of({"engine": "ray", "workers": 2}))
    assert note is not None
    assert "--devices says how many workers of Ray train" in note
    assert (
        engines.note_on_workers(Settings.of({"engine": "ray", "workers": 2, "devices": 2})) is None
    )
    assert engines.note_on_workers(Settings.of({"engine": "ray"})) is None
