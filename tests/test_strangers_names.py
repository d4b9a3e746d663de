"""Hostile names of classes, files and runs reach no page, terminal or table as they are."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from reports import report
from runs import TINY_RUN
from unmix.cli import main
from unmix.commands.watch import _Live
from unmix.commands.watched import watched
from unmix.figures.report import page
from unmix.figures.report_content import Running
from unmix.names import restored, shown_cell
from unmix.training import pretrain

LONG = "long" * 500
MARKUP = "<script>alert(1)</script>"
CLASSES = (
    "../../x", MARKUP, "$(touch x)", "two\nunmix: error: forged", "\u202egnp", "\x1b[31mred",
    f'=HYPERLINK("a"){LONG}', r"$\frac{$ --><img src=x onerror=alert(1)>",
)  # fmt: skip
RUNS = ("<script>alert(1)<\\script>", "$(touch x)\n\u202e\x1b[31mred", "--help --><b a='\"&lt;")
_ACTIVE = ("script", "img", "iframe", "object", "embed", "b", "base", "form", "link", "meta")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


class _Elements(HTMLParser):
    """The elements of a page that could act, with their attributes; and the handlers of all."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _ACTIVE:
            self.found.append((tag, str(sorted(name for name, _ in attrs))))
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.handlers += [text for _, text in attrs if (text or "").startswith("javascript:")]


def elements(text: str) -> list[tuple[str, str]]:
    parser = _Elements()
    parser.feed(text)
    assert parser.handlers == []
    return parser.found


def check_page(text: str) -> None:
    """Nothing of a name acts in a page."""
    assert MARKUP not in text
    assert "<img src=x" not in text
    assert "<b a=" not in text
    assert not _UNSAFE.search(text)
    assert len(re.findall(r"<script\b", text)) == len(re.findall(r"</script>", text))


def check_lines(text: str) -> None:
    """Nothing of a name acts in a terminal or begins a line of its own."""
    assert not _UNSAFE.search(text)
    assert not [line for line in text.splitlines() if line.startswith("unmix: error")]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def everything(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of hostile names, on a list of hostile classes and files."""
    root = tmp_path_factory.mktemp("names") / "a" / "b"
    root.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["path", "label", "split"])
    for i, pixels in enumerate(noise):
        label = CLASSES[i % len(CLASSES)]
        file = f"{i}{label[:40].replace('/', '-')}.png"
        Image.fromarray(pixels).save(root / file)
        table.writerow([file, label, "train" if i < 32 else "test"])
    (root / "list.csv").write_text(text.getvalue(), newline="")
    words: dict[str, Any] = {
        **TINY_RUN,
        "batch_size": 8,
        "knn_k": 5,
        "data": str(root / "list.csv"),
    }
    for seed, name in enumerate(RUNS):
        pretrain(
            method="simclr", run=str(root / name), seed=seed, **words,
        )  # fmt: skip
    return root


@pytest.fixture(autouse=True)
def inside(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is made outside of the folder that is named, nor by a shell."""
    monkeypatch.chdir(hostile)
    before = everything(hostile.parent.parent)
    yield
    made = everything(hostile.parent.parent) - before
    assert all(path.startswith("a/b/out") for path in made), made


def paths(hostile: Path) -> list[str]:
    return [str(hostile / name) for name in RUNS]


def test_compare_shows_hostile_names(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = hostile / "out-compare"
    assert main(["compare", *paths(hostile), "--out", str(out), "--device", "cpu"]) == 0
    check_lines("".join(capsys.readouterr()))
    check_page((out / "report.html").read_text())
    for path in out.glob("*.svg"):
        ElementTree.parse(path)
        check_page(path.read_text())


def test_watch_shows_hostile_names(hostile: Path) -> None:
    lines: list[str] = []
    subject = watched(paths(hostile))
    live = _Live(subject, lines.append)
    state = live.renew()
    check_page(live.page().html)
    check_lines("\n".join([*lines, state.text, subject.name]))


@pytest.mark.parametrize(
    ("figure", "more"),
    [
        ("confusion", ["--protocol", "knn"]), ("neighbors", ["--k", "3"]),
        ("tsne", ["--perplexity", "4"]), ("accuracy", []),
    ],
)  # fmt: skip
def test_a_figure_shows_hostile_names(
    hostile: Path, figure: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    svg = hostile / f"out-{figure}.svg"
    for file in (svg, svg.with_suffix(".pdf")):
        words = ["plot", figure, *paths(hostile)[:2], "--out", str(file), "--overwrite"]
        assert main([*words, *more]) == 0
        check_lines("".join(capsys.readouterr()))
    ElementTree.parse(svg)
    check_page(svg.read_text())
    found = rows(svg.with_suffix(".csv"))
    assert found
    for row in found:
        for cell in row.values():
            check_lines(cell)
            assert not cell.startswith("=")
    if figure == "confusion":
        assert {row["true_class"] for row in found} == {*map(shown_cell, CLASSES)}


def test_embed_keeps_hostile_names_and_prints_none(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = hostile / "out-features.npy"
    assert main(["embed", paths(hostile)[1], "--out", str(out)]) == 0
    check_lines("".join(capsys.readouterr()))
    found = rows(out.with_suffix(".csv"))
    assert len(found) == 48
    assert {restored(row["class"]) for row in found} == set(CLASSES)
    assert all(Path(restored(row["path"])).is_file() for row in found)


def test_the_page_of_neighbors_shows_hostile_names(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = hostile / "out-neighbors"
    assert main(["neighbors", paths(hostile)[2], "--out", str(out), "--k", "3"]) == 0
    check_lines("".join(capsys.readouterr()))
    text = (out / "index.html").read_text()
    check_page(text)
    assert {tag for tag, _ in elements(text)} <= {"img", "meta"}
    assert {restored(row["class"]) for row in rows(out / "neighbors.csv")} <= set(CLASSES)


@pytest.mark.parametrize("name", [*CLASSES, *RUNS])
def test_a_page_of_a_name_has_the_elements_of_a_page_of_another(name: str) -> None:
    plain, text = (
        page(report([word, "b"], running=Running(word, 0.5, 3.0, heading=word)))
        for word in ("a", name)
    )
    check_page(text)
    assert elements(text) == elements(plain)
