"""The tutorial: a notebook to a page, with the outputs that are stored in it."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

__all__ = ["write_notebook"]


def write_notebook(source: Path, page: Path) -> None:
    """Write a notebook as a page of Markdown, and its pictures into a folder beside the page."""
    notebook = nbformat.read(source, as_version=4)
    resources = {"output_files_dir": f"{page.stem}_files", "unique_key": page.stem}
    text, found = MarkdownExporter().from_notebook_node(notebook, resources)
    for name, data in found["outputs"].items():
        path = page.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    page.write_text(text, encoding="utf-8")
