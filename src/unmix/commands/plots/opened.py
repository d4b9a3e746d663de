"""Runs opened for a figure, under the names that tell them apart, and their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unmix.commands.finished import FinishedRun, Say, say_skipped
from unmix.commands.plots.drawn import Request
from unmix.commands.predictions import split_word, spread_over_classes
from unmix.commands.reading import short_names
from unmix.data import ImageSet
from unmix.data.fingerprint import Fingerprint, fingerprint
from unmix.display import run_label
from unmix.errors import UserError, check_given, check_number
from unmix.hardware.threads import CoreMeter
from unmix.names import shown
from unmix.randomness import generator_for
from unmix.studies.watching import is_running
from unmix.training.run.data_record import check_there
from unmix.training.run.folder import RunFolder
from unmix.training.run.parts import load_split

__all__ = [
    "Images",
    "OpenRun",
    "checked_folders",
    "chosen_images",
    "images_of",
    "labels_of",
    "open_runs",
]


@dataclass(frozen=True)
class OpenRun:
    """A finished run.

    Attributes:
        label: What figures call it.
        run: The run.
    """

    label: str
    run: FinishedRun

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.run.folder.path

    @contextmanager
    def computing(self, request: Request, cores: CoreMeter) -> Iterator[None]:
        """Set the number of threads within the block, and name the run in errors."""
        try:
            with self.run.computing(request.option("threads"), cores, request.say):
                yield
        except UserError as error:
            text = str(error)
            if text.startswith(("--", str(self.path))) or error.parameter is not None:
                raise
            raise UserError(f"{self.path}: {text}") from None


@dataclass(frozen=True)
class Images:
    """The images of a run, for a figure.

    Attributes:
        train: The training images.
        test: The images to show: of the test split, or the training images without classes.
        classes: Names of the classes; None without.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...] | None

    @property
    def words(self) -> str:
        """Such as "test images of photos"."""
        return f"{split_word(self.test.split)} images of {shown(self.test.name)}"


def checked_folders(runs: Sequence[Path], *, alone: bool = False) -> list[Path]:
    """Check that runs exist, are given once, and are not being trained.

    Args:
        runs: Run folders.
        alone: Whether an encoder file without its run will do.

    Raises:
        UserError: if not.
    """
    found = []
    for path in runs:
        check_given("runs", str(path), flag="RUN")
        folder = path
        if path.is_file():
            if (path.parent / "config.yaml").is_file() and path.name == "encoder.safetensors":
                folder = path.parent
            elif not alone:
                raise UserError(
                    f"{path}: is an encoder file without its run, whose settings and images the "
                    "figure needs; give the run folder."
                )
        elif not path.is_dir():
            raise UserError(f"{path}: there is no such run folder.")
        if folder.is_dir() and is_running(folder):
            raise UserError(
                f"{folder}: is still training; wait for its end, or follow it by unmix watch "
                f"{folder}."
            )
        found.append(folder)
    for path, count in Counter(folder.resolve() for folder in found).items():
        if count > 1:
            raise UserError(f"{path}: is given {count} times; give each run once.")
    return found


def labels_of(folders: Sequence[Path]) -> list[str]:
    """What runs are called: method and mixture, and the seed or the folder if these are alike."""
    names, seeds = [], []
    for folder in folders:
        settings = RunFolder(folder).settings()
        names.append(run_label(settings.run.method, settings.mixture.name))
        seeds.append(settings.run.seed)
    counts = Counter(names)
    with_seed = [
        f"{name}, seed {seed}" if counts[name] > 1 else name
        for name, seed in zip(names, seeds, strict=True)
    ]
    again = Counter(with_seed)
    # The same folder name in two places would be one label, and one of the runs lost.
    paths = [str(folder.resolve()) for folder in folders]
    short = short_names(paths)
    return [
        f"{name} ({short[path]})" if again[name] > 1 else name
        for name, path in zip(with_seed, paths, strict=True)
    ]


def open_runs(request: Request) -> list[OpenRun]:
    """Open the runs of a request, which must have ended.

    Raises:
        UserError: if one is missing, still training, or has no encoder.
    """
    folders = checked_folders(request.runs)
    device = request.option("device", "auto")
    opened = [FinishedRun.open(folder, device) for folder in folders]
    return [OpenRun(label, run) for label, run in zip(labels_of(folders), opened, strict=True)]


def images_of(
    runs: Sequence[OpenRun], request: Request, what: str, *, need_classes: bool = False
) -> list[Images]:
    """The images of each run, of which those to show are the same for all.

    Args:
        runs: The runs.
        request: May have other `data`, or its `data_dir`.
        what: What needs them, for messages.
        need_classes: Whether images without classes are refused.

    Raises:
        UserError: if they cannot be read, have no classes, or differ between runs.
    """
    data, data_dir = request.option("data"), request.option("data_dir")
    found = [
        _images(opened.run, data, data_dir, what, need_classes, request.say) for opened in runs
    ]
    first = fingerprint(found[0].test)
    for opened, images in zip(runs[1:], found[1:], strict=True):
        if (clause := fingerprint(images.test).difference(first)) is not None:
            raise UserError(
                f"{opened.path}: is of other images than {runs[0].path} ({clause}); give runs on "
                "the same data."
            )
    say_skipped(request.say, *(images.test for images in found))
    return found


def chosen_images(test: ImageSet, count: int, seed: int | None) -> Tensor:
    """Evenly from all classes; with a seed, at random."""
    n = len(test)
    if seed is None:
        return spread_over_classes(test.labels, n, count)
    check_number("seed", seed, at_least=0)
    return torch.randperm(n, generator=generator_for(seed, "plot"))[:count].sort().values


def _images(
    run: FinishedRun,
    data: str | None,
    data_dir: str | None,
    what: str,
    need_classes: bool,
    say: Say,
) -> Images:
    if data is None and not need_classes:
        own = run.settings.run
        check_there(own.data)
        seen: dict[str, Fingerprint] = {}
        train = load_split(replace(own, data_dir=data_dir or own.data_dir), "train", seen)
        if train.labels is None:
            run.check_own(seen)
            return Images(train, train, None)
    splits = run.splits(what, data, data_dir)
    if splits.note is not None:
        say(splits.note)
    return Images(splits.train, splits.test, splits.classes)
