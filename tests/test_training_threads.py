"""As many threads as there are free cores; what the user has set is kept."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unmix.hardware import threads
from unmix.hardware.threads import (
    CoreMeter,
    choose_threads,
    cores_each,
    idle_seconds,
    own_seconds,
    quota,
    using_threads,
)
from unmix.training import RunFolder, pretrain

TINY: dict[str, Any] = {
    "method": "moco", "data": "digits", "limit": 48, "backbone": "resnet10", "width": 0.125,
    "size": 8, "batch_size": 16, "epochs": 2, "knn_every": 0, "queue_size": 32, "bn_splits": 1,
    "logger": "none", "device": "cpu", "precision": "32", "evaluate": False,
}  # fmt: skip


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine of 8 cores, of which PyTorch takes all, where nobody has said anything."""

    def make(cores: int = 8, torch_threads: int = 8) -> None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(threads, "usable_cores", lambda: cores)
        monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)
        monkeypatch.setattr(torch, "get_num_threads", lambda: torch_threads)

    return make


@pytest.mark.parametrize(
    ("free", "count"), [(8.0, 8), (7.8, 8), (7.5, 7), (3.1, 3), (0.9, 1), (0.0, 1), (None, 8)]
)
def test_as_many_threads_as_cores_are_free(machine: Any, free: float | None, count: int) -> None:
    machine()
    assert choose_threads(None, free) == count


def test_of_two_cores_one_that_is_busy_leaves_one_thread(machine: Any) -> None:
    machine(cores=2, torch_threads=2)
    assert [choose_threads(None, free) for free in (2.0, 1.9, 1.5, 1.0)] == [2, 2, 1, 1]


def test_what_the_user_has_set_is_kept(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(torch_threads=3)  # of torch.set_num_threads(3)
    assert choose_threads(None, 1.0) == 3
    machine()
    assert choose_threads(6, 1.0) == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert choose_threads(None, 1.0) == 8


def test_processes_that_train_together_share_what_their_launcher_gives(machine: Any) -> None:
    machine(torch_threads=4)
    assert choose_threads(None, 1.0, processes=2) == 4


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({}, 4),
        ({"LOCAL_WORLD_SIZE": "8"}, 2),  # torchrun knows better than --devices
        ({"SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "12"}, 12),
        ({"SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "64"}, 16),  # more than it may use
        ({"SLURM_NTASKS": "4"}, 4),
        ({"SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "16"}, 4),  # one task starts all
        ({"SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "16", "LOCAL_WORLD_SIZE": "2"}, 8),
        ({"LOCAL_WORLD_SIZE": "99"}, 1),
    ],
)
def test_processes_of_a_machine_share_its_cores(
    environment: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "usable_cores", lambda: 16)
    assert cores_each(4) == cores


def test_idle_time_is_that_of_our_own_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {1, 3}, raising=False)
    monkeypatch.setattr(threads.os, "sysconf", lambda _: 100)
    lines = ["cpu 1 1 1 9999 1", *(f"cpu{i} 5 5 5 {100 * i} 50 0 0" for i in range(4)), "intr 1 2"]
    (tmp_path / "stat").write_text("\n".join(lines))
    assert idle_seconds(tmp_path / "stat") == pytest.approx(1 + 3 + 2 * 0.5)
    assert idle_seconds(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000", 1.5), ("max 100000", float("inf")), ("", float("inf"))]
)
def test_a_containers_quota_bounds_the_cores(tmp_path: Path, text: str, cores: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert quota(tmp_path) == cores


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux says it")
def test_measuring_takes_little_time() -> None:
    start = time.perf_counter()
    free = CoreMeter().free()
    assert time.perf_counter() - start < 1  # 0.2 s, but for the scheduler
    assert free is not None
    assert 0 <= free <= threads.usable_cores()


def test_the_meter_takes_its_own_work_for_free(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(0.0, 100.0, 5.0), (2.0, 101.0, 6.0)])  # of two cores one is a neighbor's
    monkeypatch.setattr(CoreMeter, "_sample", staticmethod(lambda: next(samples)))
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(threads, "quota", lambda: float("inf"))
    monkeypatch.setattr(threads.time, "sleep", lambda _: None)
    assert CoreMeter().free() == pytest.approx(1.0)


def test_a_run_keeps_its_number_and_gives_the_callers_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with using_threads(1):
        pretrain(run=str(tmp_path / "r"), threads=2, **TINY)
        assert torch.get_num_threads() == 1
    assert "2 threads" in capsys.readouterr().out.splitlines()[1]
    assert RunFolder(tmp_path / "r").words()["threads"] == 2
    pretrain(run=str(tmp_path / "own"), **TINY)
    assert RunFolder(tmp_path / "own").words()["threads"] == torch.get_num_threads()


def test_the_same_number_of_threads_gives_the_same_bits(tmp_path: Path) -> None:
    """Another number need not: docs/measurements.md. So a resumed run keeps its own."""
    weights = []
    for name in ("first", "again"):
        pretrain(run=str(tmp_path / name), threads=2, **{**TINY, "epochs": 1})
        weights.append(load_file(tmp_path / name / "encoder.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_threads_of_no_number_are_refused(refuse: Any) -> None:
    assert refuse("pretrain", "--threads", "0").startswith("--threads: 0 is out of range")


def test_what_others_take_is_without_the_processes_of_this_one(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(cores=4)
    meter = CoreMeter()
    # In 10 s: 12 core seconds idle, 8 by this process and its children; 20 of 40 are others'.
    meter.start = (0.0, 100.0, 30.0)
    monkeypatch.setattr(CoreMeter, "_sample", staticmethod(lambda: (10.0, 112.0, 38.0)))
    assert meter.taken() == pytest.approx(2.0)
    meter.start = None
    assert meter.taken() is None


def test_a_child_s_time_is_this_process_s_own() -> None:
    before = own_seconds()
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it still lives
        assert own_seconds() - before > 0.4
        child.communicate(b"\n")
    assert own_seconds() - before > 0.4  # and now it has ended
