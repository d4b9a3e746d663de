"""A signal ends a run when the step is saved, and the same command goes on to the same end."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from forked import program
from killing import TINY, outcome
from unmix.cli import main
from unmix.errors import Interrupted
from unmix.training import pretrain
from unmix.training.loop.callbacks import Reporter
from unmix.training.loop.module import Pretraining

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has two of the signals")

SETTINGS = {**TINY, "checkpoint_steps": 0}


def signalled(folder: Path, numbers: dict[str, int], at: int) -> Interrupted:
    """Run until a signal arrives in the given call of a step or of an evaluation."""
    calls = dict.fromkeys(numbers, 0)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Pretraining, "training_step"), (Reporter, "_measure")):
            if name in numbers:
                call = getattr(owner, name)

                def wrapped(
                    *arguments: Any, name: str = name, call: Any = call, **options: Any
                ) -> Any:
                    calls[name] += 1
                    if calls[name] == at:
                        os.kill(os.getpid(), numbers[name])
                    return call(*arguments, **options)

                patch.setattr(owner, name, wrapped)
        with pytest.raises(Interrupted) as caught:
            pretrain(run=str(folder), **SETTINGS)
    return caught.value


def steps_saved(folder: Path) -> int:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return int(checkpoint["global_step"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(run=str(folder), **SETTINGS)
    return outcome(folder)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_within_an_epoch_saves_the_step_and_the_run_goes_on_from_there(
    whole: dict[str, Any], tmp_path: Path, name: str
) -> None:
    number = getattr(signal, name)
    error = signalled(tmp_path / "r", {"training_step": number}, at=5)
    assert error.signum == number
    assert error.how == f"to go on from step 5: unmix pretrain --run {tmp_path / 'r'}"
    assert steps_saved(tmp_path / "r") == 5  # the second of the second epoch's three
    pretrain(run=str(tmp_path / "r"))
    assert outcome(tmp_path / "r") == whole


def test_a_signal_in_an_epochs_last_step_is_obeyed_before_its_evaluation(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    signalled(tmp_path / "r", {"training_step": signal.SIGTERM}, at=3)
    assert steps_saved(tmp_path / "r") == 3
    assert not (tmp_path / "r" / "metrics.csv").exists()
    pretrain(run=str(tmp_path / "r"))
    assert outcome(tmp_path / "r") == whole


def test_a_signal_during_an_evaluation_is_obeyed_at_once(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    signalled(tmp_path / "r", {"_measure": signal.SIGTERM}, at=2)
    assert steps_saved(tmp_path / "r") == 6
    pretrain(run=str(tmp_path / "r"))
    assert outcome(tmp_path / "r") == whole


def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path: Path) -> None:
    reached = []
    step = Pretraining.training_step

    def wrapped(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("not reached")
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "training_step", wrapped)
        with pytest.raises(Interrupted) as caught:
            pretrain(run=str(tmp_path / "r"), **SETTINGS)
    assert not reached
    assert caught.value.how == (
        "nothing was saved yet, so the same command starts from the beginning"
    )


def test_handlers_are_as_before_when_a_run_has_ended(tmp_path: Path) -> None:
    before = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM")}
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            measure = Reporter._measure

            def wrapped(*arguments: Any) -> Any:
                seen.append(signal.getsignal(signal.SIGHUP))
                return measure(*arguments)

            patch.setattr(Reporter, "_measure", wrapped)
            pretrain(run=str(tmp_path / "r"), **SETTINGS)
        assert set(seen) == {signal.SIG_IGN}
    finally:
        signal.signal(signal.SIGHUP, ignored)
    after = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM")}
    assert after == before


def test_the_command_says_how_to_go_on_and_ends_with_the_signals_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Pretraining.training_step

    def wrapped(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(Pretraining, "training_step", wrapped)
    run = str(tmp_path / "r")
    words = ["--method", "moco", "--data", "digits", "--limit", "48", "--size", "8",
             "--batch_size", "16", "--bn_splits", "1", "--queue_size", "32", "--epochs", "2",
             "--device", "cpu", "--logger", "none", "--run", run]  # fmt: skip
    assert main(["pretrain", *words]) == 128 + signal.SIGTERM
    shown = capsys.readouterr().err
    assert shown.splitlines()[-1] == (
        f"unmix: stopped by SIGTERM; to go on from step 1: unmix pretrain --run {run}."
    )
    assert "Traceback" not in shown


def stopped(words: list[str], run: Path, to_all: bool, devices: int = 1) -> str:
    """The output of a run that gets SIGTERM after its first epoch and ends with its status."""
    said = run.with_name("said")
    process = program(["pretrain", *words, "--run", str(run)], said, devices=devices)
    until = time.monotonic() + 240
    while not (run / "metrics.csv").exists():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM, said.read_text()
    return said.read_text()


@pytest.mark.parametrize("to_all", [True, False])
def test_sigterm_to_a_run_with_data_workers_saves_and_stops(tmp_path: Path, to_all: bool) -> None:
    """SLURM signals every process of a step; a user may signal the first alone."""
    noise = np.random.default_rng(0)
    for i in range(24):
        pixels = noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    run = tmp_path / "run"
    words = ["--data", str(tmp_path / "images"), "--method", "simclr", "--size", "12",
             "--backbone", "resnet10", "--width", "0.125", "--batch_size", "8", "--epochs", "9999",
             "--workers", "2", "--resident", "no", "--device", "cpu",
             "--logger", "none"]  # fmt: skip
    output = stopped(words, run, to_all)
    line = f"stopped by SIGTERM; to go on from step {steps_saved(run):,}: unmix pretrain --run"
    assert f"{line} {run}." in output
    assert "Traceback" not in output
    assert steps_saved(run) >= 3


@pytest.mark.parametrize("to_all", [True, False])
def test_sigterm_to_a_run_of_two_processes_saves_and_stops(tmp_path: Path, to_all: bool) -> None:
    run = tmp_path / "run"
    words = ["--data", "digits", "--limit", "64", "--method", "simclr", "--size", "8",
             "--backbone", "resnet10", "--width", "0.125", "--batch_size", "16", "--epochs", "9999",
             "--knn_every", "0", "--devices", "2", "--device", "cpu",
             "--logger", "none"]  # fmt: skip
    output = stopped(words, run, to_all, devices=2)
    assert output.count("stopped by SIGTERM; to go on") == 1
    assert "Traceback" not in output
    assert steps_saved(run) >= 4
