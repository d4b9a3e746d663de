"""Figures as files, and as part of a page."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from unmix.figures.style import IN_PAGE, STYLE
from unmix.files import atomic_write

__all__ = ["inline", "render", "save"]


def render(figure: Figure, kind: str) -> bytes:
    """Draw a figure; the same figure gives the same bytes.

    Args:
        figure: The figure.
        kind: `png` (150 dots per inch), `svg` (text as outlines, so that no font is needed) or
            `pdf`.
    """
    buffer = io.BytesIO()
    # `unmix.data` recognizes figures among images by this metadata.
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    metadata = dates.get(kind, {"Software": "unmix"})
    with rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def inline(figure: Figure, alt: str) -> str:
    """A figure of the theme `inline` as an SVG element on one line, in the colors of its page.

    Text and axes have the color of the text around it, hollow markers that of the page (its
    `--paper`, or the browser's). Ids are unique in a page with several figures.

    Args:
        figure: Drawn with `theme="inline"`.
        alt: What it shows, for those who do not see it.
    """
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    svg = render(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    own = hashlib.sha256(svg.encode()).hexdigest()[:6]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{own}-", svg)
    for color, word in IN_PAGE.items():
        svg = re.sub(re.escape(color), word, svg, flags=re.IGNORECASE)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    head = f'<svg role="img" aria-label="{_attribute(alt)}" style="width:100%;height:auto" '
    return " ".join(svg.replace("<svg ", head, 1).split())


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


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
