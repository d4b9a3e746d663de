"""Accuracies of a study during training: kept in its cells, compared by epoch, and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from test_studies import TWO, cell, study
from unmix.commands.study_report import study_report
from unmix.errors import UserError
from unmix.results import Evaluation, RunResults
from unmix.studies import StudyResults, read_study
from unmix.studies.course import MOST_ROWS, course_of, course_rows, turns

CROSSING = {
    "plain": {20: 40.0, 40: 50.0, 60: 54.0, 80: 56.0},
    "Un-Mix": {20: 36.0, 40: 49.0, 60: 55.0, 80: 59.0},
}


def with_course(condition: str, seed: int, by_epoch: dict[int, float], **more: Any) -> Any:
    own = {str(epoch): value + seed for epoch, value in by_epoch.items()}
    last = max(by_epoch)
    found = cell(condition, seed, own[str(last)], epochs=last, course={"knn": own}, **more)
    return {**found, "accuracies": {"knn": own[str(last)]}}


def results(*cells: Any) -> StudyResults:
    return StudyResults(study(TWO), cells)


def both(courses: dict[str, dict[int, float]], seeds: int = 2) -> StudyResults:
    return results(*(with_course(n, s, own) for n, own in courses.items() for s in range(seeds)))


def test_a_cell_keeps_what_was_measured_at_several_epochs_of_its_own_data() -> None:
    rows = [("knn", 1, 40.0), ("knn on digits", 1, 9.0), ("knn", 2, 50.0), ("linear", 2, 60.0)]
    run = RunResults(
        "a", "moco", "none", "photos", "resnet18", 1.0, 32, 2, 0, "",
        (*(Evaluation(*row) for row in rows), Evaluation("knn on digits", 2, 9.5)),
    )  # fmt: skip
    assert course_of(run) == {"knn": {"1": 40.0, "2": 50.0}}


def test_it_says_where_curves_cross_and_that_this_is_no_test() -> None:
    assert turns(both(CROSSING)) == [
        "Un-Mix against plain, kNN during training: below from epoch 20 to 40 (-4.0 to -1.0), "
        "above from epoch 60 to 80 (+1.0 to +3.0); mean of 2 paired seeds, not a test"
    ]
    head, rows = course_rows(both(CROSSING))
    assert head == ["epoch", "plain, kNN", "Un-Mix, kNN"]
    assert rows[0] == ["20", "40.5 ± 0.7", "36.5 ± 0.7"]
    assert rows[-1] == ["80", "56.5 ± 0.7", "59.5 ± 0.7"]
    shown = both(CROSSING).markdown()
    places = [shown.index(text) for text in ("no verdict", "below from epoch 20", "| 80 | 56.5")]
    assert places == sorted(places)


def test_curves_that_cross_often_are_counted() -> None:
    many = dict.fromkeys(range(1, 7), 50.0)
    other = {e: 50.0 + (1 if e % 2 else -1) for e in many}
    (line,) = turns(both({"plain": many, "Un-Mix": other}))
    assert "above at 3 of 6 epochs, with 5 changes of sides (-1.0 to +1.0)" in line


def test_seeds_that_are_not_paired_and_epochs_of_one_alone_do_not_count() -> None:
    plain = with_course("plain", 0, {1: 10.0, 2: 20.0, 3: 30.0})
    unpaired = with_course("plain", 1, {1: 90.0, 2: 90.0, 3: 90.0})
    (line,) = turns(results(plain, unpaired, with_course("Un-Mix", 0, {2: 21.0, 3: 32.0})))
    assert "above from epoch 2 to 3 (+1.0 to +2.0); mean of 1 paired seed" in line


def test_seeds_that_were_computed_in_different_precision_are_no_pairs() -> None:
    def course(condition: str, seed: int, precision: str) -> Any:
        words = {"settings": {"seed": seed, "precision": "auto"}}
        return with_course(
            condition, seed, CROSSING[condition], hardware={"precision": precision}, **words
        )

    cells = [course("plain", 0, "32-true"), course("plain", 1, "bf16-mixed")]
    cells += [course("Un-Mix", seed, "32-true") for seed in (0, 1)]
    (line,) = turns(results(*cells))
    assert "mean of 1 paired seed, not a test" in line


def test_runs_of_other_lengths_are_not_compared_by_epoch() -> None:
    """At the same epoch the rate of the longer run's schedule is another."""
    longer = {**CROSSING["plain"], 100: 60.0}
    assert turns(both({"plain": longer, "Un-Mix": CROSSING["Un-Mix"]})) == []


@pytest.mark.parametrize("count", [2, MOST_ROWS, MOST_ROWS + 1, 200])
def test_a_table_has_few_rows_and_the_last_epoch(count: int) -> None:
    own = dict.fromkeys(range(1, count + 1), 50.0)
    _, rows = course_rows(both({"plain": own, "Un-Mix": own}))
    assert 2 <= len(rows) <= MOST_ROWS
    assert rows[-1][0] == str(count)
    assert rows == sorted(rows, key=lambda row: int(row[0]))


def test_without_a_course_nothing_is_said_of_it() -> None:
    plain = [cell(name, seed, 50.0) for name in ("plain", "Un-Mix") for seed in range(2)]
    assert results(*plain).course() == ""
    assert "during training" not in results(*plain).markdown()


def test_the_report_draws_the_course_of_runs_whose_folders_are_gone(tmp_path: Path) -> None:
    report = study_report(both(CROSSING), tmp_path, samples=False)
    (curves,) = report.curves
    assert curves.title == "Accuracy during training, kNN"
    drawn = {
        (c.condition, c.seed): dict(zip(c.epochs, c.values, strict=True)) for c in curves.curves
    }
    assert drawn["Un-Mix", 1] == {20: 37.0, 40: 50.0, 60: 56.0, 80: 60.0}
    assert len(drawn) == 4


@pytest.mark.parametrize("course", [{"knn": {"first": 4}}, {"knn": {"1": 400}}, {"knn": 7}, [1]])
def test_a_damaged_course_is_a_line(tmp_path: Path, course: Any) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study(TWO).content()))
    text = json.dumps({**cell("plain", 0, 50.0), "course": course})
    (tmp_path / "cells" / "plain-0.json").write_text(text)
    with pytest.raises(UserError, match=r"plain-0\.json: course.* must be .*Remove the file"):
        read_study(tmp_path)


def test_means_by_epoch_are_over_the_same_seeds_whose_number_is_named_where_it_differs() -> None:
    often = dict.fromkeys(range(1, 5), 40.0)
    cells = [with_course("plain", 0, often), with_course("plain", 1, {2: 60.0, 4: 60.0})]
    head, rows = course_rows(results(*cells, with_course("Un-Mix", 0, {2: 50.0, 4: 51.0})))
    assert head == ["epoch", "plain, kNN (2 seeds)", "Un-Mix, kNN (1 seed)"]
    assert [row[:2] for row in rows] == [["2", "50.5 ± 14.8"], ["4", "50.5 ± 14.8"]]
