"""`unmix methods`: the matrix as a table, a row, JSON, and in the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from unmix.cli import main
from unmix.config import RULE_NAMES
from unmix.config.matrix import matrix
from unmix.credit import RULES
from unmix.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["methods", *words]) == 0
    return capsys.readouterr().out


def test_every_method_has_a_cell_for_every_rule() -> None:
    cells = matrix()
    assert list(cells) == list(METHODS)
    assert all(list(row) == list(RULES) for row in cells.values())
    assert all(row["unmix"] is None and row["image_space"] is None for row in cells.values())


def test_a_cell_is_yes_or_the_number_of_a_reason_below(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys)
    lines = text.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines[1 : len(METHODS) + 1]}
    for method, row in matrix().items():
        for word, why in zip(table[method], row.values(), strict=True):
            assert word == "yes" if why is None else f"{word} {why}" in lines


def test_one_row_has_its_reasons_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "vicreg")
    assert "imix           no: its loss is a scalar per batch" in text
    assert "unmix          yes" in text


def test_the_matrix_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(said(capsys, "--json")) == matrix()
    assert json.loads(said(capsys, "byol", "--json")) == {"byol": matrix()["byol"]}


def test_an_unknown_method_is_refused(refuse: Callable[..., str]) -> None:
    line = refuse("methods", "byoll")
    assert line.startswith("METHOD: 'byoll' is unknown. Did you mean 'byol'?")


def test_the_documentation_shows_the_same_matrix() -> None:
    page = (DOCS / "rules.md").read_text(encoding="utf-8")
    notes = dict(re.findall(r"^(\d+)\. (.+)$", page, re.MULTILINE))
    assert "| method | " + " | ".join(f"`{rule}`" for rule in RULES) + " |" in page
    for method, row in matrix().items():
        line = re.search(rf"^\| \[`{method}`\]\(.*?\) \| (.*) \|$", page, re.MULTILINE)
        assert line is not None
        for cell, why in zip(line[1].split(" | "), row.values(), strict=True):
            assert cell == "yes" if why is None else notes[cell.strip("()")] == why
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == {*METHODS, "index"}


def test_every_rule_has_a_name_for_tables() -> None:
    """Mixtures know no rule, so the names that tables show stand with the flags."""
    assert list(RULE_NAMES) == list(RULES)
