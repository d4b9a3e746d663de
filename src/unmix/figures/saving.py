"""Figures as files."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from unmix.figures.style import STYLE
from unmix.files import atomic_write

__all__ = ["render", "save"]


def render(figure: Figure, kind: str) -> bytes:
    """Draw a figure; the same figure gives the same bytes.

    Args:
        figure: The figure.
        kind: `png` (150 dots per inch) or `svg` (text as outlines, so that no font is needed).
    """
    buffer = io.BytesIO()
    # `unmix.data` recognizes figures among images by this metadata.
    metadata = {"Date": None} if kind == "svg" else {"Software": "unmix"}
    with rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as `STEM.png` (150 dots per inch) and `STEM.svg`, atomically.

    Args:
        figure: The figure.
        stem: The path of the files without extension; missing folders are created.

    Returns:
        The two paths.

    Raises:
        UserError: if a file cannot be written.
    """
    paths = []
    for kind in ("png", "svg"):
        # Not with_suffix: a name such as "lr0.03" would lose its ".03".
        path = Path(stem).with_name(f"{Path(stem).name}.{kind}")
        atomic_write(path, render(figure, kind))
        paths.append(path)
    return paths
