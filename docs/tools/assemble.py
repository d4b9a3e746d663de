"""Put the site's sources together in `build/docs`: `docs/`, and what is made from the code.

python docs/tools/assemble.py && zensical build --strict
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "src")]

from tools.api import write_api  # noqa: E402
from tools.formulas import render_math  # noqa: E402
from tools.notebook import write_notebook  # noqa: E402
from tools.reference import write_reference  # noqa: E402

__all__ = ["assemble"]


def assemble(target: Path = ROOT / "build" / "docs") -> Path:
    """Copy `docs/` to a folder and make there what the builder reads.

    Args:
        target: The folder; what was in it is gone.

    Returns:
        The folder.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(
        ROOT / "docs",
        target,
        ignore=shutil.ignore_patterns("tools", "outputs", "cells", "*.ipynb", "__pycache__"),
    )
    write_api(target / "api")
    write_reference(target / "reference" / "cli")
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        write_notebook(notebook, target / f"{notebook.stem}.md")
    for page in target.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(render_math(as_on_the_site(text)), encoding="utf-8")
    return target


def as_on_the_site(text: str) -> str:
    """A page with the links that differ between the repository and the site.

    In the repository an example is a link to its file, which the site shows in place; and the
    notebook is a file there, and a page here.
    """
    text = re.sub(r"\[(examples/\w+\.py)\]\(\.\./examples/\w+\.py\)", r"`\1`", text)
    return re.sub(r"(\]\((?:\.\./)*\w+)\.ipynb\)", r"\1.md)", text)


if __name__ == "__main__":
    print(assemble())
