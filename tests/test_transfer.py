"""`unmix transfer`: one table of runs on several data sets, its rows, and its comparison."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from unmix.cli import main
from unmix.commands import export, knn, transfer
from unmix.commands.reading import read_runs
from unmix.commands.transfer import _compared
from unmix.data import load
from unmix.results import load_results, protocols_of, write_results
from unmix.training import pretrain
from unmix.training.console import silent

SMALL: dict[str, Any] = {
    "backbone": "resnet10", "width": 0.125, "size": 16, "logger": "none", "device": "cpu",
    "workers": 0, "evaluate": False, "limit": 64, "batch_size": 32, "queue_size": 64,
    "bn_splits": 2, "epochs": 1, "method": "moco", "data": "digits",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two conditions with two seeds, and two small labeled folders."""
    root = tmp_path_factory.mktemp("transfer")
    for seed in (0, 1):
        pretrain(run=str(root / f"plain-{seed}"), seed=seed, **SMALL)
        pretrain(run=str(root / f"mixed-{seed}"), seed=seed, unmix=True, **SMALL)
    digits = load("digits", "train")
    for name, classes in (("some", (0, 1, 2)), ("others", (7, 8))):
        for label in classes:
            for split, which in (("train", slice(12)), ("test", slice(12, 18))):
                folder = root / name / split / str(label)
                folder.mkdir(parents=True)
                for i in (digits.labels == label).nonzero().flatten()[which].tolist():
                    pixels = digits.images[i].permute(1, 2, 0).numpy()
                    Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def all_runs(root: Path) -> list[Path]:
    return [root / f"{kind}-{seed}" for kind in ("plain", "mixed") for seed in (0, 1)]


def test_one_table_of_all_runs_whose_rows_are_kept(root: Path):
    lines: list[str] = []
    data = [str(root / "some"), str(root / "others")]
    protocols = ["linear", "knn", "finetune"]
    words = {"data": data, "protocols": protocols, "device": "cpu", "epochs": 1}
    found = transfer(*all_runs(root), **words, say=lines.append)
    assert len(found.rows) == 4 * 2 * 3
    assert found.table.columns == ("condition", "protocol", "some", "others", "mean")
    assert len(found.table.rows) == 2 * 3
    # Means over seeds and over data sets, by hand.
    top1 = {key: row["top1"] for key, row in found.rows.items()}
    cells = [cell.text for cell in found.table.rows[0]]
    assert cells[:2] == ["MoCo", "linear"]
    each = [[top1[f"plain-{s}", place, "linear"] for s in (0, 1)] for place in data]
    assert cells[-1] == f"{np.mean(each):.1f}"
    assert cells[2].startswith(f"{np.mean(each[0]):.1f}")
    # The mean difference over data sets; two of them have no interval.
    theirs = [[top1[f"mixed-{s}", place, "linear"] for s in (0, 1)] for place in data]
    differences = np.mean(theirs, axis=1) - np.mean(each, axis=1)
    expected = (
        f"linear: {differences.mean():+.1f} points on average over 2 data sets; an interval over "
        "data sets needs 3 or more"
    )
    assert any(line.endswith(expected) for line in found.words), (expected, found.words)
    for folder in all_runs(root):
        kept = load_results(folder).evaluations
        assert {(e.protocol, e.details["data"]) for e in kept} == {
            (protocol, place) for protocol in protocols for place in data
        }
    # Nothing is measured twice, and the rows are those of the other commands.
    again: list[str] = []
    same = transfer(*all_runs(root), **words, say=again.append)
    assert dict(same.rows) == dict(found.rows)
    measured = [line for line in again if "top-1" in line]
    assert len(measured) == 24
    assert all("(measured before)" in m or "(complete; " in m for m in measured)
    row = knn(root / "plain-0", data=data[0], device="cpu", say=lambda _: None)
    assert row == found.rows["plain-0", data[0], "knn"]


def test_two_folders_of_one_name_are_told_apart(root: Path, tmp_path: Path):
    data = [str(root / "some"), str(shutil.copytree(root / "others", tmp_path / "a" / "some"))]
    run = shutil.copytree(root / "plain-0", tmp_path / "run")
    found = transfer(run, data=data, protocols=["knn"], device="cpu", say=silent)
    assert found.table.columns[2:] == (f"{root.name}/some", "a/some", "mean")
    out = export(run, to="hub", say=silent)
    card = (out / "README.md").read_text()
    assert all(f"| kNN | {name} | " in card for name in found.table.columns[2:4])


def test_three_data_sets_have_students_interval():
    data, differences = ["a", "b", "c"], np.array([1.0, 2.5, 4.0])
    top1 = {("plain", place, "knn"): 50.0 for place in data}
    top1 |= {("mixed", p, "knn"): 50.0 + d for p, d in zip(data, differences, strict=True)}
    conditions = {"MoCo": {0: "plain"}, "MoCo + Un-Mix": {0: "mixed"}}
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert _compared(conditions, data, "knn", top1, ()) == [
        "MoCo + Un-Mix against MoCo, kNN: +2.5 points on average over 3 data sets "
        f"(95% interval over data sets {low:+.1f} to {high:+.1f})"
    ]


def test_images_that_changed_are_measured_again(root: Path):
    place = str(root / "others")
    words = {"data": [place], "protocols": ["knn"], "device": "cpu"}
    transfer(root / "plain-0", **words, say=lambda _: None)
    extra = root / "others" / "test" / "7" / "more.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(extra)
    try:
        lines: list[str] = []
        found = transfer(root / "plain-0", **words, say=lines.append)
        assert found.rows["plain-0", place, "knn"]["test_images"] == 13
        assert not any("(measured before)" in line for line in lines)
    finally:
        extra.unlink()


def test_training_images_that_changed_are_measured_again(root: Path):
    """As many as before, of other labels."""
    place = root / "some"
    words = {"data": [str(place)], "protocols": ["knn"], "device": "cpu"}
    transfer(root / "mixed-0", **words, say=lambda _: None)
    lines: list[str] = []
    transfer(root / "mixed-0", **words, say=lines.append)
    assert any("(measured before)" in line for line in lines)
    first, second = (sorted((place / "train" / label).iterdir())[0] for label in ("0", "1"))
    first.rename(place / "train" / "1" / first.name)
    second.rename(place / "train" / "0" / second.name)
    try:
        lines.clear()
        transfer(root / "mixed-0", **words, say=lines.append)
        assert not any("(measured before)" in line for line in lines)
    finally:
        (place / "train" / "1" / first.name).rename(first)
        (place / "train" / "0" / second.name).rename(second)


def test_a_run_that_repeats_another_is_named(root: Path, tmp_path: Path):
    again = tmp_path / "again"
    shutil.copytree(root / "plain-0", again)
    words = {"data": [str(root / "some")], "protocols": ["knn"], "device": "cpu"}
    found = transfer(root / "plain-0", root / "plain-1", again, **words, say=lambda _: None)
    assert len(found.rows) == 3
    assert any("again" in line for line in found.words)


def test_seeds_that_were_computed_in_different_precision_are_no_pairs(root: Path, tmp_path: Path):
    """They were paired seeds with a verdict, which `compare` gives none."""
    runs = [tmp_path / path.name for path in all_runs(root)]
    for path in all_runs(root):
        shutil.copytree(path, tmp_path / path.name)
        file = tmp_path / path.name / "results.json"
        content = json.loads(file.read_text())
        content["hardware"]["precision"] = "bf16-mixed" if path.name == "mixed-1" else "32-true"
        write_results(file, content)
    words = {"data": [str(root / "some")], "protocols": ["knn"], "device": "cpu"}
    found = transfer(*runs, **words, say=lambda _: None)
    assert any("seed 1 of both are no pairs" in line for line in found.words)
    assert not any("paired seeds" in line for line in found.words)


@pytest.mark.parametrize("flag", ["test_folder", "train_folder"])
def test_other_folders_of_one_data_set_have_rows_and_names_of_their_own(
    root: Path, tmp_path: Path, flag: str
):
    run, data = tmp_path / "run", str(root / "some")
    shutil.copytree(root / "plain-0", run)
    for folder in ("test", "train"):
        knn(run, data=data, k=5, device="cpu", say=lambda _: None, **{flag: folder})
    knn(run, data=data, k=3, device="cpu", say=lambda _: None)
    kept = [e.details for e in load_results(run).evaluations if e.details.get("data") == data]
    assert {row.get(flag) for row in kept if row.get("k") == 5} == {"test", "train"}
    assert [row.get(flag) for row in kept if row.get("k") == 3] == [None]
    (read,) = read_runs({"run": run})
    names = {f"knn on some ({folder})" for folder in ("test", "train")}
    assert names <= set(protocols_of([read]))


def test_tables_show_the_usual_row_of_other_data(root: Path, tmp_path: Path):
    run, data = tmp_path / "run", str(root / "others")
    shutil.copytree(root / "plain-0", run)
    for k in (5, None, 3):
        knn(run, data=data, k=k, device="cpu", say=lambda _: None)
    kept = [e for e in load_results(run).evaluations if e.protocol == "knn"]
    last = [e for e in kept if e.details.get("data") == data][-1]
    assert last.details["k"] == 24  # of as many training images


def test_published_protocols_and_a_file_alone(root: Path, tmp_path: Path):
    file = tmp_path / "alone.safetensors"
    file.write_bytes((root / "plain-0" / "encoder.safetensors").read_bytes())
    found = transfer(
        file, root / "plain-1", data=[str(root / "some")], device="cpu", say=lambda _: None,
        protocols=["knn-euclidean", "whitening"],
    )  # fmt: skip
    names = {"alone.safetensors", "plain-1"}
    assert {run for run, _, _ in found.rows} == names
    assert found.rows["plain-1", str(root / "some"), "knn-euclidean"]["k"] == 5
    assert {cell.text for row in found.table.rows for cell in row[:1]} == names


def test_json_has_the_rows_and_the_comparisons(root: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--data", str(root / "some"), "--protocols", "knn", "--device", "cpu", "--json"]
    runs = [str(root / name) for name in ("plain-0", "mixed-0")]
    assert main(["transfer", *runs, *words]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in content["rows"]] == ["plain-0", "mixed-0"]
    assert content["comparisons"][0].endswith("points on one data set")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data is required"),
        (["--data", "photoz"], "--data: 'photoz' is unknown. Did you mean 'photos'"),
        (["--data", "photos", "photos"], "--data: photos is given 2 times"),
        (
            ["--data", "photos", "--protocols", "lineal"],
            "--protocols: 'lineal' is unknown. Did",
        ),
        (["--data", "photos", "--labels", "1%"], "--labels: 1% applies only to the protocol fine"),
        (["--data", "photos", "--labels", "x"], "--labels: 'x' is neither a share such as 1%"),
    ],
)
def test_mistakes_are_told(root: Path, refuse: Callable[..., str], words: list[str], message: str):
    assert refuse("transfer", root / "plain-0", *words, "--device", "cpu").startswith(message)


def test_data_that_is_given_twice_under_two_names_is_told(
    root: Path, refuse: Callable[..., str], tmp_path: Path
):
    """It counted twice in the mean over data sets, and in its interval."""
    (tmp_path / "d" / "a").mkdir(parents=True)
    data = (tmp_path / "d", f"{tmp_path}/d/a/../")
    said = refuse("transfer", root / "plain-0", "--data", *data, "--device", "cpu")
    assert said == f"--data: {data[0]} and {data[1]} are the same data."


def test_a_run_that_is_given_twice_is_told(root: Path, refuse: Callable[..., str]):
    run = root / "plain-0"
    assert refuse("transfer", run, run, "--data", "photos").endswith("is given 2 times.")
