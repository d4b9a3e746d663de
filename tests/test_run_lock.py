"""One process a run folder: the second is told whose it is, and nobody's run is mixed up."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from unmix.cli import main
from unmix.errors import UserError
from unmix.results import load_results
from unmix.training.console import silent
from unmix.training.run.lock import LOCK, OWNER, results_lock, run_lock

TINY = shlex.split(
    "pretrain --data digits --limit 40 --batch_size 20 --epochs 1 --backbone resnet10 --width 0.125"
    " --size 8 --queue_size 20 --bn_splits 1 --knn_every 0 --no-evaluate --device cpu"
    " --precision 32 --logger none --workers 0"
)

forked = multiprocessing.get_context("fork")


def _command(words: list[str], out: Path, start: Any) -> None:
    """Run a command line in a process of its own, its lines into a file, at a common start."""
    start.wait()
    with out.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        status = main(words)
    os._exit(status)


def at_once(commands: list[list[str]], folder: Path) -> list[tuple[int, str]]:
    """Start commands at the same moment; gives their exit status and what they said."""
    start = forked.Barrier(len(commands))
    outs = [folder / f"said-{i}.txt" for i in range(len(commands))]
    workers = [
        forked.Process(target=_command, args=(words, out, start))
        for words, out in zip(commands, outs, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    return [(worker.exitcode, out.read_text()) for worker, out in zip(workers, outs, strict=True)]


@pytest.mark.parametrize("number", range(4))
def test_two_seeds_in_one_folder_are_one_run(tmp_path: Path, number: int) -> None:
    run = tmp_path / "r"
    commands = [[*TINY, "--run", str(run), "--seed", str(seed)] for seed in (0, 1)]
    done = at_once(commands, tmp_path)
    assert sorted(status for status, _ in done) == [0, 2], done
    winner = 0 if done[0][0] == 0 else 1
    refused = done[1 - winner][1].strip().splitlines()
    assert len(refused) == 1
    # The loser may also come when the winner has written its settings, which are others.
    assert refused[0].startswith(f"unmix: error: --run: {run} ")
    assert load_results(run).seed == yaml.safe_load((run / "config.yaml").read_text())["seed"]
    assert load_results(run).seed == winner
    assert not (run / OWNER).exists()


def test_the_same_command_twice_trains_once(tmp_path: Path) -> None:
    run = tmp_path / "r"
    done = at_once([[*TINY, "--run", str(run)]] * 2, tmp_path)
    assert sorted(status for status, _ in done) == [0, 2], done
    said = next(text for status, text in done if status == 2)
    assert said.startswith(f"unmix: error: --run: {run} is in use by process ")
    assert f" on {socket.gethostname()}, training here since 2" in said
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2


def _hold(folder: Path, ready: Any) -> None:
    with run_lock(folder, silent):
        ready.set()
        time.sleep(60)


def holding(folder: Path) -> Any:
    """A process that holds the lock."""
    ready = forked.Event()
    worker = forked.Process(target=_hold, args=(folder, ready), daemon=True)
    worker.start()
    assert ready.wait(30)
    return worker


def test_the_owner_is_named_and_a_killed_one_is_replaced_with_a_note(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "config.yaml").touch()
    worker = holding(folder)
    with pytest.raises(UserError) as caught, run_lock(folder, silent):
        pass
    wanted = f"--run: {folder} is in use by process {worker.pid} on {socket.gethostname()}, "
    assert str(caught.value).startswith(wanted)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    said: list[str] = []
    with run_lock(folder, said.append):
        assert json.loads((folder / OWNER).read_text())["process"] == os.getpid()
    assert len(said) == 1
    assert said[0].startswith(f"note: process {worker.pid} on {socket.gethostname()}, training ")
    assert said[0].endswith(" is gone; taking the run over")
    assert not (folder / OWNER).exists()
    with run_lock(folder, said.append):
        pass
    assert len(said) == 1


def left_by(folder: Path, **changes: Any) -> None:
    """Leave the note of a killed process of another machine."""
    with run_lock(folder, silent):
        (folder / "config.yaml").touch()
        note = json.loads((folder / OWNER).read_text())
    (folder / OWNER).write_text(json.dumps({**note, "host": "elsewhere", "process": 7, **changes}))


def test_temporary_files_of_killed_processes_are_removed_at_the_next_start(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()  # its number is that of no process now
    (tmp_path / "checkpoints").mkdir()
    for place in (tmp_path, tmp_path / "checkpoints"):
        (place / f".last.ckpt.{process.pid}.tmp").write_text("half")
        (place / f".last.ckpt.{os.getpid()}.tmp").write_text("being written")
        (place / ".mine.tmp").write_text("of the user")
    with run_lock(tmp_path, print):
        pass
    for place in (tmp_path, tmp_path / "checkpoints"):
        kept = {path.name for path in place.glob(".*.tmp")}
        assert kept == {f".last.ckpt.{os.getpid()}.tmp", ".mine.tmp"}


def test_an_owner_on_another_machine_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    left_by(folder)
    with pytest.raises(UserError) as caught, run_lock(folder, silent):
        pass
    line = str(caught.value)
    assert line.startswith(f"--run: {folder} may be in use by process 7 on elsewhere, training ")
    assert f"If not, remove {folder / OWNER} and give the command again." in line
    (folder / OWNER).unlink()
    with run_lock(folder, silent):
        pass


def test_an_earlier_start_of_the_same_slurm_job_is_gone(tmp_path: Path, monkeypatch) -> None:
    left_by(tmp_path / "r", job="12")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    said: list[str] = []
    with run_lock(tmp_path / "r", said.append):
        pass
    assert [line.split(", ")[0] for line in said] == ["note: process 7 on elsewhere"]


def test_the_copy_of_a_run_is_not_its_owners(tmp_path: Path) -> None:
    left_by(tmp_path / "r")
    shutil.copytree(tmp_path / "r", tmp_path / "copy")
    with run_lock(tmp_path / "copy", silent):
        assert (tmp_path / "copy" / LOCK).exists()
    with pytest.raises(UserError, match="process 7 on elsewhere"), run_lock(tmp_path / "r", silent):
        pass


@pytest.mark.parametrize("text", ["", "[1]", "\xff"])
def test_a_note_that_cannot_be_read_is_of_another_process(tmp_path: Path, text: str) -> None:
    left_by(tmp_path / "r")
    (tmp_path / "r" / OWNER).write_text(text, encoding="latin-1")
    wanted = r"may be in use by another process"
    with pytest.raises(UserError, match=wanted), run_lock(tmp_path / "r", silent):
        pass


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with run_lock(tmp_path / "a" / "r", silent):
        assert (tmp_path / "a" / "r" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_leaves_no_folder(tmp_path: Path, refuse: Callable[..., str]) -> None:
    run = tmp_path / "runs" / "r"
    assert "there is no folder" in refuse(*TINY, "--run", run, "--data", "no/where")
    assert not run.parent.exists()


def _add(path: Path, number: int, start: Any) -> None:
    start.wait()
    for _ in range(20):
        with results_lock(path.parent):
            numbers = json.loads(path.read_text())
            path.write_text(json.dumps([*numbers, number]))


def test_what_several_processes_write_at_once_is_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("[]")
    start = forked.Barrier(3)
    workers = [forked.Process(target=_add, args=(path, i, start)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(json.loads(path.read_text())) == sorted([0, 1, 2] * 20)
