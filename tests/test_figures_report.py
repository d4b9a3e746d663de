"""The table and the HTML report."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from unmix.errors import UserError
from unmix.figures import results_table, write_report
from unmix.figures.table import Cell, ResultsTable
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


@pytest.fixture
def figure() -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1], [0, 1])
    return figure


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path, figure: Figure) -> None:
    path = tmp_path / "out" / "report.html"
    write_report(path, [made("a", evaluations=(knn(70.0),))], {"One": figure, "Two": figure})
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 2
    for source in sources:
        head, _, body = source.partition(",")
        assert head == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(body)
    assert not re.search(r"(src|href)=.?https?:|url\(|@import", text)


def test_the_report_says_what_was_run_and_how_to_repeat_it(tmp_path: Path, figure: Figure) -> None:
    runs = [
        made("plain", evaluations=(knn(70.0),), hardware={"gpu": {"name": "H200"}}),
        made("mixed", method="cmc", mixture="IM", epochs=24, versions={"torch": "2.6.0"}),
    ]
    write_report(
        tmp_path / "r.html",
        runs,
        {"Accuracy": figure},
        {"raw pixels": {"knn": 39.5}},
        {"batch_size": 128},
        ["A note."],
        captions={"Accuracy": "Its caption."},
    )
    words = " ".join(Page((tmp_path / "r.html").read_text(encoding="utf-8")).words.split())
    for said in (
        "2 runs of MoCo and CMC on photos",
        "12 to 24 epochs, without a mixture and with IM.",
        "Training took 3:00 min in all.",
        "A note.",
        "raw pixels",
        "Accuracy. Its caption.",
        "batch size 128",
        "unmix pretrain --name plain",
        "gpu, name H200",
        "torch 2.6.0",
        "k 200, train images 4000",
        "arXiv:2003.05438v1",
        "AAAI 2022",
    ):
        assert said.replace(" ", "") in words.replace(" ", ""), said


def test_details_are_closed_and_the_page_fits_phones_print_and_the_dark(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [made("a")], {})
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert ("details", {}) in page.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text


def test_names_cannot_become_markup(tmp_path: Path, figure: Figure) -> None:
    evil = "<script>alert('x')</script>"
    write_report(
        tmp_path / "r.html",
        [made(evil, command=evil, hardware={evil: evil})],
        {f'"{evil}': figure},
        {evil: {"knn": 1.0}},
        {evil: evil},
        [evil],
        title=evil,
    )
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert Page(text).words.count(evil) >= 8


@pytest.mark.parametrize("count", [0, 1, 20])
def test_the_report_holds_any_number_of_unlabelled_runs(tmp_path: Path, count: int) -> None:
    write_report(tmp_path / "r.html", [made(f"run {i}") for i in range(count)], {})
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert sum(tag == "details" for tag, _ in page.tags) == count
    assert ("no labels" in page.words) == (count > 0)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"r\.html: cannot be written"):
        write_report(tmp_path / "file" / "r.html", [], {})
