"""Runs of any kind are compared: unfinished, on other data, among other files."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runs import MOCO_RUN
from unmix.commands import compare, plot
from unmix.commands.conditions import settings_table
from unmix.commands.export import _lines
from unmix.commands.plots.opened import labels_of
from unmix.commands.reading import read_run, short_names
from unmix.commands.report_samples import mixture_samples
from unmix.config import Settings
from unmix.errors import UserError
from unmix.results import load_results
from unmix.studies.cost import forward_equivalents
from unmix.training import RunFolder
from unmix.training.run.pretrain import settings_for

SMALL: dict[str, Any] = {
    **MOCO_RUN, "data": "photos", "limit": 64, "batch_size": 32, "epochs": 4, "queue_size": 64,
}  # fmt: skip
HOW = {"k": 200, "temperature": 0.1, "features": "backbone"}


@pytest.fixture(autouse=True)
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmix.figures.saving.render", lambda figure, kind: b"<svg></svg>")


def begun(folder: Path, epochs: int, **words: Any) -> RunFolder:
    """A run folder after some epochs, without results."""
    run = RunFolder(folder)
    run.write_settings(Settings.of({**settings_for({**SMALL, **words})[0].flat(), "run": None}))
    rows = [f"{e},{2 * (e + 1)},1.0,{40 + e},100.0" for e in range(epochs)]
    run.metrics.write_text("\n".join(["epoch,step,loss,knn,images_per_second", *rows]) + "\n")
    return run


def ended(
    folder: Path, knn: float, rows: tuple[dict[str, Any], ...] = (), **words: Any
) -> RunFolder:
    """A run folder whose run has ended."""
    run = begun(folder, 4, **words)
    settings = run.settings()
    flat = settings.flat()
    own = [{"protocol": "knn", "epoch": 4, "top1": knn, "top5": None, **HOW}] if knn >= 0 else []
    content = {
        "schema": 1, "name": folder.name, "mixture": settings.mixture.name, "command": "unmix",
        **{k: flat[k] for k in ("method", "backbone", "width", "size", "epochs", "seed", "data")},
        "evaluations": [*own, *rows],
        "training": {"seconds": 90.0 + knn, "images_per_second": 100.0, "steps": 8},
        "hardware": {"cpu": "a", "threads": 1},
    }  # fmt: skip
    run.results.write_text(json.dumps(content))
    return run


def told(*runs: RunFolder | Path, out: Path, **words: Any) -> tuple[list[str], dict[str, Any]]:
    lines: list[str] = []
    folders = [run if isinstance(run, Path) else run.path for run in runs]
    compare(*folders, out=out, device="cpu", say=lines.append, **words)
    return lines, json.loads((out / "compare.json").read_text())


def table_of(lines: list[str], head: str) -> list[list[str]]:
    (text,) = [line for line in lines if line.startswith(head)]
    return [row.split() for row in text.strip().splitlines()]


def test_the_answer_is_first_then_settings_conditions_and_runs(tmp_path: Path) -> None:
    runs = [ended(tmp_path / f"a{s}", 40.0 + s, seed=s, lr=0.03) for s in range(6)]
    runs += [ended(tmp_path / f"b{s}", 45.0 + 1.1 * s, seed=s, lr=0.06) for s in range(6)]
    lines, found = told(*runs, out=tmp_path / "out")
    assert lines[0].startswith("lr 0.06 against lr 0.03, kNN: better by 5.2 points (95% interval ")
    assert lines[1].startswith(
        "Cost of lr 0.06 against lr 0.03: as many forward-equivalents (4.1 a step), and 1.04x the "
        "training time (2:18 min instead of 2:12 min)."
    )
    assert table_of(lines, "setting")[2] == ["lr", "0.03", "0.06"]
    heads = [line.split()[0] for line in lines[2:6]]
    assert heads == ["setting", lines[3].split()[0], "condition", "run"]
    common = len(found["common"])
    assert lines[3] == f"{common} settings of all runs are not listed: --settings prints them.\n"
    assert (found["differing"]["lr"], found["common"]["epochs"]) == (
        {"lr 0.03": 0.03, "lr 0.06": 0.06}, 4,
    )  # fmt: skip
    assert found["answer"]["headline"] == "lr 0.06 is better than lr 0.03 by 5.2 points (kNN)."
    assert "over 6 paired seeds; p = 0.031 by the exact sign-flip" in found["answer"]["sure"]
    (condition,) = [line for line in lines if line.startswith("condition")]
    assert condition.count("*") == 1  # the better accuracy, and nothing of a single run
    (listed,) = [line for line in lines if line.startswith("run ")]
    assert "*" not in listed
    lines, _ = told(*runs, out=tmp_path / "out", settings=True)
    assert any("\nepochs 4\n" in line for line in lines)


def test_weights_to_start_from_are_a_short_name_and_not_needed(tmp_path: Path) -> None:
    words = {"init": str(tmp_path / "gone.pth"), "init_sha256": "ab" * 32}
    runs = [ended(tmp_path / "a", 40.0), ended(tmp_path / "b", 45.0, **words)]
    lines, found = told(*runs, out=tmp_path / "out")
    assert list(found["conditions"]) == ["no init", "init gone.pth (abababab)"]
    steps = [one["forward_equivalents"] for one in found["conditions"].values()]
    assert steps[0] == steps[1] is not None
    assert not any("cannot be counted" in line for line in lines)


def test_other_images_are_never_ranked_with_these(tmp_path: Path) -> None:
    """Nine runs, two on 512 images and seven on 256, were ranked without a note."""
    runs = [ended(tmp_path / f"a{s}", 60.0, seed=s, limit=512) for s in range(2)]
    runs += [ended(tmp_path / f"b{s}", 40.0 + s, seed=s, limit=256) for s in range(4)]
    runs += [ended(tmp_path / f"c{s}", 41.0 + s, seed=s, limit=256, unmix=True) for s in range(3)]
    lines, found = told(*runs, out=tmp_path / "out")
    pairs = [(c["candidate"], c["reference"]) for c in found["comparisons"]]
    assert pairs == [("MoCo + Un-Mix, limit 256", "MoCo, limit 256")]
    refused = "MoCo, limit 256 against MoCo, limit 512: different settings: no comparison (limit is"
    assert any(refused in line for line in lines[0].splitlines())
    assert not any("0.50x" in line for line in lines)


def test_a_run_that_is_trained_is_marked_and_does_not_count(tmp_path: Path) -> None:
    done = ended(tmp_path / "done", 50.0)
    going = begun(tmp_path / "going", 3, seed=1)
    owner = {"host": socket.gethostname(), "process": os.getpid()}
    (going.path / ".owner.json").write_text(json.dumps(owner))
    lines, found = told(done, going, out=tmp_path / "out")
    assert table_of(lines, "run ")[3][2:6] == ["1", "running,", "3", "of"]
    assert "42.0 (epoch 3)" in "".join(lines)
    assert found["conditions"]["MoCo"]["accuracies"]["knn"] == {"0": 50.0}
    assert "going is running, at epoch 3 of 4; it counts in comparisons at its end." in lines
    (going.path / ".owner.json").unlink()
    lines, found = told(done, going, out=tmp_path / "out")
    assert any(line.startswith("going has stopped at epoch 3 of 4 (unmix pret") for line in lines)
    assert [run["complete_epochs"] for run in found["runs"]] == [4, 3]
    # At equal epochs it counts.
    _, found = told(done, going, out=tmp_path / "out", epoch=3)
    assert found["conditions"]["MoCo"]["accuracies"]["knn"] == {"1": 42.0}
    with pytest.raises(UserError, match="no run was evaluated after epoch 9; they were after 1, 2"):
        told(done, going, out=tmp_path / "out", epoch=9)


@pytest.mark.parametrize("text", ["", "epoch,step,loss", "epoch,step,loss,knn\n0,2,1.", None])
def test_a_run_that_has_just_begun_is_read(tmp_path: Path, text: str | None) -> None:
    run = begun(tmp_path / "r", 0)
    if text is None:
        run.metrics.unlink()
    else:
        run.metrics.write_text(text)
    found = read_run(run.path)
    assert found.complete_epochs == (text is not None and "knn\n0" in text)
    assert not found.ended
    lines, _ = told(run, out=tmp_path / "out")
    assert lines[0].startswith("There is no accuracy to compare yet.")


def test_a_run_that_is_extended_does_not_count_with_its_earlier_end(tmp_path: Path) -> None:
    run = ended(tmp_path / "r", 50.0)
    run.change(epochs=8, restarts=[4])
    found = read_run(run.path)
    assert (found.epochs, found.complete_epochs, found.ended) == (8, 4, False)


def test_accuracies_on_other_data_are_shown_and_compared(tmp_path: Path) -> None:
    def row(data: str, top1: float) -> dict[str, Any]:
        counts = {"train_images": 100, "test_images": 50}
        return {"protocol": "knn", "epoch": 4, "top1": top1, "data": data, **HOW, **counts}

    other = "/x/birds"
    runs = [
        ended(tmp_path / f"a{s}", -1, (row("digits", 70.0 + s), row(other, 5.0)), seed=s)
        for s in range(6)
    ]
    runs += [
        # Pretrained on other images, which does not matter for a test on digits.
        ended(tmp_path / f"b{s}", -1, (row("digits", 75.0 + 1.1 * s),), seed=s, limit=32)
        for s in range(6)
    ]
    lines, found = told(*runs, out=tmp_path / "out")
    assert lines[0].startswith("limit 32 against limit 64, kNN on digits: better by 5.2 points (")
    (table,) = [line for line in lines if line.startswith("run ")]
    head = table.splitlines()[0]
    assert "kNN on digits" in head
    assert "kNN on birds" in head
    assert "linear" not in head
    expected = [{**row("digits", 70.0), "top5": None}, {**row(other, 5.0), "top5": None}]
    assert found["runs"][0]["evaluations"] == expected
    assert not any("No run has an accuracy" in line for line in lines)


def test_what_is_no_run_is_left_out_and_named(tmp_path: Path, refuse: Callable[..., str]) -> None:
    run = ended(tmp_path / "r", 50.0)
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "compare.json").write_text("{}")
    (tmp_path / "r.log").write_text("")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.yaml").write_text("")
    others = [tmp_path / name for name in ("compare", "r.log", "study")]
    lines, _ = told(run, *others, out=tmp_path / "out")
    left = [line for line in lines if line.startswith("left out: ")]
    assert [line.split(" ", 3)[3] for line in left][:2] == [
        "has a comparison and no run", "is a file and no run folder",
    ]  # fmt: skip
    assert "unmix study show" in left[2]
    logs = [tmp_path / f"r{i}.log" for i in range(5)]  # as beside the runs of a study
    for log in logs:
        log.write_text("")
    lines, _ = told(run, *logs, out=tmp_path / "out")
    assert [line for line in lines if line.startswith("left out: ")] == [
        f"left out: {logs[0]}, {logs[1]}, {logs[2]} and 2 more; each is a file and no run folder"
    ]
    assert "is a file and no run folder" in refuse("compare", tmp_path / "r.log")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("results.json", '{"schema": 7}', "has schema 7; this version of unmix reads 1"),
        ("results.json", '{"schema": 1', "is not valid JSON"),
        ("config.yaml", "a: [", "cannot be read (it is not valid YAML)"),
        ("config.yaml", "method: moco\nnothing: 1", "nothing: unknown setting"),
        ("config.yaml", "nothing: 1", "method is missing; it must be the name of a method"),
    ],
)
def test_damaged_runs_are_one_line(
    tmp_path: Path, refuse: Callable[..., str], file: str, text: str, says: str
) -> None:
    ended(tmp_path / "a", 50.0)
    ended(tmp_path / "b", 50.0)
    (tmp_path / "b" / file).write_text(text)
    assert says in refuse("compare", tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "compare").exists()


def test_a_report_folder_that_cannot_be_written_is_named_before_anything_is_printed(
    tmp_path: Path, refuse: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    ended(tmp_path / "a", 50.0)
    (tmp_path / "file").write_text("")
    line = refuse("compare", tmp_path / "a", "--out", tmp_path / "file" / "x")
    assert line.startswith(f"--out: {tmp_path / 'file' / 'x'} cannot be written (")
    assert capsys.readouterr().out == ""


def test_a_condition_can_be_the_reference_of_all(tmp_path: Path) -> None:
    runs = [ended(tmp_path / str(lr), 40.0, lr=lr) for lr in (0.1, 0.2, 0.3)]
    _, found = told(*runs, out=tmp_path / "out", reference="lr 0.2")
    pairs = [(c["candidate"], c["reference"]) for c in found["comparisons"]]
    assert pairs == [("lr 0.1", "lr 0.2"), ("lr 0.3", "lr 0.2")]
    with pytest.raises(UserError, match=r"'lr 9' is none of the conditions: lr 0\.1; lr 0\.2"):
        told(*runs, out=tmp_path / "out", reference="lr 9")


def test_what_computes_and_how_often_is_evaluated_makes_no_other_condition(tmp_path: Path) -> None:
    runs = [
        ended(tmp_path / "a", 40.0), ended(tmp_path / "b", 41.0, seed=1, knn_every=2, threads=2),
        ended(tmp_path / "c", 42.0, seed=2, device="auto", checkpoint_every=1),
    ]  # fmt: skip
    _, found = told(*runs, out=tmp_path / "out")
    assert list(found["conditions"]) == ["MoCo"]
    assert found["conditions"]["MoCo"]["accuracies"]["knn"] == {"0": 40.0, "1": 41.0, "2": 42.0}


def test_a_step_with_unmix_has_three_forwards_more() -> None:
    def count(**words: Any) -> float:
        return forward_equivalents(settings_for({**SMALL, **words})[0], 64)

    plain, mixed = count(), count(unmix=True)
    # A forward and a backward pass of the query (3) and a forward of the key; the heads count too.
    assert plain == pytest.approx(4, abs=0.2)
    assert mixed - plain == pytest.approx(3, abs=0.2)
    # It depends neither on where the data is nor on the size of the batch.
    assert count(data="/nowhere", batch_size=8) == pytest.approx(plain, rel=0.02)


def test_each_of_several_mixtures_has_its_samples_and_what_has_none_says_why(
    tmp_path: Path,
) -> None:
    two = begun(tmp_path / "two", 1, unmix=True, unmix_mixture="coin+mixmask", unmix_patch=4)
    words = {"unmix_layer": "layer1", "unmix_shares": (0.5, 0.5)}
    part = begun(tmp_path / "part", 1, unmix=True, unmix_mixture="manifold+saliencymix", **words)
    pictures, notes = mixture_samples({"A": two.path, "B": part.path, "C": begun(
        tmp_path / "c", 1).path})  # fmt: skip
    heads = [(p.title, p.caption.split(":")[0]) for p in pictures]
    assert heads == [
        ("A", "Un-Mix (coin+mixmask), coin"), ("A", "Un-Mix (coin+mixmask), mixmask"),
        ("B", "Un-Mix (manifold+saliencymix), saliencymix"),
    ]  # fmt: skip
    (note,) = notes
    assert note.startswith("No samples of the mixture of B: ")
    assert "manifold mixes features" in note


def test_names_of_folders_are_as_long_as_they_must_be() -> None:
    assert short_names(["/a/x", "/b/x", "/c/y"]) == {"/a/x": "a/x", "/b/x": "b/x", "/c/y": "c/y"}
    assert short_names(["/a/x\n"]) == {"/a/x\n": "x\\n"}


def test_the_settings_that_differ_are_a_table_that_fits() -> None:
    two = settings_table({"lr": {"a": 0.1, "b": 0.2}, "head": {"a": None, "b": [1, 2]}})
    assert two is not None
    assert two.columns == ("setting", "a", "b")
    assert [[cell.text for cell in row] for row in two.rows] == [
        ["lr", "0.1", "0.2"], ["head", "–", "1 2"],
    ]  # fmt: skip
    many = settings_table({"lr": {f"condition {i} of many": i / 10 for i in range(9)}})
    assert many is not None
    assert many.columns == ("condition", "lr")
    assert settings_table({}) is None


def test_names_of_conditions_are_whole_in_the_table_of_settings_and_long_values_readable() -> None:
    names = [f"moco, Un-Mix, queue of 65,536 keys, learning rate {rate}" for rate in (0.1, 0.2)]
    path = f"/data/{'deep/' * 20}images"
    rates = " ".join(map(str, range(40)))
    found = settings_table({
        "data": dict.fromkeys(names, path), "rates": dict.fromkeys(names, rates),
        **{f"setting {i}": dict.fromkeys(names, "x") for i in range(3)},
    })  # fmt: skip
    assert found is not None
    assert found.columns[0] == "setting"
    assert found.columns[1:] == tuple(names)
    values = {row[0].text: row[1].text for row in found.rows}
    assert values["data"].startswith("…")
    assert values["data"].endswith("deep/images")
    assert values["rates"].startswith("0 1 2 3 ")
    assert values["rates"].endswith(" 38 39")
    assert max(map(len, values.values())) <= 40
    wide = settings_table({"lr": {f"{names[0]}, {i}": i for i in range(9)}})
    assert wide is not None
    assert [row[0].text for row in wide.rows] == [f"{names[0]}, {i}" for i in range(9)]


def changed(run: RunFolder, **parts: Any) -> RunFolder:
    content = json.loads(run.results.read_text())
    for name, part in parts.items():
        content[name] = {**content[name], **part} if isinstance(part, dict) else part
    run.results.write_text(json.dumps(content))
    return run


def test_other_hardware_is_named_where_times_are_shown(tmp_path: Path) -> None:
    """The mean of the seconds of a CPU and of a GPU stood on the axis, and in the table."""
    runs = [ended(tmp_path / f"a{s}", 40.0 + s, seed=s) for s in range(2)]
    runs.append(ended(tmp_path / "b0", 45.0, unmix=True))
    told(*runs, out=tmp_path / "out")
    assert "different hardware" not in (tmp_path / "out" / "report.html").read_text()
    changed(runs[1], hardware={"gpu": "H100"})
    lines, found = told(*runs, out=tmp_path / "out")
    (note,) = [note for note in found["notes"] if "different hardware" in note]
    assert note.endswith("times do not compare: a, 1 thread for a0, b0, H100 for a1.")
    assert "(2 machines)" in next(line for line in lines if line.startswith("condition"))
    report = (tmp_path / "out" / "report.html").read_text()
    assert "as runs of one condition were on different hardware" in report


def test_results_that_do_not_say_how_many_devices_have_it_from_their_settings(
    tmp_path: Path,
) -> None:
    """One and eight GPUs of a kind were the same hardware."""
    one = changed(ended(tmp_path / "a", 40.0), hardware={"gpu": "H100"})
    eight = changed(ended(tmp_path / "b", 41.0, devices=8), hardware={"gpu": "H100"})
    assert [read_run(run.path).machine for run in (one, eight)] == ["H100", "8 x H100"]


def test_a_comparison_after_an_epoch_says_so_everywhere(tmp_path: Path) -> None:
    row = {"protocol": "knn", "epoch": 2, "top1": 30.0, "top5": None, **HOW}
    runs = [ended(tmp_path / name, 40.0, (row,), seed=s) for s, name in enumerate("ab")]
    lines, found = told(*runs, out=tmp_path / "out", epoch=2)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "at the last epoch" not in report
    assert "Top-1 in percent after epoch 2: mean" in report
    assert found["epoch"] == 2
    note = "Compared after epoch 2, not at the end; epochs, cost and time are of the whole runs."
    assert note in lines
    assert note in found["notes"]
    assert note in report
    _, found = told(*runs, out=tmp_path / "out")
    assert found["epoch"] is None
    assert "at the last epoch" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("name", ["accuracy", "knn"])
def test_a_figure_of_runs_that_were_measured_in_other_ways_says_so(
    tmp_path: Path, name: str
) -> None:
    runs = [ended(tmp_path / f"a{s}", 40.0 + s, seed=s) for s in range(2)]
    text = runs[1].results.read_text()
    runs[1].results.write_text(text.replace('"k": 200', '"k": 1'))
    lines: list[str] = []
    plot(name, *(run.path for run in runs), out=tmp_path / "f.svg", say=lines.append)
    assert "kNN was measured with different settings: k is 200 for a0, 1 for a1." in lines


def test_a_figure_against_time_says_what_other_hardware_leaves_out(
    tmp_path: Path,
) -> None:
    runs = [ended(tmp_path / f"a{s}", 40.0 + s, seed=s) for s in range(2)]
    runs.append(ended(tmp_path / "b0", 45.0, unmix=True))
    changed(runs[1], hardware={"gpu": "H100"})
    paths = [run.path for run in runs]
    found = plot("accuracy", *paths, against="time", out=tmp_path / "f.svg", say=lambda line: None)
    assert "Without a line, as runs were on different hardware: MoCo." in found.caption
    with pytest.raises(UserError, match="has runs of one condition on different hardware"):
        plot("accuracy", *paths[:2], against="time", out=tmp_path / "g.svg", say=lambda line: None)


def test_runs_of_one_folder_name_in_two_places_have_two_labels(tmp_path: Path) -> None:
    """Features are kept by label: one of the runs was lost."""
    runs = [begun(tmp_path / place / "first", 1) for place in "ab"]
    labels = labels_of([run.path for run in runs])
    assert labels == ["MoCo, seed 0 (a/first)", "MoCo, seed 0 (b/first)"]


def on_card(run: RunFolder) -> dict[str, float]:
    """The accuracies on the model card."""
    finished: Any = SimpleNamespace(folder=run, settings=run.settings())
    results = load_results(run.path)
    return {line.title: line.value for line in _lines(finished, results, results.epochs)}


LINEAR = {"protocol": "linear", "epoch": 4, "top5": None, "features": "backbone", "data": "cls"}
TUNED = {"protocol": "finetune", "epoch": 4, "top5": None, "settings": "swav", "epochs": 12}
SCRATCH = {**TUNED, "top1": 16.7, "start": "random"}


@pytest.mark.parametrize("order", [1, -1])
def test_random_weights_are_never_the_fine_tuned_encoder(tmp_path: Path, order: int) -> None:
    """Of two unpublished settings the last row won, which was that of random weights."""
    run = ended(tmp_path / "a", 50.0, ({**TUNED, "top1": 66.7}, SCRATCH)[::order])
    row = load_results(run.path).final("finetune")
    assert row is not None
    assert row.top1 == 66.7
    lines, found = told(run, out=tmp_path / "out")
    for words in ("kNN 50.0%", "fine-tuned 66.7%", "from scratch 16.7%"):
        assert words in lines[0]
    assert not any("measured in other ways" in line for line in lines)
    (condition,) = found["conditions"].values()
    assert condition["accuracies"]["scratch"] == {"0": 16.7}
    assert on_card(run) == {"kNN": 50.0, "Fine-tuned": 66.7, "From scratch": 16.7}
    alone = ended(tmp_path / "b", 50.0, (SCRATCH,))
    lines, _ = told(alone, out=tmp_path / "out2")
    assert "fine-tuned" not in " ".join(lines)


def test_one_layer_is_never_the_encoder(tmp_path: Path) -> None:
    """With no other row, the accuracy of conv1 stood in tables and on the card as the encoder's."""
    rows = (
        {**LINEAR, "layer": "conv1", "top1": 61.1},
        {**LINEAR, "features": "projector", "top1": 55},
    )
    run = ended(tmp_path / "a", -1, rows)
    lines, found = told(run, out=tmp_path / "out")
    assert lines[0].startswith(
        "MoCo: linear on cls, layer conv1 61.1%, linear on cls (projector features) 55.0% (1 seed)"
    )
    assert on_card(run) == {"Linear, layer conv1": 61.1, "Linear, projector features": 55.0}
    # A layer is compared with the same layer of another run alone.
    others = [ended(tmp_path / f"b{i}", 50.0, rows[:1], unmix=bool(i)) for i in range(2)]
    _, found = told(*others, out=tmp_path / "out2")
    measures = [one["protocol"] for one in found["comparisons"]]
    assert measures == ["knn", "linear on cls, layer conv1"]
    assert "--data cls --layer conv1 measures them)" in " ".join(found["verdicts"])
    assert "layer conv1" in (tmp_path / "out2" / "report.html").read_text()
