"""What encoders have at the positions of a few test images: the frame of two figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmix.commands.plots.drawn import Request
from unmix.commands.plots.opened import OpenRun, chosen_images, images_of, open_runs
from unmix.data import read_uint8
from unmix.errors import UserError, check_number
from unmix.figures.embedding import name_of
from unmix.figures.pictures import Picture, PictureRow
from unmix.figures.style import shorten
from unmix.figures.widths import inches
from unmix.hardware.threads import CoreMeter
from unmix.names import shown
from unmix.training.console import quiet_libraries

__all__ = ["AtPositions", "at_positions"]

_MOST, _LETTERS = 24, 13
_NARROW = 5  # inches


@dataclass(frozen=True)
class AtPositions:
    """What each run's encoder has at the positions of the same images.

    Attributes:
        runs: The runs.
        maps: Of each run, (N, rows, columns, ...).
        pictures: Of each run the images at its size, uint8 (N, 3, H, W).
        kept: Of the images that are shown, their numbers in the data set.
        classes: Names of their classes; empty without.
        words: Such as "Test images of photos".
        columns: How many pictures are in a row.
    """

    runs: list[OpenRun]
    maps: list[Tensor]
    pictures: list[Tensor]
    kept: list[int]
    classes: list[str]
    words: str
    columns: int

    def rows(self, cells: Sequence[Sequence[Picture]]) -> list[PictureRow]:
        """Rows of images, and below each a row of the pictures of each run.

        Args:
            cells: Of each run, a picture for each image.
        """
        rows: list[PictureRow] = []
        for some in torch.arange(len(self.kept)).split(self.columns):
            first = [Picture(self.pictures[0][i], shorten(self.classes[i], _LETTERS)) for i in some]
            rows.append(PictureRow("", first, apart=bool(rows)))
            for opened, own in zip(self.runs, cells, strict=True):
                rows.append(PictureRow(opened.label, [own[i] for i in some]))
        return rows

    def table(self) -> Iterator[list[Any]]:
        """A row for each cell: run, image, class, row, column, and its values."""
        for opened, maps in zip(self.runs, self.maps, strict=True):
            for index, name, cells in zip(self.kept, self.classes, maps, strict=True):
                values = cells.flatten(2) if cells.ndim > 2 else cells[..., None]
                for row, of_row in enumerate(values.tolist()):
                    for column, value in enumerate(of_row):
                        yield [opened.label, index, name, row, column, *value]


@torch.no_grad()
def at_positions(
    request: Request, compute: Callable[[OpenRun, Tensor], Tensor], instead: str
) -> AtPositions:
    """Choose the images of a request, and compute what each run's encoder has at their positions.

    Args:
        request: With the options `images`, `seed`, `data`, `device`, `threads`.
        compute: From a run and prepared images (N, 3, H, W) on its device to maps (N, rows,
            columns, ...).
        instead: Which runs to give if `compute` refuses an encoder.

    Raises:
        UserError: if runs are of other images, none of the images can be read, or `compute`
            refuses an encoder.
    """
    columns = 8 if inches(request.width) > _NARROW else 5
    count = request.option("images", columns)
    check_number("images", count, at_least=1, at_most=_MOST)
    quiet_libraries()
    cores = CoreMeter()
    runs = open_runs(request)
    images = images_of(runs, request, f"the figure {request.name}")
    test, classes = images[0].test, images[0].classes
    chosen = chosen_images(test, count, request.option("seed"))
    kept, maps, pictures = chosen, [], []
    for opened in runs:
        encoder = opened.run.encoder
        pixels, kept = read_uint8(test, chosen, encoder.views.size)
        if not len(kept):
            raise UserError(f"{test.name}: none of the images to show can be read.")
        device = next(encoder.parameters()).device
        with opened.computing(request, cores):
            try:
                maps.append(compute(opened, encoder.views.plain(pixels.to(device))).cpu())
            except UserError as error:
                raise UserError(
                    f"{shown(opened.path)}: {error.message.partition(';')[0]}; give runs of "
                    f"{instead}."
                ) from None
        pictures.append(pixels.cpu())
    names = [""] * len(kept)
    if test.labels is not None:
        names = [name_of(int(test.labels[i]), classes or (), 10**6) for i in kept]
    words = images[0].words
    words = f"{words[0].upper()}{words[1:]}"
    return AtPositions(runs, maps, pictures, kept.tolist(), names, words, columns)
