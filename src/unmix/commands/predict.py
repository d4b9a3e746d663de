"""`unmix predict`: the classes of images by a fine-tuned encoder, in a table."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmix.checksums import weights_digest
from unmix.commands.embed import (
    check_new,
    embedding_chunks,
    make_features,
    partial_folder,
    skipped_file,
    write_skipped,
)
from unmix.commands.finished import FinishedRun, Say
from unmix.commands.images import image_sets
from unmix.data.columns import Columns
from unmix.embedding import Chunk, Chunks, Format, NamedSet, assemble
from unmix.errors import UserError, check_number
from unmix.evaluation.classifier import LoadedClassifier, read_head
from unmix.files import as_path
from unmix.hardware.threads import CoreMeter
from unmix.names import shown, stored
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line

__all__ = ["predict"]


def predict(
    run: Path | str,
    *,
    data: str,
    out: Path | str,
    top: int = 1,
    split: str = "all",
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
    """Predict the classes of images with what `finetune` trained, and write them to a CSV file.

    A row has the path of an image, its split, its class if the data has classes, and the predicted
    class with its softmax probability, which is not calibrated. Where the data's classes are among
    the classifier's, the accuracy of each split is printed. Images that cannot be read are left
    out, counted, and listed in a file whose name ends in .skipped.csv. Give the same command to
    continue one that was interrupted.

    Args:
        run: Folder of a fine-tuning, such as runs/a/finetune/NAME, or the encoder file in it.
        data: Name or folder of the images.
        out: The file: .csv.
        top: How many classes are written for each image, the most probable first.
        split: The images: all, train or test. With all, those for training come first.
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
        overwrite: Replace the file if it exists.
        say: Prints a line.

    Returns:
        The file.

    Raises:
        UserError: if the file exists or cannot be written, the run has no classifier, or the data
            cannot be read.
    """
    path = as_path(out)
    check_number("top", top, at_least=1)
    check_number("batch_size", batch_size, at_least=1)
    if path.suffix.lower() != ".csv" or path.is_dir():
        what = "is a folder" if path.is_dir() else "has another extension"
        raise UserError(f"{path} {what}; give a file that ends in .csv.", parameter="out")
    for file in (path, skipped_file(path)):
        check_new(file, overwrite, unfinished=partial_folder(path))
    quiet_libraries()
    cores = CoreMeter()
    finished = FinishedRun.open(run, device)
    classifier = read_head(finished.folder.path, finished.encoder)
    if top > (count := len(classifier.classes)):
        raise UserError(f"{top}, and there are {count} classes; give less.", parameter="top")
    columns = Columns(image_column, label_column, split_column)
    sets = image_sets(finished, split, data, data_dir, train_folder, test_folder, columns, say)
    chunks = embedding_chunks(
        path, finished, sets, None, "logits", count, "float32", batch_size,
        head=weights_digest(classifier.head.state_dict()),
    )  # fmt: skip
    with finished.computing(threads, cores, say), chunks.opened(overwrite):
        # A table that was not moved to its place may have other columns.
        shutil.rmtree(chunks.ready, ignore_errors=True)
        make_features(chunks, finished, classifier, say, batch_size, overwrite)
        assemble(chunks, path, {}, _Table(classifier.classes, top))
        write_skipped(chunks, path, say)
        _say_results(chunks, classifier, path, say)
        chunks.finish()
    return path


class _Table(Format):
    """A CSV file with the classes of images.

    Args:
        classes: Names of the classes, in the order of the logits.
        top: How many are written for each image.
    """

    def __init__(self, classes: Sequence[str], top: int) -> None:
        self.classes, self.top = [stored(name) for name in classes], top

    def write(self, folder: Path, out: Path, chunks: Chunks, about: Mapping[str, Any]) -> None:
        """Write the file."""
        labeled = _labeled(chunks)
        columns = ["path", "split", *(["class"] if labeled else [])]
        for rank in range(1, self.top + 1):
            end = "" if rank == 1 else f"_{rank}"
            columns += [f"predicted{end}", f"probability{end}"]
        with open(folder / out.name, "w", newline="", encoding="utf-8") as text:
            rows = csv.writer(text)
            rows.writerow(columns)
            for named, chunk in chunks:
                rows.writerows(self._rows(named, chunk, labeled))

    def _rows(self, named: NamedSet, chunk: Chunk, labeled: bool) -> Iterator[list[str]]:
        own = [[name] for name in _own_classes(named, chunk)] if labeled else None
        logits = torch.from_numpy(chunk.features)
        # Of classes that are equally likely the first one is the prediction, as in the accuracy.
        order = logits.sort(dim=1, descending=True, stable=True).indices[:, : self.top]
        best, values = order.tolist(), logits.softmax(dim=1).gather(1, order).tolist()
        for row, path in enumerate(named.names(chunk.index)):
            facts = [path, named.images.split, *(own[row] if own else [])]
            for index, value in zip(best[row], values[row], strict=True):
                facts += [self.classes[index], f"{value:.6f}"]
            yield facts


def _labeled(chunks: Chunks) -> bool:
    """Whether some images have a class."""
    return any(named.classes is not None for named in chunks.sets)


def _own_classes(named: NamedSet, chunk: Chunk) -> list[str]:
    """The names of the classes that the data gives to images; empty without classes."""
    labels, classes = named.labels(chunk.index), named.classes
    if labels is None or classes is None:
        return [""] * len(chunk.index)
    return [classes[label] for label in labels.tolist()]


def _say_results(chunks: Chunks, classifier: LoadedClassifier, path: Path, say: Say) -> None:
    """Say how many images were classified, and of those with a known class how many rightly."""
    names = [stored(name) for name in classifier.classes]
    number = {name: index for index, name in enumerate(names)}
    total, known, right = Counter[str](), Counter[str](), Counter[str]()
    for named, chunk in chunks:
        split = named.images.split
        own = np.array([number.get(name, -1) for name in _own_classes(named, chunk)], dtype=int)
        total[split] += len(own)
        known[split] += int((own >= 0).sum())
        right[split] += int((chunk.features.argmax(axis=1) == own).sum()) if len(own) else 0
    for split in sorted(total):  # the test images first
        if known[split]:
            whose = "" if known[split] == total[split] else " whose class it knows"
            fitted = ", on which it may have been trained" if split != "test" else ""
            say(
                f"accuracy: {100 * right[split] / known[split]:.1f}% of {known[split]:,} {split} "
                f"images{whose}{fitted}"
            )
    if _labeled(chunks) and not any(known.values()):
        say(
            f"note: no class of the data is one of the classifier's {len(names):,}, such as "
            f"{shown(names[0])!r}, so there is no accuracy"
        )
    count = sum(total.values())
    say(f"classes of {count:,} images of {shown(chunks.sets[0].images.name)}: {shown(path)}")
