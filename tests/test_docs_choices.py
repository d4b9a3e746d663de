"""The page that helps to choose a method: every method is on it, with costs that are counted."""

from __future__ import annotations

import re

import pytest

from docsite import ROOT
from unmix.methods import METHODS

# Through docsite, which finds the tools.
from tools.costs import WITH_TEACHERS, cost, kept  # isort: skip
from tools.registry import choices, pages  # isort: skip


def test_every_method_has_its_costs_and_what_speaks_for_and_against_it() -> None:
    """If this fails: python docs/tools/costs.py, and `pros` and `cons` in the method's page."""
    assert kept().keys() == METHODS.keys() - WITH_TEACHERS
    facts = {name: page for name, (page, _) in pages().items()}
    assert all(facts[name]["pros"] and facts[name]["cons"] for name in METHODS)
    rows = choices().splitlines()[2:]
    assert len(rows) == len(METHODS)


@pytest.mark.parametrize("name", ["moco", "simsiam"])
def test_costs_are_those_that_are_counted_now(name: str) -> None:
    assert cost(name) == kept()[name]


def test_costs_are_the_passes_of_the_papers() -> None:
    """A pass forward is 1, with its gradient 3: MoCo 3 + 1, SimCLR 2 x 3; a mixture adds 3."""
    assert (kept()["moco"]["plain"], kept()["moco"]["unmix"]) == (4.0, 7.0)
    assert (kept()["simclr"]["plain"], kept()["simclr"]["unmix"]) == (6.0, 9.0)
    assert kept()["insdis"]["plain"] == 3.0


def test_the_choices_name_methods_and_recipes_that_exist() -> None:
    from unmix.config.recipes import recipe_names

    text = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+)\.md\)", text)) <= METHODS.keys()
    assert set(re.findall(r"--config ([\w-]+)", text)) - {"NAME"} <= set(recipe_names())
