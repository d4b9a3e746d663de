"""Results and comparisons in a notebook: tables and figures, whatever the names are."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from unmix.commands.comparison import Comparison
from unmix.figures import results_table
from unmix.html import chart
from unmix.results import Evaluation, RunResults

EVIL = '<script>alert("x")</script>'
RUN = RunResults(
    name="a", method="moco", mixture="IM", data="photos", backbone="resnet18", width=0.5, size=32,
    epochs=4, seed=0, command="unmix pretrain",
    evaluations=(
        Evaluation("knn", 2, 50.0, 80.0, {"k": 200}),
        Evaluation("knn", 4, 61.25, 90.5, {"k": 200}),
        Evaluation("knn", 4, 33.0, None, {"data": "other"}),
    ),
    training={"seconds": 90.0, "loss": 5.5},
)  # fmt: skip


class Balanced(HTMLParser):
    """Every tag that is opened is closed, and which there are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_results_show_tables_and_accuracy_over_epochs() -> None:
    page = RUN._repr_html_()
    found = Balanced(page)
    assert found.seen.count("table") == 2
    for word in ("MoCo", "resnet18, width 0.5", "61.25", "90.50", "k 200", "1:30 min", "5.5"):
        assert word in found.text
    svg = ET.fromstring(re.search(r"<svg.*</svg>", page).group())
    (line,) = svg.findall("{*}polyline")
    # The transfer's accuracy is not of this course.
    assert len(line.get("points").split()) == 2


def test_results_without_accuracies_have_no_chart() -> None:
    page = replace(RUN, evaluations=(), training={})._repr_html_()
    assert Balanced(page).seen.count("table") == 1
    assert "svg" not in page


def test_a_chart_needs_two_points_and_survives_a_flat_line() -> None:
    assert chart("t", {"knn": [(1.0, 5.0)]}) == ""
    ET.fromstring(chart("t", {"knn": [(1.0, 5.0), (2.0, 5.0)]}))


def comparison(run: RunResults, folder: Path) -> Comparison:
    (folder / "accuracy.png").write_bytes(b"\x89PNG rest")
    figures = {run.name: folder / "accuracy.png", "gone": folder / "gone.png"}
    table = results_table([run, replace(run, name="b", evaluations=())])
    return Comparison(folder, (run,), table, figures, (f"note of {run.name}",))


def test_a_comparison_shows_its_table_notes_and_figures(tmp_path: Path) -> None:
    found = comparison(RUN, tmp_path)
    page = Balanced(found._repr_html_())
    assert page.seen.count("img") == 1
    assert "note of a" in page.text
    assert "gone.png is not there any more" in page.text
    source = re.search(r'src="data:image/png;base64,([^"]*)"', found._repr_html_()).group(1)
    assert base64.b64decode(source) == b"\x89PNG rest"
    assert Path(found) == tmp_path
    assert found / "report.html" == tmp_path / "report.html"


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    run = replace(
        RUN, name=EVIL, data=EVIL, mixture=EVIL, backbone=EVIL,
        evaluations=(Evaluation(EVIL, 1, 1.0, None, {EVIL: EVIL}),
                     Evaluation(EVIL, 2, 1.0, None, {EVIL: EVIL})),
    )  # fmt: skip
    for page in (run._repr_html_(), comparison(run, tmp_path)._repr_html_()):
        assert "<script" not in page
        assert EVIL in Balanced(page).text
        assert '"x"' not in page.replace("&quot;", "")
