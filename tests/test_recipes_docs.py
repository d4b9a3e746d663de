"""The pages of the methods name every flag and every recipe that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unmix.config import method_options
from unmix.config.recipes import recipe, recipe_names
from unmix.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs" / "methods"
PAGES = sorted(path.stem for path in DOCS.glob("*.md") if path.stem != "index")
SECTIONS = (
    "Query, target, loss", "With mixtures", "Good to know", "Common failures", "Flags", "Recipes",
    "Reference",
)  # fmt: skip


def text(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def first_cells(page: str, section: str) -> list[str]:
    """What the rows of a section's table name, in code."""
    part = text(page).split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(?:--)?([\w-]+)` \|", part, re.MULTILINE)


def test_every_method_has_a_page_and_a_row():
    assert sorted(METHODS) == PAGES
    rows = re.findall(r"^\| \[[^]]+\]\((\w+)\.md\) \|", text("index"), re.MULTILINE)
    assert sorted(rows) == sorted(2 * PAGES)  # what they are, and what speaks for them
    nav = (DOCS.parents[1] / "mkdocs.yml").read_text()
    assert sorted(re.findall(r"methods/(\w+)\.md", nav)) == sorted([*PAGES, "index"])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_sections_the_loss_and_the_citation(page: str):
    assert re.findall(r"^## (.+)$", text(page), re.MULTILINE) == list(SECTIONS)
    assert "\n```math\n" in text(page)
    assert "\n```bibtex\n@" in text(page)
    assert re.search(r"arXiv \d{4}\.\d{5}", text(page))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_lists_the_recipes_that_ship(page: str):
    shipped = [name for name in recipe_names() if recipe(name)["method"] == page]
    assert first_cells(page, "Recipes") == shipped


@pytest.mark.parametrize("page", PAGES)
def test_a_page_explains_every_flag_of_its_method(page: str):
    assert page in METHODS, f"the package has no method {page}"
    assert sorted(first_cells(page, "Flags")) == sorted(method_options(page))


@pytest.mark.parametrize("page", [*PAGES, "index"])
def test_links_lead_somewhere(page: str):
    for target in re.findall(r"\]\((?!https:)([^)]+)\)", text(page)):
        assert (DOCS / target.partition("#")[0]).exists(), target
