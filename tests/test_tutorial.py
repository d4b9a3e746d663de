"""The tutorial: its cells run in order, and its stored outputs are those of such a run."""

from __future__ import annotations

import re
from typing import Any

import nbformat
import pytest

from docsite import ROOT, executed

TUTORIAL = ROOT / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The code cells, executed anew in an empty folder."""
    folder = tmp_path_factory.mktemp("tutorial")
    cells = [c for c in executed(TUTORIAL, folder).cells if c.cell_type == "code"]
    assert {path.name for path in (folder / "runs").iterdir()} == {"plain", "mixed"}
    return cells


@pytest.fixture(scope="module")
def stored() -> list[Any]:
    notebook = nbformat.read(TUTORIAL, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def kinds(cell: Any) -> set[str]:
    return {kind for output in cell.outputs for kind in output.get("data", {"text": ""})}


def test_the_stored_outputs_match_a_run(ran: list[Any], stored: list[Any]) -> None:
    """The same kinds of output, and the same lines but for their numbers."""
    assert [cell.source for cell in ran] == [cell.source for cell in stored]
    assert [cell.execution_count for cell in stored] == list(range(1, len(stored) + 1))
    for new, old in zip(ran, stored, strict=True):
        assert kinds(new) == kinds(old), old.source
        assert shape(text(new)) == shape(text(old)), old.source


def shape(printed: str) -> str:
    """Printed lines without their numbers; of a run, how it went and not what it says meanwhile."""
    lines = printed.splitlines()
    if any(" epochs (" in line for line in lines):
        wanted = ("epoch ", "kNN", "linear ", "encoder: ")
        lines = [line.strip() for line in lines if line.strip().startswith(wanted)]
        lines = [re.sub(r"(epoch \S+  loss).*", r"\1", line) for line in lines]
    return "\n".join(re.sub(r"-?[\d.,]+ ?%?| +", " ", line).strip() for line in lines)


def test_the_text_agrees_with_the_outputs(ran: list[Any]) -> None:
    said = "\n".join(map(text, ran))
    encoder, pixels = (
        float(x) for x in re.findall(r"^(?:encoder|raw pixels): +([\d.]+)%", said, re.M)
    )
    assert encoder > pixels + 5
    losses = [float(x) for x in re.findall(r"^step \d  loss ([\d.]+)$", said, re.M)]
    assert len(losses) == 8
    assert losses[0] == min(losses)  # the queue holds random keys
    clean, mixed, both = map(
        float, re.findall(r"(?:clean|mixed|sum) (-[\d.]+)", said.splitlines()[-1])
    )
    assert clean + mixed == pytest.approx(both, abs=2e-3)
