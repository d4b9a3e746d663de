"""Finished runs are measured and compared without losing a number, by whoever, in any order."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import unmix.commands
from runs import MOCO_RUN
from unmix.cli import main
from unmix.commands import compare, knn, probe
from unmix.commands.rows import NotSavedError, add_row
from unmix.errors import UserError
from unmix.results import described, load_results
from unmix.training import RunFolder, pretrain
from unmix.training.console import silent

SMALL: dict[str, Any] = {**MOCO_RUN, "epochs": 2, "knn_k": 20, "checkpoint_every": 1}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "r"
    pretrain(run=str(run), **SMALL)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may change."""
    return shutil.copytree(finished, tmp_path / "r")


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmix.figures.saving.render", lambda figure, kind: b"<svg></svg>")


def rows(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "results.json").read_text())["evaluations"]


# --- results.json -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", '{"schema": 1', "[]", '{"schema": 1, "name": 3}', "\xff"])
def test_damaged_results_are_set_aside_and_written_anew(
    run: Path, text: str, refuse: Callable[..., str]
) -> None:
    """What the message advises is what then works."""
    (run / "results.json").write_text(text, encoding="latin-1")
    advice = f"`unmix knn {run}` measures the run, sets the damaged file aside and writes a new one"
    assert advice in refuse("compare", run)
    assert advice in refuse("pretrain", "--run", run)
    said: list[str] = []
    row = knn(run, k=20, device="cpu", say=said.append)
    assert "k 20, T 0.1, backbone features, epoch 2: top-1 " in said[1]
    assert said[2].startswith(f"warning: {run / 'results.json'} was damaged; it is results.damaged")
    assert (run / "results.damaged-1.json").read_text(encoding="latin-1") == text
    found = load_results(run)
    assert rows(run) == [row]
    assert (found.method, found.epochs, found.seed, found.size) == ("moco", 2, 0, 8)
    probe(run, device="cpu", say=silent)
    assert len(rows(run)) == 2
    (run / "results.json").write_text("again")
    knn(run, k=20, device="cpu", say=silent)
    assert (run / "results.damaged-2.json").read_text() == "again"


def test_results_of_a_newer_version_are_not_set_aside(run: Path) -> None:
    content = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**content, "schema": 7}))
    with pytest.raises(UserError, match="has schema 7; this version of unmix reads 1"):
        knn(run, device="cpu", say=silent)
    assert not list(run.glob("*damaged*"))


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written, as on a file system that is mounted for reading."""

    def refused(*_: Any, **__: Any) -> None:
        raise UserError("results.json: cannot be written (Read-only file system).")

    monkeypatch.setattr("unmix.results.atomic_write", refused)


@pytest.mark.usefixtures("unwritable")
def test_what_cannot_be_saved_is_printed_first(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "results.json").read_bytes()
    for words in (["knn", str(run)], ["probe", str(run), "--checkpoint", "all"]):
        assert main([*words, "--device", "cpu"]) == 2
        out, err = capsys.readouterr()
        assert out.count(" top-1 ") == (1 if words[0] == "knn" else 2)
        assert err == (
            "unmix: error: results.json: cannot be written (Read-only file system). The "
            "results are printed, but not saved.\n"
        )
    with pytest.raises(NotSavedError) as caught:
        probe(run, checkpoint="all", device="cpu", say=silent)
    assert [row["epoch"] for row in caught.value.rows] == [1, 2]
    assert main(["knn", str(run), "--device", "cpu", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["protocol"] == "knn"
    assert (run / "results.json").read_bytes() == before


def _measure(run: Path, k: int, start: Any) -> None:
    start.wait()
    for i in range(5):
        row = {"protocol": "knn", "epoch": 2, "top1": 1.0, "k": k, "temperature": 1.0 + i}
        add_row(RunFolder(run), row, main=False, say=silent)


def test_measurements_at_the_same_time_are_all_kept(run: Path) -> None:
    forked = multiprocessing.get_context("fork")
    before, start = len(rows(run)), forked.Barrier(3)
    workers = [forked.Process(target=_measure, args=(run, k, start)) for k in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(rows(run)) == before + 15


def test_a_run_whose_encoder_was_lost_keeps_its_other_rows(run: Path) -> None:
    row = knn(run, k=3, device="cpu", say=silent)
    (run / "encoder.safetensors").unlink()
    pretrain(run=str(run))
    assert row in rows(run)
    assert load_results(run).final("knn").details["k"] == 20  # type: ignore[union-attr]


# --- lines ------------------------------------------------------------------------------------


def test_every_row_says_how_it_was_measured(
    run: Path, capsys: pytest.CaptureFixture[str], unrendered: None
) -> None:
    knn(run, k=3, temperature=0.5, device="cpu", say=silent)
    assert main(["pretrain", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    own, other = "kNN, k 20, T 0.1, backbone features", "kNN, k 3, T 0.5, backbone features"
    for how in (own, other, "linear probe, backbone features"):
        assert said.count(f"{how}: top-1 ") == 1
    lines: list[str] = []
    folder = compare(run, out=run.parent / "out", device="cpu", say=lines.append).folder
    (note,) = [line for line in lines if "in other ways too" in line]
    assert note.startswith(f"r was measured in other ways too: {other}: ")
    report = (folder / "report.html").read_text()
    assert f"{own}, epoch 2" in report
    assert f"{other}, epoch 2" in report


def test_a_row_in_words() -> None:
    assert described({"protocol": "knn", "k": 5, "temperature": 0.07, "data": "x"}) == (
        "kNN on x (transfer), k 5, T 0.07"
    )
    assert described({"protocol": "cmc", "epochs": 60, "lr": 30.0, "features": "projector"}) == (
        "cmc probe, 60 epochs at lr 30, projector features"
    )


@pytest.mark.usefixtures("unrendered")
def test_json_is_all_that_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--json"]
    assert main(["knn", str(run), "--k", "7", *words]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == next(row for row in rows(run) if row.get("k") == 7)
    assert "kNN, k 7, T 0.1" in err
    assert main(["probe", str(run), *words]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["protocol"] == "linear"
    assert main(["compare", str(run), "--out", str(run.parent / "out"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in found["runs"]] == ["r"]
    assert found["runs"][0]["evaluations"] == rows(run)
    assert found == json.loads((run.parent / "out" / "compare.json").read_text())


# --- encoder files ----------------------------------------------------------------------------


def test_the_encoder_file_of_a_run_is_the_run(run: Path) -> None:
    row = knn(run / "encoder.safetensors", k=3, device="cpu", say=silent)
    assert row in rows(run)


def test_an_encoder_file_alone_is_measured_on_data_that_is_given(
    run: Path, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    own = next(row for row in rows(run) if row["protocol"] == "knn")
    file = shutil.copy(run / "encoder.safetensors", tmp_path / "net.safetensors")
    said: list[str] = []
    row = knn(file, k=20, data="digits", device="cpu", say=said.append)
    assert (row["data"], "epoch" in row) == ("digits", False)
    assert row["train_images"] == 1437 != own["train_images"]
    assert "kNN on digits (transfer), k 20, T 0.1, backbone features: top-1 " in said[1]
    assert "is not saved" in said[2]
    (row,) = probe(file, data="digits", device="cpu", say=silent)
    assert row["top1"] > 20
    assert {path.name for path in tmp_path.iterdir()} == {"r", "net.safetensors"}
    assert refuse("knn", file).startswith("--data: an encoder file does not say what it was tra")
    line = refuse("knn", file, "--data", "digits", "--features", "projector")
    assert line.startswith("--features: projector features need the run's checkpoints")
    line = refuse("probe", file, "--data", "digits", "--checkpoint", "all")
    assert line.startswith("--checkpoint: ")
    config = run / "config.yaml"
    assert "this is a file" in refuse("knn", config)


# --- what is refused --------------------------------------------------------------------------


def test_more_epochs_of_a_run_that_has_ended(run: Path, refuse: Callable[..., str]) -> None:
    """The command that the message names is one that works."""
    line = refuse("pretrain", "--run", run, "--epochs", "3")
    assert line.startswith(f"--epochs: {run} has ended after its 2 epochs, for which its schedules")
    command = f"unmix pretrain --config {run / 'config.yaml'} --epochs 3 --run OTHER"
    assert command in line
    other = run.parent / "other"
    words = command.removeprefix("unmix ").replace("OTHER", str(other)).split()
    assert main([*words, "--no-evaluate"]) == 0
    assert load_results(other).epochs == 3


@pytest.mark.parametrize(
    "words",
    [
        "pretrain --run=", "pretrain --data=", "pretrain --data_dir=", "knn --data=|r",
        "knn ", "probe --data_dir=|r", "compare --out=|r", "compare r||--device=cpu",
        "preview --out=", "data pack --data_dir=|a|b", "bench --data=", "demo --run=",
    ],
)  # fmt: skip
def test_an_empty_value_is_no_value(
    words: str, refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `--run="$UNSET"`: not the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("method: cmc\n")
    command, _, rest = words.partition(" ")
    if command == "data":
        command, rest = "data pack", rest.removeprefix("pack ")
    line = refuse(*command.split(), *rest.split("|"))
    assert ": the value is empty; give one, or leave " in line
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_an_empty_path_in_python_is_not_the_current_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    for call in (
        lambda: knn("", say=silent),
        lambda: pretrain(run="", **SMALL),
        lambda: pretrain(data_dir="", **SMALL),
        lambda: compare("", say=silent),
        lambda: compare(run, out="", say=silent),
        lambda: knn(run, data_dir="", say=silent),
    ):
        with pytest.raises(UserError, match="the value is empty"):
            call()


def test_outputs_are_given_by_keyword_alone() -> None:
    """So that a second run is never taken for the folder that is written into."""
    outputs = {"out", "json", "chart", "path", "folder_out"}
    for name in unmix.commands.__all__:
        for parameter in inspect.signature(getattr(unmix.commands, name)).parameters.values():
            if parameter.name in outputs:
                assert parameter.kind is parameter.KEYWORD_ONLY, (name, parameter.name)


@pytest.mark.usefixtures("unrendered")
def test_runs_are_compared_one_by_one_or_as_a_list(run: Path) -> None:
    other = shutil.copytree(run, run.parent / "s")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    for given in ((run, other), ([run, other],), (str(run), str(other))):
        folder = compare(*given, device="cpu", say=silent).folder  # type: ignore[arg-type]
        assert folder == run.parent / "compare"
        found = json.loads((folder / "compare.json").read_text())
        assert [r["name"] for r in found["runs"]] == ["r", "s"]
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
