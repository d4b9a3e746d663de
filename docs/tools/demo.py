"""The picture of the demo, from the committed runs in docs/evidence/demo.

python docs/tools/demo.py     writes docs/images/demo.png, and demo-dark.png for a dark background
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(DOCS), str(DOCS.parent / "src")]

from unmix.commands.study_page import panels  # noqa: E402
from unmix.figures.paired import paired_dots  # noqa: E402
from unmix.figures.saving import render  # noqa: E402
from unmix.studies import read_study  # noqa: E402

__all__ = ["STUDY", "pictures"]

STUDY = DOCS / "evidence" / "demo"


def pictures() -> dict[str, bytes]:
    """PNG files by name."""
    found = {"": panels(read_study(STUDY))}
    light, dark = (paired_dots(found, shared=False, theme=theme) for theme in ("light", "dark"))
    # Dark pages differ in their black.
    dark.patch.set_alpha(0)
    for axes in dark.axes:
        axes.patch.set_alpha(0)
    return {"demo.png": render(light, "png"), "demo-dark.png": render(dark, "png")}


if __name__ == "__main__":
    for name, content in pictures().items():
        (DOCS / "images" / name).write_bytes(content)
