"""`unmix submit`: what it asks of SLURM, and every mistake before anything is submitted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unmix.cli import main
from unmix.commands.job_request import minutes
from unmix.commands.submit import submit
from unmix.errors import UserError
from unmix.results import load_results
from unmix.training import RunFolder
from unmix.training.run.jobs import preempted
from unmix.training.run.lock import run_lock

pytest.importorskip("submitit")

WORDS = {"method": "simclr", "data": "digits", "limit": 32, "size": 8, "backbone": "resnet10",
         "width": 0.125, "batch_size": 16, "epochs": 1, "knn_every": 0, "evaluate": False,
         "precision": "32", "logger": "none"}  # fmt: skip
FLAGS = ["--no-evaluate"]
for name, value in WORDS.items():
    FLAGS += [f"--{name}", str(value)] if name != "evaluate" else []
CPU = [*FLAGS, "--device", "cpu"]


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def some_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of programs with the names of SLURM's, which refuse."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).write_text("#!/bin/sh\necho 'error: Invalid partition' >&2\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_the_text_that_sbatch_would_get_is_shown_without_slurm(
    no_slurm: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--nodes", "2", "--gpus", "8", "--cpus", "10", "--mem", "1.5", "--time", "1-12:00:00",
             "--partition", "gpu", "--account", "lab", "--slurm", "constraint=a100", "exclusive",
             "--setup", "module load cuda", "--run", str(run), "--dry_run"]  # fmt: skip
    assert main(["submit", *FLAGS, *words, "--batch_size", "32"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    for option in ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=10",
                   "mem=1536M", "time=2160", "partition=gpu", "account=lab", "constraint=a100",
                   "exclusive", "requeue", "signal=USR2@120", "job-name=run"):  # fmt: skip
        assert f"#SBATCH --{option}" in lines
    assert "module load cuda" in lines
    (command,) = (line for line in lines if line.startswith("srun "))
    assert "--kill-on-bad-exit=1" in command
    assert "--cpus-per-task=10" in command
    assert f"-m submitit.core._submit {run}/jobs" in command
    assert lines[0] == (
        "a job of SLURM: 2 machines x 8 GPUs, 10 CPUs for each device, time limit 1-12:00:00, "
        "partition gpu"
    )
    assert lines[-1] == "nothing was submitted"
    assert not run.exists()


def test_the_warning_comes_within_a_short_job_and_no_requeue_is_that_alone(
    no_slurm: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--time", "2", "--slurm", "no-requeue", "--run", str(tmp_path / "run"), "--dry_run"]
    assert main(["submit", *FLAGS, "--executor", "slurm", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "#SBATCH --signal=USR2@60" in lines
    assert "#SBATCH --no-requeue" in lines
    assert "#SBATCH --requeue" not in lines


def test_gpus_are_asked_for_as_many_as_devices_unless_it_is_a_cpu(
    no_slurm: None, tmp_path: Path
) -> None:
    def text(**more: object) -> str:
        found = submit(dry_run=True, run=str(tmp_path / "r"), **{**WORDS, **more})  # type: ignore[arg-type]
        assert found.script is not None
        return found.script

    assert "--gpus-per-node=1\n" in text()
    assert "--gpus-per-node=2\n" in text(devices=2)
    assert "--ntasks-per-node=4\n" in text(gpus=4)
    for without in ({"device": "cpu", "devices": 2}, {"gpus": 0, "devices": 2}):
        assert "gpus-per-node" not in text(**without)
        assert "--ntasks-per-node=2\n" in text(**without)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--gpu", "8"], "--gpu: unknown flag. Use --device (cuda, cpu or mps)."),
        (["--gpus", "8", "--device", "cpu"], "--gpus: 8 contradicts --device cpu."),
        (["--gpus", "0", "--device", "cuda"], "--gpus: 0 contradicts --device cuda."),
        (["--gpus", "8", "--devices", "4"],
         "--gpus: 8 on each machine are as many devices, but --devices 4 is given; leave one out."),
        (["--gpus", "3"],
         "--batch_size: 16 cannot be shared by 3 devices; use a multiple of 3."),
        (["--gpus", "-1"], "--gpus: -1 is out of range; it must be at least 0."),
        (["--data", "no/such"], None),
        (["--init", "no/such.ckpt"], None),
        (["--unmix_rule", "imix"], None),
        (["--time", "soon"],
         "--time: 'soon' is not a time limit; give minutes, HOURS:MINUTES:SECONDS or "
         "DAYS-HOURS:MINUTES:SECONDS, such as 24:00:00."),
        (["--slurm", "time=5"],
         "--slurm: time is decided by unmix submit; give --time instead."),
        (["--slurm", "=a100"],
         "--slurm: '=a100' must be KEY=VALUE, or KEY, such as constraint=a100 or exclusive."),
        (["--time", "5", "--slurm", "signal=USR1@300"],
         "--slurm: signal is sent 300 s before the end, when a job of 300 s has not begun; give a "
         "longer --time or a later signal."),
        (["--executor", "pbs"], "--executor: 'pbs' is unknown. "
         "Known: auto, slurm, local, debug."),
        (["--executor", "slurm"],
         "--executor: sbatch is not on the PATH, so this is no machine of SLURM; submit from a "
         "login node, see the job's text with --dry_run, or use --executor local."),
        (["--partition", "gpu"],
         "--partition: applies to SLURM and not to --executor local; leave it out."),
        (["--executor", "debug", "--time", "60"],
         "--time: applies to SLURM and not to --executor debug; leave it out."),
        (["--nodes", "2"],
         "--nodes: 2 machines need SLURM; with --executor local there is one."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_submitted(
    words: list[str], line: str | None, no_slurm: None, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    told = refuse("submit", *FLAGS, "--run", run, *words)
    assert told.startswith("--") if line is None else told == line
    assert not run.exists()


def test_another_run_or_one_in_use_in_the_folder_is_refused(
    no_slurm: None, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    assert main(["submit", *CPU, "--executor", "debug", "--run", str(run)]) == 0
    told = refuse("submit", *FLAGS, "--device", "cpu", "--run", run, "--seed", "1")
    assert told.startswith(f"--run: {run} holds another run: its seed is 0, not 1.")
    (run / "encoder.safetensors").unlink()  # it is not complete
    with run_lock(run, print):
        told = refuse("submit", *FLAGS, "--device", "cpu", "--run", run)
    assert "is in use by process" in told


def test_without_submitit_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    told = refuse("submit", *FLAGS, "--run", tmp_path / "run")
    assert told == "unmix submit needs submitit: pip install 'unmix[submit]'"


def test_what_sbatch_says_is_passed_on_and_nothing_is_left(
    some_slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["submit", *FLAGS, "--run", str(run)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("unmix: error: the job was not submitted: ")
    assert "Invalid partition" in told
    assert not run.exists()


def test_in_this_process_it_trains_and_a_complete_run_is_not_submitted_again(
    no_slurm: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["submit", *FLAGS, "--device", "cpu", "--run", str(run), "--executor"]
    assert main([*words, "debug"]) == 0
    assert load_results(run).training["steps"] == 2
    assert "--executor" not in load_results(run).command
    capsys.readouterr()
    assert main([*words, "local"]) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out


def test_a_run_is_extended_by_the_job_and_not_where_it_is_refused(
    some_slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", *CPU, "--run", str(run)]) == 0
    before = (run / "config.yaml").read_text()
    words = ["submit", "--run", str(run), "--epochs", "2", "--extend", "--executor"]
    assert main([*words, "slurm"]) == 2
    assert "Invalid partition" in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == before
    assert main([*words, "debug"]) == 0
    assert load_results(run).training["restarts"] == [1]
    assert RunFolder(run).settings().run.epochs == 2


def test_a_mistake_found_while_it_trains_in_this_process_is_one_line(
    no_slurm: None, tmp_path: Path, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmix.training.run import pretrain

    def fails(*_: object, **__: object) -> None:
        raise UserError("too late")

    monkeypatch.setattr(pretrain, "run", fails)
    words = ["--device", "cpu", "--run", tmp_path / "run", "--executor", "debug"]
    assert refuse("submit", *FLAGS, *words) == "too late"


@pytest.mark.parametrize(
    ("text", "count"),
    [("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("2-12:30", 3630),
     ("1-00:00:01", 1441)],
)  # fmt: skip
def test_a_time_limit_is_read_as_slurm_does(text: str, count: int) -> None:
    assert minutes(text) == count


@pytest.mark.parametrize("text", ["", "0", "00:00:00", "1:2:3:4", "-5", "a-1", "1-", "2 h"])
def test_any_other_time_limit_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a time limit"):
        minutes(text)


@pytest.mark.parametrize(
    ("state", "answer"), [("RUNNING", True), ("CANCELLED", False), ("COMPLETING", False)]
)
def test_a_job_that_makes_room_is_told_from_one_that_is_canceled(
    state: str, answer: bool, some_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (some_slurm / "scontrol").write_text(
        f'#!/bin/sh\n[ "$*" = "show job 70" ] && echo "   JobState={state} Reason=None"\n'
    )
    (some_slurm / "scontrol").chmod(0o755)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "70")
    assert preempted() is answer
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    assert not preempted()
