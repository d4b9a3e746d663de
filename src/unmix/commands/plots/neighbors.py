"""Nearest training images of test images."""

from __future__ import annotations

import torch

from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import chosen_images, images_of, open_runs
from unmix.data import read_uint8
from unmix.errors import UserError, check_choice, check_number
from unmix.evaluation.neighbors import nearest_neighbors
from unmix.figures.embedding import name_of
from unmix.figures.pictures import Picture, PictureRow, picture_grid
from unmix.figures.widths import inches
from unmix.hardware.threads import CoreMeter
from unmix.training.console import quiet_libraries

__all__ = ["neighbors"]

_IMAGES, _K, _MOST, _LETTERS = 6, 8, 24, 13
_NARROW = 5  # inches


def neighbors(request: Request) -> Drawn:
    """For a few test images the training images with the most similar features."""
    few = _IMAGES if len(request.runs) == 1 else 4
    fit = _K if inches(request.width) > _NARROW else 5
    count, k = request.option("images", few), request.option("k", fit)
    check_number("images", count, at_least=1, at_most=_MOST)
    check_number("k", k, at_least=1, at_most=20)
    kind = check_choice(
        "features", request.option("features", "backbone"), ("backbone", "projector")
    )
    quiet_libraries()
    cores = CoreMeter()
    runs = open_runs(request)
    images = images_of(runs, request, "the figure neighbors")
    test, classes = images[0].test, images[0].classes
    same = images[0].test is images[0].train
    queries = chosen_images(test, count, request.option("seed"))
    side = max(min(opened.run.encoder.views.size, 96) for opened in runs)
    pictures, kept = read_uint8(test, queries, side)
    if not len(kept):
        raise UserError(f"{test.name}: none of the images to show can be read.")
    rows: list[list[PictureRow]] = [[] for _ in kept]
    table = []
    for opened, own in zip(runs, images, strict=True):
        with opened.computing(request, cores):
            encode = opened.run.subject(kind).encode
            bank = opened.run.features(encode, own.train, request.say)
            asked = opened.run.features(encode, own.test.picked(kept), request.say).features
        exclude = None
        if same:
            place = {int(index): at for at, index in enumerate(bank.index)}
            exclude = torch.tensor([place.get(int(index), -1) for index in kept])
        found = nearest_neighbors(bank.features, asked, k, exclude=exclude)
        for number, index in enumerate(kept.tolist()):
            label = None if test.labels is None else int(test.labels[index])
            near = bank.index[found.index[number]]
            seen, _ = read_uint8(own.train, near, side)
            first = opened is runs[0]
            cells = [_query(pictures[number], label, classes) if first else None]
            for rank in range(k):
                of = None if bank.labels is None else int(bank.labels[found.index[number, rank]])
                similarity = float(found.similarity[number, rank])
                name = "" if of is None else name_of(of, classes or (), _LETTERS)
                agrees = None if of is None or label is None else of == label
                note = f"{name}\n{similarity:.2f}" if name else f"{similarity:.2f}"
                cells.append(Picture(seen[rank].cpu(), note, agrees))
                table.append(
                    [opened.label, index, "" if label is None else (classes or ())[label],
                     rank + 1, int(near[rank]), "" if of is None else (classes or ())[of],
                     similarity]
                )  # fmt: skip
            row = PictureRow(opened.label if len(runs) > 1 else "", cells, apart=first)
            rows[number].append(row)
    right = [row[6] == row[2] for row in table if row[5] != "" and row[2] != ""]
    caption = (
        f"Left: {images[0].words}, evenly from all classes; right: the {k} nearest of "
        f"{len(images[0].train):,} training images by cosine similarity of {kind} features, which "
        "is written below." + (" Solid frame: same class; dashed: another." if right else "")
    )
    figure = picture_grid(
        [row for group in rows for row in group], first_apart=True, caption=caption, **request.how
    )
    columns = ["run", "image", "class", "rank", "neighbor", "class_of_neighbor", "cosine"]
    return Drawn(figure, columns, table, caption)


def _query(pixels: torch.Tensor, label: int | None, classes: tuple[str, ...] | None) -> Picture:
    return Picture(pixels.cpu(), "" if label is None else name_of(label, classes or (), _LETTERS))
