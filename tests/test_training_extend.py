"""Going on with a finished run: schedules start again, and the record says so."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from unmix.cli import main
from unmix.commands.compare import compare
from unmix.config import OptimizerSettings, Settings
from unmix.errors import UserError
from unmix.methods import Progress
from unmix.results import load_results
from unmix.training import RunFolder, pretrain
from unmix.training.loop.module import Pretraining
from unmix.training.loop.optimizers import learning_rate_factor
from unmix.training.run.extending import extended, how_it_goes_on
from unmix.training.run.notes import notes_on_rates
from unmix.training.run.pretrain import complete, settings_for

TINY: dict[str, Any] = {
    "data": "digits", "backbone": "resnet10", "width": 0.25, "size": 8, "limit": 64,
    "batch_size": 16, "knn_every": 1, "knn_k": 5, "logger": "none", "device": "cpu",
    "precision": "32", "seed": 3,
}  # fmt: skip
BYOL: dict[str, Any] = {
    **TINY, "method": "byol", "hidden": 16, "dim": 8, "optimizer": "adamw", "lr": 1e-3,
    "final_lr": 1e-4, "final_weight_decay": 0.1, "warmup_epochs": 0.5, "lr_decay": 0.8,
}  # fmt: skip


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # The rate in a row is that of the coming step, and a run that ends has none.
    left_out = ("images_per_second", "lr")
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that has ended."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("extend") / "run"
    pretrain(run=str(folder), epochs=2, **BYOL)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: object) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == 2
        return capsys.readouterr().err.strip().removeprefix("unmix: error: ")

    return call


def test_an_extended_run_is_a_run_with_that_restart(run: Path, tmp_path: Path) -> None:
    """Bit for bit: weights, momentum encoder, metrics, accuracies; and its config repeats it."""
    extended = pretrain(run=str(run), epochs=5, extend=True)
    words = yaml.safe_load((run / "config.yaml").read_text())
    assert (words["epochs"], words["restarts"]) == (5, [2])
    whole = pretrain(str(run / "config.yaml"), run=str(tmp_path / "whole"))
    ours, theirs = state(run), state(tmp_path / "whole")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert metrics(run) == metrics(tmp_path / "whole")
    assert [row["epoch"] for row in metrics(run)] == ["0", "1", "2", "3", "4"]
    assert extended.epochs == 5
    assert [e.epoch for e in extended.of("knn")] == [1, 2, 3, 4, 5]
    for protocol in ("knn", "linear"):
        one, other = extended.final(protocol), whole.final(protocol)
        assert one is not None
        assert other is not None
        assert (one.epoch, one.top1, one.top5) == (other.epoch, other.top1, other.top5)
    assert extended.training["restarts"] == whole.training["restarts"] == [2]


def test_a_warmup_that_nothing_follows_is_told() -> None:
    """And how far it rises, which is what the schedule does."""

    def chosen(**words: Any) -> Settings:
        return Settings.of({**BYOL, "epochs": 5, **words})

    long = chosen(warmup_epochs=10)
    (note,) = notes_on_rates(long)
    assert note.startswith("note: --warmup_epochs 10 takes all of the 5 epochs, so that the learn")
    assert note.endswith("only rises, to 0.0005 of 0.001")
    factor = learning_rate_factor(long.optimizer, 5, 4)
    assert factor(19) == pytest.approx(0.5)
    longer = chosen(warmup_epochs=2, restarts=[4])
    (note,) = notes_on_rates(longer)
    assert "the 1 epoch from epoch 4, so that" in note
    last = learning_rate_factor(longer.optimizer, 5, 4)(19) * 1e-3
    assert note.endswith(f"to {last:.3g} of 0.001")
    assert (
        f"only rises, from 0.0001 to {last:.3g} of 0.001, since a warmup of 2 epochs takes all "
        "of the 1 added epoch" in how_it_goes_on(longer)
    )
    (note,) = notes_on_rates(chosen(schedule="step", final_lr=0, milestones=[3, 5, 9]))
    assert note.startswith("note: --milestones 5 9: the run ends with epoch 5")
    for fine in ({}, {"warmup_epochs": 4}, {"restarts": [2]},
                 {"schedule": "step", "final_lr": 0, "milestones": [3], "warmup_epochs": 2,
                  "restarts": [4]}):  # fmt: skip
        assert notes_on_rates(chosen(**fine)) == ()


def test_the_record_names_every_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Extended twice; results, `compare` and the same command again say so."""
    first = load_results(run)
    assert main(["pretrain", "--run", str(run), "--epochs", "3", "--extend"]) == 0
    out = capsys.readouterr().out
    assert f"{run}: goes on from epoch 2 to 3; the learning rate rises from 0.0001 to 0.001" in out
    assert (
        "over 0.5 epochs of warmup, then falls by a cosine to the end of the 1 added epoch" in out
    )
    again = ["pretrain", "--run", str(run), "--epochs", "4", "--extend"]
    assert main(again) == 0
    found = load_results(run)
    assert found.training["restarts"] == [2, 3]
    assert found.training["extended"] == [
        {"epochs": 2, "command": first.command},
        {"epochs": 3, "command": f"unmix pretrain --run {run} --epochs 3 --extend"},
    ]
    assert found.command == f"unmix pretrain --run {run} --epochs 4 --extend"
    assert {e.epoch for e in found.of("linear")} == {2, 3, 4}
    capsys.readouterr()
    assert main(again) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out
    said: list[str] = []
    compare(run, say=said.append)
    assert any("run was extended, and started its schedules again at epoch 2, 3" in s for s in said)


def test_a_killed_extension_is_resumed_as_such(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """By `--run` alone or by the same command; meanwhile nothing takes the old encoder for it."""
    step = Pretraining.training_step

    def stop_at(number: int) -> None:
        def stopping(self: Pretraining, batch: Any, batch_idx: int) -> Any:
            if self.global_step == number:
                raise KeyboardInterrupt
            return step(self, batch, batch_idx)

        monkeypatch.setattr(Pretraining, "training_step", stopping)

    for number, words in ((8, {"epochs": 4, "extend": True}), (13, {})):  # an epoch is 4 steps
        stop_at(number)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            pretrain(run=str(run), **words)  # type: ignore[arg-type]
        line = refused("knn", run)
        assert "is being extended to 4 epochs; to finish it: unmix pretrain --run" in line
        assert "restarts" not in load_results(run).training
    line = refused("pretrain", "--run", run, "--epochs", "5", "--extend")
    assert "has not ended its 4 epochs; finish them first" in line
    said: list[str] = []
    compare(run, say=said.append)
    assert any("is being extended to 4 epochs; its results here are those of" in s for s in said)
    monkeypatch.setattr(Pretraining, "training_step", step)
    found = pretrain(run=str(run), epochs=4, extend=True)
    assert (found.epochs, found.training["restarts"]) == (4, [2])
    whole = tmp_path / "whole"
    pretrain(str(run / "config.yaml"), run=str(whole))
    ours, theirs = state(run), state(whole)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_without_extend_both_ways_are_named(run: Path, refused: Callable[..., str]) -> None:
    line = refused("pretrain", "--run", run, "--epochs", "4")
    assert line.startswith(f"--epochs: {run} has ended after its 2 epochs, for which its schedules")
    assert "which end at a learning rate of 0.0001" in line
    assert f"unmix pretrain --run {run} --epochs 4 --extend;" in line
    assert f"unmix pretrain --config {run / 'config.yaml'} --epochs 4 --run OTHER" in line
    fewer = refused("pretrain", "--run", run, "--epochs", "1")
    assert "--extend" not in fewer


def test_what_cannot_be_extended_is_refused(
    run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    before = (run / "config.yaml").read_text()
    more = ("--epochs", "4", "--extend")
    line = refused("pretrain", "--run", run, "--extend")
    assert line.startswith("--extend: give --epochs too: how many it shall have in all, more than")
    for epochs in ("1", "2"):
        line = refused("pretrain", "--run", run, "--epochs", epochs, "--extend")
        assert line.startswith(f"--epochs: {epochs} is not more than the 2 that {run} has")
    line = refused("pretrain", "--run", run, *more, "--lr", "0.5")
    assert "its lr is 0.001, not 0.5" in line
    line = refused("pretrain", "--run", tmp_path / "none", *more)
    assert line.startswith(f"--extend: {tmp_path / 'none'} holds no run to go on with")
    (run / "encoder.safetensors").rename(tmp_path / "encoder")
    line = refused("pretrain", "--run", run, *more)
    assert "has not ended its 2 epochs; finish them first: unmix pretrain --run" in line
    (tmp_path / "encoder").rename(run / "encoder.safetensors")
    (run / "checkpoints" / "last.ckpt").unlink()
    assert "has no checkpoint any more" in refused("pretrain", "--run", run, *more)
    assert (run / "config.yaml").read_text() == before
    assert json.loads((run / "results.json").read_text())["epochs"] == 2
    for wrong in ("4", "0", "2,1"):
        words = ["--epochs", "4", "--restarts", *wrong.split(","), "--run", tmp_path / "none"]
        assert refused("pretrain", *words).startswith("--restarts: ")


def test_a_start_that_is_refused_leaves_the_run_as_it_was(
    run: Path,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a check of the machine, of the data and of the checkpoint, which is the last of all."""
    monkeypatch.setattr("sys.argv", ["unmix"])  # that of a worker of pytest-xdist is "-c"
    before = (run / "config.yaml").read_text()
    more = ("pretrain", "--run", run, "--epochs", "4", "--extend")
    absent = "mps" if torch.cuda.is_available() else "cuda"
    assert refused(*more, "--device", absent).startswith(f"--device: {absent} is not available")
    assert "goes on from epoch" not in capsys.readouterr().out
    assert "cannot be shared by 3 devices" in refused(*more, "--devices", "3")
    last = run / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    last.write_bytes(content[:-100])
    assert "holds no other that is intact" in refused(*more)
    last.write_bytes(content)
    assert (run / "config.yaml").read_text() == before
    assert main(["pretrain", "--run", str(run)]) == 0
    assert "is complete; nothing to do" in capsys.readouterr().out
    assert pretrain(run=str(run), epochs=3, extend=True).training["restarts"] == [2]


@pytest.mark.parametrize("late", [None, "extended", "complete"])
def test_other_processes_may_read_the_settings_before_the_first_writes_them_or_after(
    run: Path, monkeypatch: pytest.MonkeyPatch, late: str | None
) -> None:
    """As of torchrun or srun, whose processes start alike: each finds the same run to go on with.

    Args:
        late: What follows the moment in which the first process writes.
    """
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    words = {"run": str(run), "epochs": 4}

    def write() -> None:
        RunFolder(run).change(epochs=4, restarts=[2])

    settings, _ = settings_for(words)
    if late == "extended":
        write()
    longer = extended(settings, True)
    assert longer.optimizer.restarts == (2,)
    if late == "complete":
        write()
    assert complete(RunFolder(run, extend=True), longer) is None
    if late is None:
        with pytest.raises(UserError, match="has ended after its 2 epochs"):
            complete(RunFolder(run), longer)
    with pytest.raises(UserError, match=r"its lr is 0\.001, not 0\.5"):
        complete(RunFolder(run, extend=True), longer.with_changes(lr=0.5))


def test_an_extended_run_is_not_shortened(tmp_path: Path, refused: Callable[..., str]) -> None:
    words = {"method": "moco", "data": "photos", "epochs": 4, "restarts": (2,)}
    RunFolder(tmp_path / "r").write_settings(Settings.of(words))
    for more in ((), ("--extend",)):
        line = refused("pretrain", "--run", tmp_path / "r", "--epochs", "2", *more)
        assert line == (
            "--restarts: the schedules start again after epoch 2, so --epochs 2 is too few; it "
            "must be at least 3."
        )


def test_schedules_start_again_and_warm_up_from_where_they_ended() -> None:
    """Each span is a schedule of its own length; a step schedule goes on."""
    chosen = OptimizerSettings(
        lr=1.0, final_lr=0.1, warmup_epochs=1, warmup_start_lr=0.01, restarts=(3,)
    )
    factor = learning_rate_factor(chosen, epochs=8, steps_per_epoch=4)
    alone = learning_rate_factor(
        OptimizerSettings(lr=1.0, final_lr=0.1, warmup_epochs=1, warmup_start_lr=0.1), 5, 4
    )
    assert [factor(step) for step in range(12, 33)] == [alone(step) for step in range(21)]
    assert factor(11) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8)), rel=1e-12)
    steps = OptimizerSettings(lr=1.0, schedule="step", milestones=(1, 4), restarts=(3,))
    factor = learning_rate_factor(steps, epochs=6, steps_per_epoch=2)
    assert [factor(step) for step in (0, 2, 6, 8)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert Progress(12, 20, 4, restarted=10).fraction == 0.2
