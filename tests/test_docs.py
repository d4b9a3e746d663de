"""The site: it builds without a warning, and its tables and API pages match the code."""

from __future__ import annotations

import html
import importlib
import inspect
import re
from pathlib import Path

import pytest

from docsite import (
    PAGES,
    ROOT,
    as_on_the_site,
    build,
    fill_tables,
    generated,
    names,
    pages_of,
    parser_of,
    readme,
    render_math,
)
from unmix.cli import COMMANDS
from unmix.config import MIXTURES
from unmix.credit import RULES

COMMAND_PAGES = {name: name for name in COMMANDS if name != "data"} | {"data pack": "data-pack"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("docs"))


def shown(page: Path) -> str:
    """The text of a page, without its markup."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_every_page_is_in_the_navigation(site: Path) -> None:
    nav = set(re.findall(r"(?<= )[\w/-]+\.md$", (site.parent / "mkdocs.yml").read_text(), re.M))
    sources = site.parent / "build" / "docs"
    assert {str(page.relative_to(sources)) for page in sources.rglob("*.md")} == nav


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=[\"']?(?:https?:)?//", text)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", COMMAND_PAGES)
def test_a_page_lists_every_flag_of_its_command(site: Path, command: str) -> None:
    page = shown(site / "reference" / "cli" / COMMAND_PAGES[command] / "index.html")
    missing = []
    for group in parser_of(command.split())._action_groups:
        if (group.title or "").startswith("Method "):
            continue
        for action in group._group_actions:
            flags = [f for f in action.option_strings if not f.startswith(("--no-", "-h"))]
            missing += [f for f in flags if f != "--help" and f not in page]
    assert not missing


@pytest.mark.parametrize("package", PAGES)
def test_the_api_pages_document_every_public_name(site: Path, package: str) -> None:
    pages = pages_of(package)
    assert sorted(n for _, listed in pages.values() for n in listed) == sorted(names(package))
    for folder, (_, listed) in pages.items():
        page = (site / "api" / folder / "index.html").read_text(encoding="utf-8")
        for name in listed:
            assert re.search(rf'id="unmix[\w.]*\.{name}"', page), name


def test_every_public_name_is_on_some_page() -> None:
    import unmix

    documented = {name for package in PAGES for name in names(package)}
    values = {name: getattr(unmix, name) for name in dir(unmix)}
    packages = {f"unmix.{name}" for name, value in values.items() if inspect.ismodule(value)}
    assert {name for name in values if f"unmix.{name}" not in packages} <= documented
    assert packages == set(PAGES) - {"unmix"}
    for package in packages:
        assert set(importlib.import_module(package).__all__) <= documented


def test_the_tables_of_the_pages_match_the_code_and_the_committed_results() -> None:
    """If this fails: python docs/tools/tables.py."""
    stale = [page.name for page, text in generated() if page.read_text(encoding="utf-8") != text]
    assert stale == []
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme()


def test_the_guide_lists_every_mixture() -> None:
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    rows = text.split("\n| `--unmix_mixture` |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", rows, re.M)) == sorted(MIXTURES)


def test_the_rules_page_lists_every_rule() -> None:
    text = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    rows = text.split("\n| rule |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", rows, re.M)) == sorted(RULES)


def test_tests_that_the_pages_name_exist() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+_\w+_\w+)`", text))
    assert named
    assert {name for name in named if f"def {name}(" not in tests} == set()
    for path in re.findall(r"`(tests/[\w/*.]+)`", text):
        assert list(ROOT.glob(path)), path


def test_every_link_of_a_page_leads_to_a_file_of_the_repository() -> None:
    """Pages are read on GitHub too, where what `make docs` makes is missing."""
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = re.sub(
            r"^```.*?^```$|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S
        )
        links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
        assert [link for link in links if not (page.parent / link).exists()] == [], page


def test_links_to_examples_and_the_notebook_are_those_of_the_site() -> None:
    text = "[examples/a.py](../examples/a.py), [it](../tutorial.ipynb), [b](b.md)"
    assert as_on_the_site(text) == "`examples/a.py`, [it](../tutorial.md), [b](b.md)"


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill_tables("<!-- table: nothing -->")


def test_a_table_takes_the_place_of_an_earlier_one_and_of_nothing_else() -> None:
    marker, end = "<!-- table: recipes moco -->", "<!-- end of table -->"
    filled = fill_tables(f"a\n\n{marker}\n\nb\n\n{marker}\n\nold\n\nold\n\n{end}\n\nc\n")
    found = re.fullmatch(rf"a\n\n{marker}\n\n(.+)\n\n{end}\n\nb\n\n(.+)\n\nc\n", filled, re.DOTALL)
    assert found is not None
    assert found[1].startswith("| recipe | contents |")
    assert found[2] == f"{marker}\n\n{found[1]}\n\n{end}"
    assert fill_tables(filled) == filled


def test_formulas_become_mathml_when_the_site_is_built(site: Path) -> None:
    text = render_math("a $`x_i`$\n\n```math\n\\frac{a}{b}\n```\n")
    assert text.startswith("a <math><msub><mi>x</mi><mi>i</mi></msub></math>")
    assert '<div class="math" tabindex="0"><math display="block"><mfrac>' in text
    with pytest.raises(Exception, match="Expected argument"):
        render_math("```math\n\\frac{a}\n```")
    for page in sorted((ROOT / "docs" / "methods").glob("*.md")):
        sources = page.read_text(encoding="utf-8").count("\n```math\n")
        found = site / "methods" / ("" if page.stem == "index" else page.stem) / "index.html"
        assert found.read_text(encoding="utf-8").count("<math display") == sources >= 1
