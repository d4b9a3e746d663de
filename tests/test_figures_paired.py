"""The figure of paired seeds: every dot, every mean, and nothing that needs color."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from unmix.display import Answer
from unmix.figures.page_dots import dots
from unmix.figures.page_looks import page_looks
from unmix.figures.paired import Panel, paired_dots
from unmix.figures.report_content import Condition, Difference, Report
from unmix.figures.saving import inline

ROWS = {
    "kNN top-1 (%)": {
        "no augmentation": {"plain": {0: 28.0, 1: 30.0}, "Un-Mix": {0: 35.0, 1: 36.0, 2: 37.0}},
        "full": {"plain": {0: 50.0}, "Un-Mix": {}},
    }
}


def test_each_seed_has_a_dot_and_a_line_and_each_condition_its_mean():
    first, second = paired_dots(ROWS).axes
    dots = [line for line in first.lines if line.get_linestyle() == "None"]
    assert [list(line.get_xdata()) for line in dots] == [[28.0, 30.0], [35.0, 36.0, 37.0]]
    joined = [list(line.get_xdata()) for line in first.lines if line.get_linewidth() == 0.7]
    assert joined == [[28.0, 35.0], [30.0, 36.0]]  # seed 2 has no partner
    assert [text.get_text() for text in first.texts] == ["29.0 ± 1.4", "36.0 ± 1.0"]
    assert [text.get_text() for text in second.texts] == ["50.0"]
    # Markers differ in form and fill, for black and white.
    assert len({line.get_marker() for line in dots}) == 2
    filled = [line.get_markerfacecolor() == line.get_markeredgecolor() for line in dots]
    assert filled == [False, True]
    assert len({line.get_markeredgecolor() for line in dots}) == 2
    assert first.get_xlim() == second.get_xlim()


def test_inline_it_takes_the_color_of_the_page_and_is_one_line_of_valid_xml():
    svg = inline(paired_dots(ROWS, theme="inline"), 'MoCo "plain" & <mixed>')
    root = ET.fromstring(svg)
    assert root.attrib["aria-label"] == 'MoCo "plain" & <mixed>'
    assert "\n" not in svg
    assert "currentColor" in svg
    assert "#123456" not in svg
    assert "width" not in root.attrib
    assert svg == inline(paired_dots(ROWS, theme="inline"), 'MoCo "plain" & <mixed>')


@pytest.mark.parametrize("rows", [{}, {"kNN": {}}, {"kNN": {"none": {}}}])
def test_without_cells_it_says_so(rows):
    (axes,) = paired_dots(rows).axes
    assert axes.texts[0].get_text() == "Nothing was measured yet."


def test_a_study_s_panel_has_its_baselines_and_comparisons_and_joins_what_is_compared():
    conditions = {name: {0: at, 1: at + 2} for name, at in (("a", 50.0), ("b", 55.0), ("c", 60.0))}
    panel = Panel(conditions, {"raw pixels": 39.5}, [Difference("b", "a", "kNN", "+5.0")])
    kNN, other = paired_dots(
        {"": {"kNN": panel, "linear": Panel({n: {} for n in conditions})}}, shared=False
    ).axes
    joined = [list(line.get_xdata()) for line in kNN.lines if line.get_linewidth() == 0.7]
    assert joined == [[50.0, 55.0], [52.0, 57.0]]  # c is compared with nothing
    texts = [text.get_text() for text in kNN.texts]
    assert texts == [
        "51.0 ± 1.4",
        "56.0 ± 1.4",
        "61.0 ± 1.4",
        "b against a: +5.0",
        "raw pixels 39.5",
    ]
    assert kNN.get_xlim()[0] < 39.5 < 62 < kNN.get_xlim()[1]
    assert [text.get_text() for text in kNN.get_yticklabels()] == ["a", "b", "c"]
    assert not other.lines


def test_the_page_and_the_figure_put_every_dot_at_the_same_place():
    conditions = {"plain": {2: 51.0, 0: 50.0, 1: 53.0}, "Un-Mix": {1: 55.0, 3: 54.0, 0: 52.0}}
    differences = [Difference("Un-Mix", "plain", "kNN", "+2.0")]
    figure = paired_dots({"": {"kNN": Panel(conditions, comparisons=differences)}}, shared=False)
    axes = figure.axes[0]
    report = Report(
        "", Answer(""), differences=differences,
        conditions=[Condition(name, {"kNN": own}) for name, own in conditions.items()],
    )  # fmt: skip
    (panel,) = dots(report, page_looks(report.conditions))
    svg = ET.fromstring(re.search(r'<svg class="strip".*?</svg>(?=<svg class="scale")', panel)[0])
    marks = {  # seed and value: rows from the middle of the condition's row
        child.find("title").text: float(child.get("y").rstrip("%")) * 2 / 100 % 1 - 0.6
        for child in svg.findall("svg")
    }
    drawn = {}
    lines = [line for line in axes.lines if line.get_linestyle() == "None"]
    for row, (own, line) in enumerate(zip(conditions.values(), lines, strict=True)):
        for x, y in zip(*line.get_data(), strict=True):
            seed = next(seed for seed, value in own.items() if value == x)
            drawn[f"seed {seed}: {x:.2f}"] = y - row
    assert drawn.keys() == marks.keys()
    assert [drawn[key] for key in marks] == pytest.approx(list(marks.values()), abs=2e-4)
    joined = [sorted(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 0.7]
    assert joined == [[50.0, 52.0], [53.0, 55.0]]  # of the seeds that both have
    assert len(svg.findall("line[@class='join']")) == 2
    texts = [text.get_text() for text in axes.texts]
    for text in ("51.3 ± 1.5", "53.7 ± 1.5", "Un-Mix against plain: +2.0"):
        assert text in texts
        assert text in panel
