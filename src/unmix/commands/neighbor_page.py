"""The page of `unmix neighbors`: thumbnails within it, no other file needed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unmix.html import escaped
from unmix.names import shown

__all__ = ["Hit", "Query", "neighbor_page"]

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
figure { display: inline-block; margin: 0 .6rem .8rem 0; width: 112px; vertical-align: top; }
figure img { width: 112px; height: 112px; display: block; }
figcaption { font-size: 11px; overflow-wrap: anywhere; }
.query { border-right: 2px solid #888; padding-right: .6rem; }
.other img { outline: 2px dashed #CC3311; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } }
"""


@dataclass(frozen=True)
class Hit:
    """An image with its similarity to a query.

    Attributes:
        name: Its path, as in the files of features.
        label: Its class, empty if not known.
        similarity: Cosine.
        pixels: Thumbnail, uint8 (3, H, W).
    """

    name: str
    label: str
    similarity: float
    pixels: np.ndarray

    @property
    def file(self) -> str:
        """The name of its file, in few letters."""
        return shown(Path(self.name).name)


@dataclass(frozen=True)
class Query:
    """An image and its neighbors, nearest first."""

    image: Hit
    hits: Sequence[Hit]


def neighbor_page(
    queries: Sequence[Query],
    pairs: Sequence[tuple[Hit, Hit]],
    count: int,
    threshold: float,
    data: str,
) -> str:
    """The page as HTML.

    Args:
        queries: Images and their neighbors.
        pairs: The most similar pairs.
        count: How many pairs there are.
        threshold: Their least similarity.
        data: Name of the data.
    """
    rows = []
    for query in queries:
        figures = [_figure(query.image, "query", "")]
        for hit in query.hits:
            differs = bool(query.image.label and hit.label) and query.image.label != hit.label
            figures.append(_figure(hit, "other" if differs else "", f"{hit.similarity:.3f} "))
        rows.append(f"<div>{''.join(figures)}</div>")
    twins = [
        f"<div>{_figure(a, '', f'{a.similarity:.4f} ')}{_figure(b, '', '')}</div>" for a, b in pairs
    ]
    labeled = any(query.image.label for query in queries)
    few = f"; the {len(pairs):,} most similar are shown" if count > len(pairs) else ""
    return "\n".join(
        [
            "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
            f"<title>Neighbors in {escaped(data)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>Nearest neighbors in {escaped(data)}</h1>",
            "<p>Left: the image; right: the most similar images by cosine similarity of their "
            f"features.{' A dashed frame: another class.' if labeled else ''}</p>", *rows,
            f"<h2>Near-duplicates</h2><p>{count:,} pairs with cosine similarity of at least "
            f"{threshold:g}{few}. All are in duplicates.csv.</p>", *twins, "</body></html>", "",
        ]
    )  # fmt: skip


def _figure(hit: Hit, kind: str, text: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(hit.pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=85)
    source = base64.b64encode(buffer.getvalue()).decode()
    name, label = escaped(hit.file), escaped(hit.label)
    words = f"{text}{label} " if hit.label else text
    return (
        f'<figure class="{kind}"><img alt="{name}" title="{escaped(hit.name)}" '
        f'src="data:image/jpeg;base64,{source}"><figcaption>{words}{name}</figcaption></figure>'
    )
