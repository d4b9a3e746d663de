"""The table and the HTML report."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reports import NAMES, report
from unmix.errors import UserError
from unmix.figures import page, results_table, write_page
from unmix.figures.page_curves import chart_of, entries
from unmix.figures.page_looks import page_looks
from unmix.figures.page_tables import csv_of, page_table, table_of
from unmix.figures.report_content import (
    Answer,
    Command,
    Condition,
    Curve,
    CurveSet,
    Entry,
    Report,
    Running,
    Table,
)
from unmix.figures.report_runs import curve_sets, environment, run_details, summary
from unmix.figures.series import conditions_of
from unmix.figures.table import Cell, ResultsTable
from unmix.names import shown
from unmix.results import Evaluation, RunResults


def made(name: str, **changes: Any) -> RunResults:
    fields: dict[str, Any] = {
        "method": "moco",
        "mixture": "none",
        "data": "photos",
        "backbone": "resnet18",
        "width": 0.5,
        "size": 32,
        "epochs": 12,
        "seed": 0,
        "command": f"unmix pretrain --name {name}",
        "training": {"seconds": 90.0, "images_per_second": 1234.5},
        **changes,
    }
    return RunResults(name=name, **fields)


def knn(top1: float, epoch: int = 12) -> Evaluation:
    return Evaluation("knn", epoch, top1, 99.0, {"k": 200, "train_images": 4000})


def column(table: ResultsTable, name: str) -> list[str]:
    index = table.columns.index(name)
    return [row[index].text + "*" * row[index].best for row in table.rows]


def test_baselines_come_first_and_no_single_run_is_marked_as_the_best() -> None:
    runs = [
        made("mixed", mixture="IM", evaluations=(knn(74.2),)),
        made("plain", evaluations=(knn(70.06),)),
    ]
    table = results_table(runs, {"raw pixels": {"knn": 39.5}})
    assert column(table, "run") == ["raw pixels", "plain", "mixed"]
    assert column(table, "kNN") == ["39.5", "70.1", "74.2"]
    assert column(table, "linear") == ["–", "–", "–"]
    assert column(table, "images/s") == ["–", "1,234", "1,234"]
    assert column(table, "training time") == ["–", "1:30 min", "1:30 min"]


def test_an_evaluation_of_another_epoch_says_which() -> None:
    table = results_table([made("a", evaluations=(knn(60.0, 4), knn(70.0, 8)))])
    assert column(table, "kNN") == ["70.0 (epoch 8)"]


def test_different_data_sets_have_a_column() -> None:
    runs = [made("a", evaluations=(knn(70.0),)), made("b", data="cifar10", evaluations=(knn(60),))]
    table = results_table(runs)
    assert column(table, "data") == ["photos", "cifar10"]
    assert column(table, "kNN") == ["70.0", "60.0"]


def test_the_published_protocols_have_columns_where_they_were_used() -> None:
    runs = [made("a", evaluations=(Evaluation("cmc", 12, 66.0),)), made("b")]
    assert column(results_table(runs), "linear (CMC)") == ["66.0", "–"]
    assert "linear (MoCo)" not in results_table(runs).columns


def test_measurements_that_are_missing_are_dashes() -> None:
    table = results_table([made("a", training={"seconds": None})])
    assert column(table, "training time") == ["–"]
    assert column(table, "images/s") == ["–"]


def test_the_text_is_aligned_and_ends_without_blanks() -> None:
    runs = [
        made("a" * 40, evaluations=(knn(7.0, 3),)),
        made("b", mixture="Un-Mix", evaluations=(knn(70.0),)),
    ]
    lines = results_table(runs, {"raw pixels": {"knn": 39.5}}).text().splitlines()
    assert len(lines) == 5
    assert not any("*" in line for line in lines)
    assert all(line == line.rstrip() for line in lines)
    ends = [match.end() for match in re.finditer(r"-+", lines[1])]
    assert lines[0][: ends[4]].endswith("kNN")
    assert [line[: ends[4]].split()[-1] for line in lines[2:]] == ["39.5", "3)", "70.0"]
    rows = ((Cell("漢字 é"), Cell("1")), (Cell("x"), Cell("2")))
    wide = ResultsTable(("a", "b"), (False, True), rows)
    assert wide.text().splitlines()[2:] == ["漢字 é  1", "x       2"]
    better = ResultsTable(("kNN", "b"), (True, True), ((Cell("70.0", True), Cell("1")),))
    assert better.text().splitlines()[2] == "70.0* 1"


def test_a_table_of_nothing_is_its_heading() -> None:
    assert len(results_table([]).text().splitlines()) == 2


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def of_runs(runs: list[RunResults], **more: Any) -> Report:
    """A report of runs alone."""
    return Report(
        "Runs",
        Answer("Nothing is compared."),
        summary=summary(runs),
        tables=[table_of("Runs", results_table(runs, more.pop("baselines", None)))],
        commands=[Command(run.name, run.command) for run in runs],
        environment=environment([{**run.hardware, **run.versions} for run in runs]),
        runs=[run_details(run) for run in runs],
        **more,
    )


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    path = write_page(tmp_path / "out" / "report.html", report())
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert not {"iframe", "object", "embed", "img"} & {tag for tag, _ in found.tags}
    assert not re.search(r"(src|href)=.?https?:|url\(|@import", text)
    # What is meant to load nothing is also forbidden to.
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert "default-src 'none'" in policy.replace("&#39;", "'")
    assert "connect-src" not in policy
    assert len(text) < 300_000


def test_the_scripts_are_those_that_the_policy_allows(tmp_path: Path) -> None:
    text = page(report())
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert digest in html.unescape(text)
    assert "The MIT License" in scripts[0]


def test_the_page_opens_with_the_answer_and_keeps_its_order() -> None:
    text = page(report())
    words = [
        "<h1>", "95% interval", "costs 1.76x", "Another comparison", ">Each seed<", ">Conditions<",
        ">Accuracy<", ">Course of training<", ">Prediction curves<", ">Mixtures of these runs<",
        ">Settings<", ">Environment<", ">Repeat it<", ">Details of each run<",
    ]  # fmt: skip
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    assert "better than its reference" in text


def test_the_report_says_what_was_run_and_how_to_repeat_it() -> None:
    runs = [
        made("plain", evaluations=(knn(70.0),), hardware={"gpu": {"name": "H200"}}),
        made("mixed", method="cmc", mixture="IM", epochs=24, versions={"torch": "2.6.0"}),
    ]
    found = of_runs(
        runs, baselines={"raw pixels": {"knn": 39.5}}, notes=["A note."],
        common=[("batch size", "128")],
    )  # fmt: skip
    words = " ".join(Page(page(found)).words.split())
    for said in (
        "2 runs of MoCo and CMC on photos",
        "12 to 24 epochs, without a mixture and with IM.",
        "Training took 3:00 min in all.",
        "A note.",
        "raw pixels",
        "batch size 128",
        "unmix pretrain --name plain",
        "gpu, name H200",
        "torch 2.6.0",
        "k 200, train images 4000",
        "arXiv:2003.05438v1",
        "AAAI 2022",
    ):
        assert said.replace(" ", "") in words.replace(" ", ""), said


def test_while_it_is_trained_values_are_not_said_to_be_those_of_the_end() -> None:
    ended, going = page(report()), page(report(running=Running("1 of 2 runs", 0.5)))
    assert (">At the end<" in ended, ">So far<" in ended) == (True, False)
    assert (">At the end<" in going, ">So far<" in going) == (False, True)


def test_details_are_closed_and_the_page_fits_phones_print_and_the_dark() -> None:
    text = page(of_runs([made("a")]))
    found = Page(text)
    assert ("details", {}) in found.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in found.tags)
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text
    # On paper the details of many runs would be a page each.
    classes = [[a.get("class") for _, a in Page(page(report(runs=n))).tags] for n in (4, 5)]
    assert ["screen" in each for each in classes] == [False, True]


def test_names_cannot_become_markup_or_end_the_data() -> None:
    evil = NAMES[0]
    runs = [made(evil, command=evil, hardware={evil: evil})]
    whole = report([evil, *NAMES[1:]])
    whole = replace(
        whole, title=evil, summary=evil, notes=[evil], common=[(evil, evil)],
        runs=[run_details(runs[0])], commands=[Command(evil, evil)],
    )  # fmt: skip
    text = page(whole)
    found = Page(text)
    assert [tag for tag, _ in found.tags].count("script") == 3
    assert found.words.count(evil) >= 8
    (data,) = re.findall(r'id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert not {"<", ">", "&", "\u2028"} & set(data)
    assert json.loads(data)["names"] == [shown(name) for name in (evil, *NAMES[1:])]
    assert "\u202e" not in text  # which would turn the line around


@pytest.mark.parametrize("count", [0, 1, 20])
def test_the_report_holds_any_number_of_unlabelled_runs(count: int) -> None:
    text = page(of_runs([made(f"run {i}") for i in range(count)]))
    found = Page(text)
    assert sum(f"run {i}" in found.words for i in range(count)) == count
    assert ("no labels" in found.words) == (count > 0)
    assert "Each seed" not in found.words


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"r\.html: cannot be written"):
        write_page(tmp_path / "file" / "r.html", report())


def test_a_report_of_nothing_is_a_page() -> None:
    text = page(Report("Study a", Answer("Nothing is measured yet.")))
    found = Page(text)
    assert "Nothing is measured yet." in found.words
    assert not {"table", "figure", "section"} & {tag for tag, _ in found.tags}


def test_forty_conditions_and_two_hundred_seeds_are_a_small_page() -> None:
    whole = report([f"condition {i}" for i in range(40)], seeds=200, epochs=1, runs=8000)
    text = page(whole)
    assert len(text) < 2_000_000
    assert "And 7,940 more" in text or "And 7940 more" in text
    Page(text)


def test_one_epoch_one_seed_and_a_very_long_name() -> None:
    name = "x" * 3000
    text = page(report([name], seeds=1, epochs=1))
    assert "NaN" not in text
    assert text.count("<polyline") >= 1
    Page(text)


def test_values_that_are_not_finite_are_gaps() -> None:
    nan, infinite = float("nan"), float("inf")
    conditions = [Condition("a", {"kNN": {0: nan, 1: 70.0}}), Condition("b", {"kNN": {0: nan}})]
    curves = CurveSet(
        "Loss", "loss",
        [
            Curve("a", 0, [1, 2, 3], [nan, 2.0, None]),
            Curve("a", 1, [1, 2, 3], [infinite, 4.0, 3.0]),
            Curve("b", 0, [1, 2], [nan, nan]),
        ],
    )  # fmt: skip
    (line,) = chart_of(curves, conditions).lines
    assert (line.mean, line.seeds) == ([None, 3.0, 3.0], [0, 2, 1])
    chart = chart_of(curves, conditions)
    (entry,) = entries(chart, conditions, page_looks(conditions))
    assert entry["last"] == "3 (1 of 2 seeds)"
    text = page(Report("r", Answer("a"), conditions=conditions, curves=[curves]))
    (data,) = re.findall(r'id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert json.loads(data)["charts"][0]["lines"][0]["y"] == [None, 3.0, 3.0]
    assert "NaN" not in data
    assert "Infinity" not in data
    # A condition that has no number is in no figure.
    assert text.count('class="name"') == 2


def test_curves_are_means_and_bands_over_seeds_and_times_their_means() -> None:
    conditions = [Condition("a")]
    curves = CurveSet(
        "Accuracy", "kNN top-1 (%)",
        [
            Curve("a", 0, [1, 2], [60.0, 70.0], [10.0, 20.0]),
            Curve("a", 1, [1, 2], [62.0, 74.0], [14.0, 30.0]),
            Curve("a", 2, [1], [64.0]),
        ],
    )  # fmt: skip
    chart = chart_of(curves, conditions)
    (line,) = chart.lines
    assert line.mean == [62.0, 72.0]
    assert line.spread == pytest.approx([2.0, 8**0.5])
    assert line.seeds == [3, 2]
    assert line.seconds == [12.0, 25.0]
    assert chart.timed
    assert "standard deviation over seeds" in chart.caption
    text = page(Report("r", Answer("a"), conditions=conditions, curves=[curves]))
    assert "72.0 ± 2.8" in text
    assert text.count('class="static"') == 2


def test_long_curves_are_thinned_and_end_at_their_end() -> None:
    epochs = list(range(1, 5001))
    curves = CurveSet("Loss", "loss", [Curve("a", 0, epochs, [1 / e for e in epochs])])
    chart = chart_of(curves, [Condition("a")])
    (line,) = chart.lines
    assert len(line.epochs) <= 400
    assert line.epochs[-1] == 5000
    assert "one of 13 points" in chart.caption


def test_the_csv_is_plain_numbers_and_safe_texts() -> None:
    rows = [
        [Entry("=1+1"), Entry("70.1 ± 0.4"), Entry("3:30 min"), Entry("1.75x")],
        [Entry('a, "b"'), Entry("–"), Entry("0.85 s"), Entry("12x")],
        [Entry("c\nd"), Entry("1,234.5"), Entry("5:30 h"), Entry("-1.5")],
        [Entry("-e"), Entry("70.0 (epoch 8)"), Entry(""), Entry("", 2.5, 0.5)],
    ]
    table = Table("T", ("name", "kNN", "time", "cost"), (False, True, True, True), rows)
    assert list(csv.reader(io.StringIO(csv_of(table), newline=""))) == [
        ["name", "kNN", "kNN std", "time", "cost", "cost std"],
        ["'=1+1", "70.1", "0.4", "210", "1.75", ""],
        ['a, "b"', "", "", "0.85", "12", ""],
        ["c\\nd", "1234.5", "", "19800", "-1.5", ""],
        ["'-e", "70.0 (epoch 8)", "", "", "2.5", "0.5"],
    ]


def test_times_of_busy_machines_sort_by_their_seconds_and_notes_stay_in_the_csv() -> None:
    busy = {"cores_taken_by_others": 1.5}
    runs = [
        made(name, training={"seconds": seconds, **busy}, hardware={"cores": 2}, evaluations=rows)
        for name, seconds, rows in (("a", 187.0, (knn(70.06),)), ("b", 5400.0, (knn(71.0, 3),)))
    ]
    table = table_of("Runs", results_table(runs))
    times = [row[-1] for row in page_table(table, 0)["rows"]]
    assert [(time["text"], time["key"]) for time in times] == [
        ("3:07 min (busy)", "187"), ("1:30 h (busy)", "5400"),
    ]  # fmt: skip
    head, *rows = csv.reader(io.StringIO(csv_of(table), newline=""))
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["training time"] for row in found] == ["187", "5400"]
    assert [row["kNN"] for row in found] == ["70.06", "71.0 (epoch 3)"]


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2.2."""
    values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_contrast_is_that_of_wcag_aa(scheme: int) -> None:
    text = page(report([f"condition {i}" for i in range(8)]))
    block = re.findall(r":root \{([^}]*--ink[^}]*)\}", text)[scheme]
    colors = dict(re.findall(r"--(\w+): (#\w{6})", block))
    for ink in ("ink", "soft", "best", "accent", "warm"):
        assert contrast(colors[ink], colors["paper"]) >= 4.5, ink
    for ink in ("ink", "soft"):
        assert contrast(colors[ink], colors["shade"]) >= 4.5, ink
    # Lines and markers are graphics, for which 3 is asked.
    for look in page_looks(report([f"condition {i}" for i in range(8)]).conditions):
        assert contrast(look.color, colors["paper"]) >= 3 - 0.2, look


def test_conditions_are_distinct_without_color() -> None:
    looks = page_looks(report([f"condition {i}" for i in range(14)]).conditions)
    assert len({(look.dash, str(look.corners), look.hollow) for look in looks}) == 14


def test_a_page_that_is_served_may_ask_its_own_server_alone() -> None:
    text = html.unescape(page(report(running=Running("1 of 2", refresh=2))))
    assert "connect-src 'self'" in text
    assert '<html lang="en" data-refresh="2">' in text
    assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in text
    assert "refresh" not in page(report(running=Running("1 of 2"))).partition("<style>")[0]


def test_curves_of_runs_are_by_protocol_and_time() -> None:
    runs = [
        made("a", seed=0, evaluations=(knn(60.0, 6), knn(70.0))),
        made("b", seed=1, evaluations=(knn(62.0, 6), knn(71.0))),
        made("c", mixture="IM", evaluations=(knn(65.0, 6), knn(72.0))),
    ]
    metrics = {"a": {"loss": {1: 4.0, 2: 3.0}}}
    accuracy, loss = curve_sets(conditions_of(runs, metrics), {"raw pixels": {"knn": 39.5}})
    assert accuracy.label == "kNN top-1 (%)"
    assert accuracy.references == {"raw pixels": 39.5}
    assert [(c.seed, list(c.values)) for c in accuracy.curves] == [
        (0, [60.0, 70.0]), (1, [62.0, 71.0]), (0, [65.0, 72.0]),
    ]  # fmt: skip
    assert [list(c.seconds or ()) for c in accuracy.curves] == [[45.0, 90.0]] * 3
    assert [list(c.values) for c in loss.curves] == [[4.0, 3.0]]


def test_curves_of_seeds_are_at_the_epochs_that_all_measured_and_say_so() -> None:
    runs = [
        made("a", seed=0, evaluations=(knn(50.0, 3), knn(60.0, 6), knn(70.0))),
        made("b", seed=1, evaluations=(knn(62.0, 6), knn(71.0))),
    ]
    (accuracy,) = curve_sets(conditions_of(runs))
    assert [list(c.values) for c in accuracy.curves] == [[60.0, 70.0], [62.0, 71.0]]
    assert "at the epochs that all seeds measured" in accuracy.caption


def test_a_chart_has_no_times_of_runs_on_different_hardware_and_says_why() -> None:
    def on(name: str, seed: int, cpu: str, **more: Any) -> RunResults:
        rows = (knn(60.0, 6), knn(70.0))
        return made(name, seed=seed, evaluations=rows, hardware={"cpu": cpu}, **more)

    (within,) = curve_sets(conditions_of([on("a", 0, "A"), on("b", 1, "B")]))
    assert [curve.seconds for curve in within.curves] == [None, None]
    assert "different hardware" in within.caption
    (between,) = curve_sets(conditions_of([on("a", 0, "A"), on("c", 0, "B", mixture="IM")]))
    assert all(curve.seconds for curve in between.curves)
    assert "different hardware" in between.caption


def test_an_environment_counts_what_differs() -> None:
    found = environment(
        [{"torch": "2.14", "gpu": "A"}, {"torch": "2.14", "gpu": "B"}, {"torch": "2.14"}]
    )
    assert found == [("torch", "2.14"), ("gpu", "A (1 run); B (1 run)")]
