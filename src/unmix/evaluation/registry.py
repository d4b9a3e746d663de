"""The evaluation protocols by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unmix.errors import check_choice
from unmix.evaluation.features import LabeledFeatures
from unmix.evaluation.knn import EuclideanKNN, WeightedKNN
from unmix.evaluation.linear import LinearProbe
from unmix.evaluation.metrics import accuracy
from unmix.evaluation.protocol import Measurement, Protocol, Task
from unmix.evaluation.published import (
    barlow_settings,
    cmc_settings,
    dino_settings,
    moco_settings,
    swav_settings,
    vicreg_settings,
    whitening_settings,
)
from unmix.evaluation.sgd import SGDProbe

__all__ = ["PROBES", "PROTOCOLS", "evaluate", "evaluate_features"]

PROTOCOLS: dict[str, Protocol] = {
    "knn": WeightedKNN(),
    "linear": LinearProbe(),
    "cmc": SGDProbe(cmc_settings),
    "moco": SGDProbe(moco_settings),
    "whitening": SGDProbe(whitening_settings),
    "swav": SGDProbe(swav_settings),
    "barlow": SGDProbe(barlow_settings),
    "vicreg": SGDProbe(vicreg_settings),
    "dino": SGDProbe(dino_settings),
    "knn-euclidean": EuclideanKNN(),
}
"""Protocols by name, as in `results.json`."""

PROBES = tuple(name for name in PROTOCOLS if not name.startswith("knn"))
"""The protocols of `unmix probe`; those of kNN have a command of their own, `unmix knn`."""


def evaluate(name: str, task: Task) -> Measurement:
    """Evaluate by a protocol.

    Args:
        name: One of `PROTOCOLS`.
        task: Features and images to evaluate on.

    Raises:
        UserError: if the protocol is unknown, features and labels do not match, or a number is out
            of range.
    """
    protocol = PROTOCOLS[check_choice("protocol", name, PROTOCOLS)]
    prediction = protocol.predict(task)
    assert task.test.labels is not None
    ranking, labels = prediction.ranking.cpu(), task.test.labels.cpu()
    if protocol.needs_images and task.images is not None:
        train_images = task.images.count
    else:
        train_images = len(task.train.features)
    row = {
        "protocol": name, **accuracy(ranking, labels), **prediction.details,
        "train_images": train_images, "test_images": len(labels),
    }  # fmt: skip
    return Measurement(row, ranking[:, 0] == labels, task.test.index)


def evaluate_features(
    train: LabeledFeatures,
    test: LabeledFeatures,
    classes: int,
    protocols: Sequence[str] = ("knn", "linear"),
    *,
    k: int = 200,
    temperature: float = 0.1,
    generator: torch.Generator,
    device: torch.device | str | None = None,
) -> list[Measurement]:
    """Evaluate by protocols that need features alone.

    Args:
        train: Features and labels of the training images.
        test: Features and labels to predict.
        classes: Number of classes.
        protocols: Of `PROTOCOLS`, those that need no images.
        k: Number of neighbors that vote in the kNN.
        temperature: T of their weights.
        generator: For the linear probe's split of the training features.
        device: Where to compute; by default the CPU.

    Returns:
        A measurement by each protocol.

    Raises:
        UserError: if a protocol is unknown or needs images, or features and labels do not match.
    """
    possible = [name for name, protocol in PROTOCOLS.items() if not protocol.needs_images]
    task = Task(
        lambda: train, lambda: test, classes,
        generator=generator, device=device, k=k, temperature=temperature,
    )  # fmt: skip
    return [evaluate(check_choice("protocol", name, possible), task) for name in protocols]
