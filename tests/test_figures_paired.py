"""The figure of paired seeds: every dot, every mean, and nothing that needs color."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from unmix.figures.paired import Panel, inline_svg, paired_dots

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
    assert [text.get_text() for text in first.texts] == ["29.0", "36.0"]
    assert [text.get_text() for text in second.texts] == ["50.0"]
    # Markers differ in form and fill, for black and white.
    assert len({line.get_marker() for line in dots}) == 2
    filled = [line.get_markerfacecolor() == line.get_markeredgecolor() for line in dots]
    assert filled == [False, True]
    assert len({line.get_markeredgecolor() for line in dots}) == 2
    assert first.get_xlim() == second.get_xlim()


def test_inline_it_takes_the_color_of_the_page_and_is_one_line_of_valid_xml():
    svg = inline_svg(ROWS, 'MoCo "plain" & <mixed>')
    root = ET.fromstring(svg)
    assert root.attrib["aria-label"] == 'MoCo "plain" & <mixed>'
    assert "\n" not in svg
    assert "currentColor" in svg
    assert "#123456" not in svg
    assert "width" not in root.attrib
    assert svg == inline_svg(ROWS, 'MoCo "plain" & <mixed>')


@pytest.mark.parametrize("rows", [{}, {"kNN": {}}, {"kNN": {"none": {}}}])
def test_without_cells_it_says_so(rows):
    (axes,) = paired_dots(rows).axes
    assert axes.texts[0].get_text() == "Nothing was measured yet."


def test_a_study_s_panel_has_its_baselines_and_comparisons_and_joins_what_is_compared():
    conditions = {name: {0: at, 1: at + 2} for name, at in (("a", 50.0), ("b", 55.0), ("c", 60.0))}
    panel = Panel(conditions, {"raw pixels": 39.5}, [("b", "a", "+5.0 against a")])
    kNN, other = paired_dots(
        {"": {"kNN": panel, "linear": Panel({n: {} for n in conditions})}}, shared=False
    ).axes
    joined = [list(line.get_xdata()) for line in kNN.lines if line.get_linewidth() == 0.7]
    assert joined == [[50.0, 55.0], [52.0, 57.0]]  # c is compared with nothing
    texts = [text.get_text() for text in kNN.texts]
    assert texts == ["51.0", "56.0", "61.0", "+5.0 against a", "raw pixels 39.5"]
    assert kNN.get_xlim()[0] < 39.5 < 62 < kNN.get_xlim()[1]
    assert [text.get_text() for text in kNN.get_yticklabels()] == ["a", "b", "c"]
    assert not other.lines
