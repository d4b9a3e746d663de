"""The tutorial: a notebook that is executed, and shown as a page with the outputs stored in it.

python docs/tools/notebook.py     executes docs/tutorial.ipynb and stores its outputs
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

__all__ = ["executed", "write_notebook"]


def executed(source: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook's cells in a fresh kernel, in a folder.

    Args:
        source: The notebook; the file stays as it is.
        folder: Where the kernel works and writes.

    Returns:
        The notebook with the new outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    from nbclient import NotebookClient

    notebook = nbformat.read(source, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources, coalesce_streams=True
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ every time
    # The version of the interpreter does not matter to a reader, and changes.
    notebook.metadata.language_info = {"name": "python"}
    return notebook


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


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[1] / "tutorial.ipynb"
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(path, Path(folder)), path)
    print(f"stored the outputs in {path}", file=sys.stderr)
