"""Run and study folders that strangers have made: what is read back is right, or one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mutations import WRONG_YAML, json_variants, variants
from unmix.config.saved import saved_settings
from unmix.config.settings import Settings
from unmix.config.yaml_files import YamlError, parse_yaml
from unmix.data.fingerprint import Fingerprint
from unmix.errors import UserError
from unmix.figures import read_metrics
from unmix.per_image import PerImage, keep_per_image, per_image
from unmix.results import Evaluation, described, load_results, write_results
from unmix.studies.analysis import read_study
from unmix.studies.baselines import read_baselines
from unmix.studies.cells import read_cell
from unmix.studies.plan import Study
from unmix.studies.watching import is_running, run_state
from unmix.training.run.data_record import DataRecord
from unmix.training.run.folder import RunFolder

ROW = {"protocol": "knn", "epoch": 2, "top1": 50.0, "top5": None, "k": 5, "temperature": 0.1}
RESULTS: dict[str, Any] = {
    "schema": 1, "name": "a", "method": "moco", "mixture": "IM", "data": "digits",
    "backbone": "resnet10", "width": 0.5, "size": 8, "epochs": 2, "seed": 0, "command": "unmix",
    "evaluations": [ROW], "training": {"seconds": 1.5, "loss": None}, "hardware": {"device": "cpu"},
    "versions": {"torch": "2"}, "quality": {"rankme": 3.0},
}  # fmt: skip
CELL: dict[str, Any] = {
    "schema": 1, "condition": "plain", "seed": 0, "settings": {"lr": 0.1}, "command": "unmix",
    "epochs": 2, "accuracies": {"knn": 50.0}, "loss": 1.0, "seconds": 2.0,
    "images_per_second": 3.0, "cost": {}, "code": {"version": "0"}, "hardware": {}, "versions": {},
}  # fmt: skip


def line_of(call: Callable[[], object], name: str) -> str:
    """The message of the UserError that a call ends with, or nothing; it may end in no other."""
    line = ""
    try:
        call()
    except UserError as error:
        line = str(error)
    except Exception as error:
        raise AssertionError(name) from error
    assert "\n" not in line
    assert len(line) < 4100, line
    return line


def all_lines(path: Path, read: Callable[[], object], named: str) -> int:
    """Read all wrong versions of a JSON file; how many were refused, each by a line with `named`"""
    original, wrong = path.read_bytes(), 0
    for name, content in json_variants(original):
        path.write_bytes(content)
        line = line_of(read, name)
        assert not line or named in line, line
        wrong += bool(line)
    path.write_bytes(original)
    assert line_of(read, "the original") == ""
    return wrong


def test_every_wrong_results_file_is_one_line(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", RESULTS)

    def read() -> None:
        found = load_results(tmp_path)
        found._repr_html_()
        for row in found.evaluations:
            described(row)

    assert all_lines(tmp_path / "results.json", read, "results.json") > 300


def test_every_wrong_record_of_the_data_is_one_line(tmp_path: Path) -> None:
    split = Fingerprint(5, ("a", "b"), 100, "5f0c")
    DataRecord("d", {"train": split, "test": split}, ({"then": "x", "splits": {}},)).write(tmp_path)

    def read() -> None:
        record = DataRecord.read(tmp_path)
        assert record is not None
        assert isinstance(record.changes, dict)
        record.difference({"train": split, "test": split})

    assert all_lines(tmp_path / "data.json", read, "data.json") > 200


def test_every_wrong_file_of_predictions_is_one_clause(tmp_path: Path) -> None:
    keep_per_image(tmp_path, [PerImage(ROW, "digest", np.array([True, False] * 5))])
    row = Evaluation("knn", 2, 50.0, None, {"k": 5, "temperature": 0.1})
    assert all_lines(tmp_path / "correct.json", lambda: per_image(tmp_path, row), "") > 100


def test_every_wrong_cell_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "plain-0.json"
    path.write_text(json.dumps(CELL))
    assert all_lines(path, lambda: read_cell(path), "plain-0.json") > 200


def test_every_wrong_file_of_baselines_is_one_line(tmp_path: Path) -> None:
    row = {"name": "raw pixels", "seed": 0, "settings": "{}", "accuracies": {"knn": 5.0}}
    (tmp_path / "baselines.json").write_text(json.dumps({"schema": 1, "rows": {"raw": row}}))
    path = tmp_path / "baselines.json"
    assert all_lines(path, lambda: read_baselines(tmp_path), "baselines.json") > 100


def test_no_owner_file_stops_what_reads_it(tmp_path: Path) -> None:
    owner = {"host": "h", "process": 5, "since": "today", "job": None, "lock": 7}
    path = tmp_path / ".owner.json"
    for name, content in json_variants(json.dumps(owner).encode()):
        path.write_bytes(content)
        assert line_of(lambda: is_running(tmp_path), name) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loss\n5\n", "has no column 'epoch'"),
        ("", "has no column 'epoch'"),
        ("epoch,loss\n1e300,5\n", "line 2: epoch: holds 1e+300"),
        ("epoch,loss\ninf,5\n", "line 2: epoch: holds inf"),
        ("epoch,loss\nnan,5\n", "line 2: epoch: holds nan"),
        ("epoch,loss\n0,1\n-5,5\n", "line 3: epoch: holds -5.0"),
        ("epoch,epoch\n1,2\n", "has the column 'epoch' twice"),
        ("epoch\n" + "a" * 200_000, "cannot be read as metrics.csv"),
        ("\xff", "cannot be read as metrics.csv"),
    ],
    ids=str,
)
def test_a_wrong_metrics_file_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode("latin-1"))
    line = line_of(lambda: read_metrics(path), text)
    assert line.startswith(str(path))
    assert says in line
    run_state(tmp_path)


def test_an_incomplete_row_of_metrics_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss\n0,5\n\n1,4,3,2\n2\n,7\nx,8\n3,\n")
    assert read_metrics(tmp_path / "metrics.csv")["loss"] == {1: 5.0, 2: 4.0}


@pytest.fixture(scope="module")
def words() -> dict[str, Any]:
    """The settings of a run."""
    return Settings.of({"method": "moco", "data": "digits"}).flat()


def test_every_wrong_configuration_is_one_line(tmp_path: Path, words: dict[str, Any]) -> None:
    path, wrong = tmp_path / "config.yaml", 0
    few = ("method", "data", "size", "width", "mean", "queue", "lr", "milestones", "crop_scale_min")
    known = {key: words[key] for key in few if key in words}
    for name, content in variants(known):
        with suppress(yaml.YAMLError, UnicodeError):
            path.write_text(yaml.safe_dump(content))
            wrong += bool(line_of(lambda: RunFolder(tmp_path).settings(), name))
            run_state(tmp_path)
    for text in WRONG_YAML:
        path.write_text(text)
        line = line_of(lambda: RunFolder(tmp_path).settings(), text[:40])
        assert line.startswith(str(path)), (line, text[:40])
    assert wrong > 80


def test_a_key_that_is_null_is_an_unknown_setting(tmp_path: Path) -> None:
    """Found by benchmarks/fuzz.py."""
    (tmp_path / "config.yaml").write_text("method: moco\n~: 5\n")
    with pytest.raises(UserError, match="None: unknown setting"):
        RunFolder(tmp_path).settings()


def test_a_configuration_without_a_method_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 5\n")
    with pytest.raises(UserError, match=r"config\.yaml: method is missing; it must be the name"):
        saved_settings(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("!!python/object/apply:os.system ['x']", "it has a tag, "),
        ("a: !!binary zz", "it has a tag, binary"),
        ("a: &a [*a]", "an alias stands for what it is within"),
        (f"a: {'9' * 5000}", "it has a number of 5,000 digits"),
        (f"a: 0x{'f' * 5000}", "it has a number of 5,002 digits"),
        (f"a: 1{':59' * 3000}", "it has a number of 6,001 digits"),
        ("[" * 20_000, "it is nested more than 20 deep"),
        ("[" * 30 + "]" * 30, "it is nested more than 20 deep"),
        (WRONG_YAML[-1], "it has more than 100,000 values, with those of its aliases"),
        ("a: 1\na: 2", "lines 1 and 2 both set a; keep one"),
        ("? [a]\n: b", "a key is not a text"),
        ("a: [", "it is not valid YAML"),
        ("\0", "it is not valid YAML"),
    ],
    ids=lambda text: text[:20],
)
def test_why_yaml_is_not_read(text: str, says: str) -> None:
    with pytest.raises(YamlError, match=says):
        parse_yaml(text)


def test_yaml_of_people_is_read() -> None:
    text = "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\nrun: 2026-01-02\nlr: 1e-3\nn: 1_000\nf: .inf"
    assert parse_yaml(text) == {
        "a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}, "run": "2026-01-02", "lr": "1e-3",
        "n": 1000, "f": float("inf"),
    }  # fmt: skip
    assert parse_yaml("") is None


STUDY = {
    "name": "s", "base": {"method": "moco", "data": "digits", "size": 8}, "seeds": [0, 1],
    "conditions": {"plain": {}, "mixed": {"unmix": True}}, "exploratory": True,
    "comparisons": {"": [["mixed", "plain"]]}, "evaluations": ["knn"], "published": {"plain": "5"},
}  # fmt: skip


def test_every_wrong_study_is_one_line(tmp_path: Path) -> None:
    path, wrong = tmp_path / "study.yaml", 0
    for name, content in variants(STUDY):
        with suppress(yaml.YAMLError, UnicodeError):
            path.write_text(yaml.safe_dump(content))
            wrong += bool(line_of(lambda: Study.load(path), name))
    for text in WRONG_YAML:
        path.write_text(text)
        assert line_of(lambda: read_study(tmp_path), text[:40]), text[:40]
    assert wrong > 100
