"""`unmix plot`: a figure of runs, as PNG and SVG, with the numbers behind it as CSV."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from unmix.commands.compare import listed
from unmix.commands.finished import Say
from unmix.commands.plots.drawn import Drawn, Request
from unmix.config.figures import check_figure
from unmix.errors import UserError, check_given
from unmix.figures.style import style
from unmix.figures.widths import inches
from unmix.files import as_path, atomic_path
from unmix.names import shown
from unmix.training.console import say as print_line

__all__ = ["Plot", "plot"]

_KINDS = ("png", "svg", "pdf")
_DPI = 300


@dataclass(frozen=True)
class Plot:
    """A figure of runs; a notebook shows it.

    Attributes:
        figure: The Matplotlib figure.
        columns: Names of the columns of the numbers behind it.
        rows: These numbers, as the CSV has them.
        caption: How it was made.
        files: What was written.
    """

    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str
    files: tuple[Path, ...]

    def _repr_png_(self) -> bytes:
        return _rendered(self.figure, "png", 150)


def plot(
    name: str,
    *runs: Path | str | Sequence[Path | str],
    out: Path | str | None = None,
    overwrite: bool = False,
    dark: bool = False,
    width: str = "page",
    protocol: str | None = None,
    against: str | None = None,
    images: int | None = None,
    perplexity: float | None = None,
    neighbors: int | None = None,
    min_dist: float | None = None,
    k: int | None = None,
    weight: float | None = None,
    layers: tuple[str, ...] | None = None,
    features: str | None = None,
    seed: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    say: Say = print_line,
) -> Plot:
    """Draw a figure of finished runs, and write it with the numbers behind it.

    Each figure takes some of the options; others are refused. `unmix plot list` says which, and
    what each figure needs.

    Args:
        name: The figure.
        runs: Run folders, one by one or as one list.
        out: A file .png, .svg or .pdf; without one of these endings both PNG and SVG. The numbers
            are beside it as CSV. By default the figure's name in `plots` beside the runs.
        overwrite: Replace files that exist.
        dark: For a dark page.
        width: Width on paper: column (3.35 inches) or page (6.9 inches).
        protocol: accuracy: the protocol, by default linear or else kNN; confusion: linear or knn.
        against: accuracy: epochs, or time (of training).
        images: Number of images: of softmax 256, tsne and umap 2000, neighbors and views
            6, attention and patches 8.
        perplexity: tsne: the perplexity, by default 30.
        neighbors: umap: the number of neighbors, by default 15.
        min_dist: umap: the minimum distance of points, by default 0.1.
        k: neighbors: how many of each image, by default 8, in a column 5.
        weight: softmax: of an image in its mixture with another, by default 0.5.
        layers: weights: names of layers, such as layer1.0.conv1; by default six.
        features: The backbone's pooled features (default), or the projector's.
        seed: Of all random numbers of the figure, by default 0.
        data: tsne, umap, neighbors, attention, patches, confusion: another data set than the
            pretraining's.
        data_dir: Folder of the data set's files.
        device: auto (default), cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        say: Prints a line.

    Returns:
        The figure, its numbers, its caption and the files.

    Raises:
        UserError: if there is no such figure, an option does not apply to it, runs cannot give it,
            or a file exists or cannot be written.
    """
    options = {
        "protocol": protocol, "against": against, "images": images, "perplexity": perplexity,
        "neighbors": neighbors, "min_dist": min_dist, "k": k, "weight": weight, "layers": layers,
        "features": features, "seed": seed, "data": data, "data_dir": data_dir, "device": device,
        "threads": threads,
    }  # fmt: skip
    given = [as_path(run) for run in listed(runs)]
    name = check_figure(name, len(given), options)
    inches(width)
    files = _files(out, name, given, overwrite)
    from unmix.commands.plots.registry import DRAW

    theme = "dark" if dark else "light"
    drawn = DRAW[name](Request(name, tuple(given), options, width, theme, say))
    _write(drawn, files, theme)
    say(drawn.caption)
    say(f"plot: {', '.join(shown(path) for path in files)}")
    return Plot(drawn.figure, drawn.columns, drawn.rows, drawn.caption, files)


def _files(
    out: Path | str | None, name: str, runs: Sequence[Path], overwrite: bool
) -> tuple[Path, ...]:
    """The files to write, which must not exist: pictures, and the CSV.

    Raises:
        UserError: if one exists, or has another ending.
    """
    check_given("out", out)
    if out is None:
        beside = Path(os.path.commonpath([run.absolute().parent for run in runs]))
        path = beside / "plots" / name
    else:
        path = as_path(out)
        if path.is_dir():
            raise UserError(
                f"{path} is a folder; give a file, such as {path / name}.png.", parameter="out"
            )
    ending = path.suffix[1:].lower()
    if ending == "csv" or ending in ("jpg", "jpeg", "gif", "tif", "tiff", "eps", "webp", "html"):
        raise UserError(f"{path.name} must end in .png, .svg or .pdf.", parameter="out")
    stem = path.with_suffix("") if ending in _KINDS else path
    kinds = (ending,) if ending in _KINDS else ("png", "svg")
    # Not with_suffix: a name such as "lr0.03" would lose its ".03".
    files = tuple(stem.with_name(f"{stem.name}.{kind}") for kind in (*kinds, "csv"))
    there = [file for file in files if file.exists()]
    if there and not overwrite:
        raise UserError(
            f"{there[0]} exists; give another name, or --overwrite to replace it.", parameter="out"
        )
    for file in there:
        if file.is_dir():
            raise UserError(f"{file} is a folder; give another name.", parameter="out")
    return files


def _write(drawn: Drawn, files: Sequence[Path], theme: str) -> None:
    """Write all files, or none."""
    with rc_context(style(theme)):
        contents = [
            drawn.csv() if path.suffix == ".csv" else _rendered(drawn.figure, path.suffix[1:])
            for path in files
        ]
    with ExitStack() as stack:
        temporary = [stack.enter_context(atomic_path(path)) for path in files]
        for path, content in zip(temporary, contents, strict=True):
            path.write_bytes(content)


def _rendered(figure: Figure, kind: str, dpi: int = _DPI) -> bytes:
    """The figure as a file; the same figure gives the same bytes."""
    kind = kind.lower()
    buffer = io.BytesIO()
    # `unmix.data` recognizes figures among images by this metadata.
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": "unmix"}, "svg": {"Date": None}, "pdf": {"CreationDate": None}
    }  # fmt: skip
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata[kind])
    return buffer.getvalue()
