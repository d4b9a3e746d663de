"""`unmix neighbors`: the images that an encoder takes for similar, and near-duplicates."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unmix.commands.embed import check_new, embedding_chunks, encoder_of_layer, make_features
from unmix.commands.finished import FinishedRun, Say
from unmix.commands.images import image_sets, range_of
from unmix.commands.neighbor_page import Hit, Query, neighbor_page
from unmix.commands.predictions import spread_over_classes
from unmix.data import ImageSet, Skipped, read_uint8
from unmix.data.bit_depth import Range
from unmix.data.columns import Columns
from unmix.data.python_images import given_uint8
from unmix.embedding import Chunks, assemble
from unmix.errors import UserError, check_number
from unmix.evaluation import nearest_neighbors
from unmix.evaluation.neighbors import Neighbors
from unmix.figures import Picture, PictureRow, picture_grid
from unmix.figures.saving import render
from unmix.figures.style import shorten
from unmix.files import as_path, atomic_write
from unmix.hardware.threads import CoreMeter
from unmix.names import json_bytes, shown
from unmix.training.console import Estimate, quiet_libraries
from unmix.training.console import say as print_line

__all__ = ["neighbors"]

_SIDE = 96
_FILES = ("neighbors.png", "neighbors.csv", "duplicates.csv", "index.html")
# Of each image so many of its nearest are looked at for near-duplicates.
_PARTNERS = 10
_PAIRS_SHOWN = 60


def neighbors(
    run: Path | str,
    *,
    data: str | None = None,
    query: Sequence[str] = (),
    k: int = 8,
    images: int = 12,
    threshold: float = 0.95,
    out: Path | str | None = None,
    split: str = "all",
    layer: str | None = None,
    batch_size: int = 256,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    overwrite: bool = False,
    say: Say = print_line,
) -> Path:
    """Draw a contact sheet of nearest neighbors, and list near-duplicates.

    Features are compared by cosine similarity, in blocks: they are on the disk, so memory does not
    grow with them. The folder has neighbors.png and neighbors.csv, duplicates.csv (pairs of at
    least `threshold`, most similar first, with their classes and splits), and index.html with both.
    For near-duplicates the 10 nearest of each image are looked at. Give the same command to
    continue one that was interrupted.

    Args:
        run: Run folder, or an encoder file alone, with `data`.
        data: Name or folder of the images; by default those of the pretraining.
        query: Images whose neighbors are shown; by default some of the data, from all classes.
        k: Number of neighbors, 1 to 50.
        images: How many images are shown if no query is given, 1 to 100.
        threshold: Cosine similarity of near-duplicates, above 0 and at most 1.
        out: The folder; by default neighbors/ in that of the run.
        split: The images to look among: all, train or test.
        layer: A layer of the backbone; by default its pooled output.
        batch_size: Images that are encoded at a time.
        device: auto, cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        data_dir: Folder of the data set's files, for the names that need it.
        train_folder: Folder of the training images, relative to --data, if its name is not
            usual.
        test_folder: Folder of the images to evaluate on, likewise.
        image_column: Of a list or table, the column of the images or their paths, if its name is
            not a usual one.
        label_column: Likewise of the labels.
        split_column: Likewise of the splits to which images belong.
        overwrite: Replace the files if they exist.
        say: Prints a line.

    Returns:
        The folder.

    Raises:
        UserError: if the files exist, there are fewer images than neighbors, a query is no image,
            there is no such layer, or the data cannot be read.
    """
    check_number("k", k, at_least=1, at_most=50)
    check_number("images", images, at_least=1, at_most=100)
    check_number("threshold", threshold, above=0, at_most=1)
    check_number("batch_size", batch_size, at_least=1)
    quiet_libraries()
    cores = CoreMeter()
    finished = FinishedRun.open(run, device)
    folder = _folder(
        as_path(out) if out is not None else finished.folder.path / "neighbors", overwrite
    )
    encode, dim = encoder_of_layer(finished, layer)
    columns = Columns(image_column, label_column, split_column)
    sets = image_sets(finished, split, data, data_dir, train_folder, test_folder, columns, say)
    limits = range_of(finished, sets[0])
    asked = _asked(finished, query, limits)
    _check_enough(k, sets)
    chunks = embedding_chunks(
        folder / "features.npy", finished, sets, layer, "backbone", dim, "float32", batch_size
    )
    with finished.computing(threads, cores, say), chunks.opened(overwrite):
        if not chunks.assembled(overwrite):
            make_features(chunks, finished, encode, say, batch_size, overwrite)
            assemble(chunks, chunks.out, {})
        bank = Bank.of(chunks)
        found = _search(bank, k, finished, say)
        if asked is None:
            which = spread_over_classes(bank.label_tensor, len(bank.names), images)
            queries = _own_queries(bank, which, found, k)
        else:
            queries = _given_queries(bank, query, asked, encode, finished, k, limits)
        pairs = _pairs(bank, found, threshold)
        _write(folder, bank, queries, pairs, threshold)
        _say_results(bank, pairs, threshold, folder, say)
        chunks.remove()
    return folder


def _folder(folder: Path, overwrite: bool) -> Path:
    """The folder of the results.

    Raises:
        UserError: if it is a file, or results are there already.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder.", parameter="out")
    for name in _FILES:
        check_new(folder / name, overwrite)
    return folder


def _check_enough(k: int, sets: Sequence[ImageSet]) -> None:
    """Check that each image has so many others.

    Raises:
        UserError: if not.
    """
    count = sum(map(len, sets))
    if count <= k:
        raise UserError(
            f"{k} neighbors of each image need at least {k + 1} images, and {sets[0].name} has "
            f"{count:,}; give fewer, or more images.",
            parameter="k",
        )


@dataclass(frozen=True)
class Bank:
    """The images that are searched.

    Attributes:
        features: (N, D), a file mapped into memory.
        names: Of each image.
        places: Number of the split, and the index in it, of each image.
        classes: Of each image, empty if not known.
        labels: Class indices, or None.
        chunks: Where the features came from.
    """

    features: Tensor
    names: list[str]
    places: list[tuple[int, int]]
    classes: list[str]
    labels: list[int] | None
    chunks: Chunks

    @classmethod
    def of(cls, chunks: Chunks) -> Bank:
        """Open the features that were put together."""
        mapped = np.load(chunks.ready / chunks.out.name, mmap_mode="c")
        names: list[str] = []
        places: list[tuple[int, int]] = []
        classes: list[str] = []
        labels: list[int] = []
        number = {id(named): i for i, named in enumerate(chunks.sets)}
        for named, chunk in chunks:
            names += named.names(chunk.index)
            places += [(number[id(named)], i) for i in chunk.index.tolist()]
            own, words = named.labels(chunk.index), named.classes
            if own is None or words is None:
                classes += [""] * len(chunk.index)
            else:
                classes += [words[label] for label in own.tolist()]
                labels += own.tolist()
        known = labels if len(labels) == len(names) else None
        return cls(torch.from_numpy(mapped), names, places, classes, known, chunks)

    @property
    def label_tensor(self) -> Tensor | None:
        """Class indices, int64 (N,)."""
        return None if self.labels is None else torch.tensor(self.labels)

    def split(self, i: int) -> str:
        """The name of an image's split, such as "test"."""
        return self.chunks.sets[self.places[i][0]].images.split

    def picture(self, i: int) -> np.ndarray:
        """Pixels of an image, uint8 (3, side, side)."""
        split, index = self.places[i]
        pixels, kept = read_uint8(self.chunks.sets[split].images, [index], _SIDE)
        return pixels[0].cpu().numpy() if len(kept) else np.zeros((3, _SIDE, _SIDE), np.uint8)

    def hit(self, i: int, similarity: float) -> Hit:
        """An image that was found."""
        return Hit(self.names[i], self.classes[i], similarity, self.picture(i))


def _asked(finished: FinishedRun, query: Sequence[str], limits: Range | None) -> Tensor | None:
    """The images of the queries, uint8 (n, 3, size, size); None if there are none.

    Raises:
        UserError: if one is not an image.
    """
    if not query:
        return None
    encoder = finished.encoder
    pixels = []
    for path in query:
        if not Path(path).exists():
            raise UserError(f"there is no file {path}.", parameter="query")
        try:
            pixels.append(given_uint8([path], encoder.views.size, limits=limits))
        except UserError as error:
            raise UserError(str(error), parameter="query") from None
    return torch.cat(pixels)


def _search(bank: Bank, k: int, finished: FinishedRun, say: Say) -> Neighbors:
    """The nearest neighbors of all images, among the others."""
    n = len(bank.names)
    if n <= k:
        raise UserError(f"{k}, and only {n:,} images are readable; give less.", parameter="k")
    partners = min(max(k, _PARTNERS), n - 1)
    return nearest_neighbors(
        bank.features, bank.features, partners, exclude=torch.arange(n),
        device=finished.machine.device, progress=Estimate("neighbors", "images", say),
    )  # fmt: skip


def _own_queries(bank: Bank, which: Tensor, found: Neighbors, k: int) -> list[Query]:
    queries = []
    for i in which.tolist():
        near = zip(found.index[i, :k].tolist(), found.similarity[i, :k].tolist(), strict=True)
        queries.append(Query(bank.hit(i, 1.0), [bank.hit(j, s) for j, s in near]))
    return queries


def _given_queries(
    bank: Bank,
    paths: Sequence[str],
    pixels: Tensor,
    encode: object,
    finished: FinishedRun,
    k: int,
    limits: Range | None,
) -> list[Query]:
    """The neighbors of the images that were asked for, each without itself."""
    from unmix.evaluation.features import encode_batch

    views, machine = finished.encoder.views, finished.machine
    prepared = views.plain(pixels.to(machine.device))
    features = encode_batch(encode, prepared, machine.device, machine.autocast).cpu()  # type: ignore[arg-type]
    places = {Path(name).resolve(): i for i, name in enumerate(bank.names)} if paths else {}
    itself = torch.tensor([places.get(Path(path).resolve(), -1) for path in paths])
    found = nearest_neighbors(bank.features, features, k, exclude=itself, device=machine.device)
    queries = []
    for row, path in enumerate(paths):
        picture = given_uint8([path], _SIDE, limits=limits)[0].numpy()
        near = zip(found.index[row].tolist(), found.similarity[row].tolist(), strict=True)
        first = Hit(path, "", 1.0, picture)
        queries.append(Query(first, [bank.hit(j, similarity) for j, similarity in near]))
    return queries


def _pairs(bank: Bank, found: Neighbors, threshold: float) -> list[tuple[float, int, int]]:
    """Pairs of near-duplicates, the most similar first."""
    # The similarity of an image with itself may round to 1 - 1e-7.
    rows, columns = (found.similarity >= threshold - 1e-6).nonzero(as_tuple=True)
    others, values = found.index[rows, columns], found.similarity[rows, columns]
    pairs: dict[tuple[int, int], float] = {}
    for i, j, similarity in zip(rows.tolist(), others.tolist(), values.tolist(), strict=True):
        pairs[min(i, j), max(i, j)] = similarity
    return sorted(((s, i, j) for (i, j), s in pairs.items()), key=lambda pair: (-pair[0], pair[1:]))


def _write(
    folder: Path,
    bank: Bank,
    queries: Sequence[Query],
    pairs: Sequence[tuple[float, int, int]],
    threshold: float,
) -> None:
    """Write the files of the result."""
    near = [["query", "rank", "similarity", "path", "class"]]
    for query in queries:
        near += [
            [query.image.name, str(rank), f"{hit.similarity:.6f}", hit.name, hit.label]
            for rank, hit in enumerate(query.hits, start=1)
        ]
    found = [["similarity", "path_a", "path_b", "class_a", "class_b", "split_a", "split_b"]]
    found += [
        [
            f"{s:.6f}", bank.names[i], bank.names[j], bank.classes[i], bank.classes[j],
            bank.split(i), bank.split(j),
        ]
        for s, i, j in pairs
    ]  # fmt: skip
    shown_pairs = [(bank.hit(i, s), bank.hit(j, s)) for s, i, j in pairs[:_PAIRS_SHOWN]]
    data = shown(bank.chunks.plan["data"])
    page = neighbor_page(queries, shown_pairs, len(pairs), threshold, data)
    atomic_write(folder / "neighbors.png", _sheet(queries))
    atomic_write(folder / "neighbors.csv", _csv(near))
    atomic_write(folder / "duplicates.csv", _csv(found))
    atomic_write(folder / "index.html", json_bytes(page))


def _sheet(queries: Sequence[Query]) -> bytes:
    """The contact sheet as a PNG."""
    rows = []
    for query in queries:
        pictures = [Picture(query.image.pixels, shorten(query.image.label or query.image.file, 16))]
        for hit in query.hits:
            agrees = hit.label == query.image.label if hit.label and query.image.label else None
            note = shorten(hit.label or hit.file, 16)
            pictures.append(Picture(hit.pixels, f"{note}\n{hit.similarity:.3f}", agrees))
        rows.append(PictureRow("", pictures))
    width = min(14.0, 0.3 + 1.1 * (1 + len(queries[0].hits)))
    solid = any(query.image.label for query in queries)
    caption = "Left: the image; right: its nearest neighbors by cosine similarity, written below."
    caption += " Solid frame: same class; dashed: another." if solid else ""
    return render(picture_grid(rows, first_apart=True, caption=caption, width=width), "png")


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _say_results(
    bank: Bank,
    pairs: Sequence[tuple[float, int, int]],
    threshold: float,
    folder: Path,
    say: Say,
) -> None:
    skipped = Skipped()
    for _, chunk in bank.chunks:
        skipped.add_pairs(chunk.broken)
    if line := skipped.line():
        say(line)
    n = len(bank.names)
    say(f"near-duplicates: {len(pairs):,} pairs among {n:,} images with cosine similarity of at "
        f"least {threshold:g}")  # fmt: skip
    if across := sum(bank.split(i) != bank.split(j) for _, i, j in pairs):
        say(
            f"note: {across:,} of these pairs are of images of different splits; where they are "
            "copies, accuracies on the test images are too high"
        )
    if len(pairs) > n:
        say(
            "note: that is more than one for each image; with this encoder such a similarity is "
            "no sign of a duplicate: give a higher --threshold"
        )
    say(f"neighbors: {shown(folder / 'neighbors.png')}   page: {shown(folder / 'index.html')}")
