"""Prediction curves of finished runs: curves of a few images, softness over the whole split."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from unmix.commands.finished import FinishedRun, Say, say_skipped
from unmix.data import ImageSet, read_uint8
from unmix.data.fingerprint import Fingerprint
from unmix.display import counted
from unmix.errors import UserError
from unmix.evaluation import LabeledFeatures, softness_summary
from unmix.figures import prediction_curves
from unmix.figures.looks import Look
from unmix.files import atomic_write
from unmix.names import json_bytes, shown
from unmix.results import RunResults
from unmix.training.console import say as print_line
from unmix.training.run.data_record import check_there
from unmix.training.run.parts import load_split

__all__ = ["Predictions", "check_positive", "predictions", "split_word", "spread_over_classes"]

_IMAGES = 6


@dataclass(frozen=True)
class Predictions:
    """Prediction curves and softness of some runs on one split.

    Attributes:
        figure: The curves of a few images, with the measures of all.
        inline: The same in the colors of a page.
        softness: For each run's label, measure to (mean, standard deviation) over the split.
        data: Name of the data set.
        split: `test`, or `train` where there are no test images.
        images: How many images the measures are over.
        left_out: Labels of runs that have no such curves, as `check_positive` says.
    """

    figure: Figure
    inline: Figure
    softness: Mapping[str, Mapping[str, tuple[float, float]]]
    data: str
    split: str
    images: int
    left_out: Sequence[str] = ()

    @property
    def content(self) -> dict[str, Any]:
        """The measures as plain numbers; None if they are not finite."""
        return {
            "data": self.data,
            "split": self.split,
            "images": self.images,
            "runs": {
                label: {
                    name: {"mean": _finite(mean), "std": _finite(std)}
                    for name, (mean, std) in measures.items()
                }
                for label, measures in self.softness.items()
            },
        }

    def write(self, path: Path) -> None:
        """Write the measures as JSON.

        Raises:
            UserError: if the file cannot be written.
        """
        text = json.dumps(self.content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        atomic_write(path, json_bytes(text))


def predictions(
    runs: Mapping[str, tuple[Path, RunResults]],
    *,
    device: str = "auto",
    data_dir: str | None = None,
    looks: Mapping[str, Look] | None = None,
    say: Say = print_line,
) -> Predictions:
    """Encode the test images with each run's encoder, and draw and measure the features.

    Images without classes have no test split; their training images are used.

    Args:
        runs: For each label, run folder and results; all on the same data.
        device: auto, cpu, cuda or mps.
        data_dir: Where the data set lies; by default where the first run's was.
        looks: How each label is drawn; by default chosen for these runs.
        say: Prints a line.

    Raises:
        UserError: if a run has no encoder, the data cannot be read, or the features of all runs
            are negative.
    """
    finished = {label: FinishedRun.open(path, device) for label, (path, _) in runs.items()}
    images = _split(finished, data_dir)
    say(
        f"encoding {len(images):,} {split_word(images.split)} images of {shown(images.name)} "
        f"with {counted(len(runs), 'encoder')}"
    )
    measured: dict[str, LabeledFeatures] = {}
    negative: dict[str, UserError] = {}
    for label, run in finished.items():
        try:
            found = run.features(run.encoder.features, images)
        except UserError as error:
            raise UserError(f"{run.folder.path}: {error}") from None
        try:
            check_positive(run.folder.path, found.features)
            measured[label] = found
        except UserError as error:
            negative[label] = error
    say_skipped(say, images)
    if not measured:
        raise next(iter(negative.values()))
    runs = {label: runs[label] for label in measured}
    first = next(iter(measured.values()))
    few = spread_over_classes(first.labels, len(first.index), _IMAGES)
    side = max(run.encoder.views.size for run in finished.values())
    pictures, _ = read_uint8(images, first.index[few], side)
    softness = {label: softness_summary(found.features) for label, found in measured.items()}
    figure, inline = (
        prediction_curves(
            pictures.cpu(),
            {label: found.features[few] for label, found in measured.items()},
            softness,
            methods={label: results.method for label, (_, results) in runs.items()},
            baselines=[label for label, (_, results) in runs.items() if results.baseline],
            split=split_word(images.split),
            looks=looks,
            theme=theme,
        )
        for theme in ("light", "inline")
    )
    return Predictions(
        figure, inline, softness, shown(images.name), images.split, len(first.index),
        tuple(negative),
    )  # fmt: skip


def split_word(split: str) -> str:
    """What captions call the images of a split: test or training."""
    return "test" if split == "test" else "training"


def check_positive(run: Path, features: Tensor) -> None:
    """Check that features can be drawn as prediction curves.

    Args:
        run: Of which they are, for the message.
        features: (N, D).

    Raises:
        UserError: if some are negative or not finite.
    """
    if not bool(features.isfinite().all()):
        raise UserError(f"{run}: some features are not finite.")
    if float(features.min()) < 0:
        raise UserError(
            f"{run}: its features can be negative, as those of vision transformers, and prediction "
            "curves are of networks that end in a ReLU, such as ResNets."
        )


def spread_over_classes(labels: Tensor | None, n: int, count: int) -> Tensor:
    """Select images evenly from all classes; without labels, evenly from all.

    Args:
        labels: int64 (N,), or None.
        n: N.
        count: How many to choose; at most N.

    Returns:
        Which images, int64, sorted by class.
    """
    order = torch.arange(n) if labels is None else labels.argsort(stable=True)
    count = min(count, n)
    return order[((torch.arange(count) + 0.5) * n / count).long()]


def _split(runs: Mapping[str, FinishedRun], data_dir: str | None) -> ImageSet:
    """The images of all runs, read from the place of the first run's."""
    first = next(iter(runs.values())).settings.run
    if data_dir is None:
        check_there(first.data)
    own = replace(first, data_dir=data_dir or first.data_dir)
    seen: dict[str, Fingerprint] = {}
    train = load_split(own, "train", seen)
    images = train if train.labels is None else load_split(own, "test", seen)
    for run in runs.values():
        try:
            run.check_own({images.split: seen[images.split]})
        except UserError as error:
            raise UserError(f"{run.folder.path}: {error}") from None
    return images


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
