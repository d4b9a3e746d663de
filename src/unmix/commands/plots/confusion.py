"""Confusion matrices of the kNN or the linear probe of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from unmix.commands.finished import FinishedRun
from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import images_of, open_runs
from unmix.display import measure_title
from unmix.errors import check_choice
from unmix.evaluation import PROTOCOLS, LabeledFeatures, Task
from unmix.figures.confusion import confusion_matrix
from unmix.hardware.threads import CoreMeter
from unmix.names import in_words
from unmix.randomness import generator_for
from unmix.training.console import quiet_libraries

__all__ = ["confusion"]

_PROTOCOLS = ("linear", "knn")


def confusion(request: Request) -> Drawn:
    """For each true class, how often each class is predicted."""
    protocol = check_choice("protocol", request.option("protocol", "linear"), _PROTOCOLS)
    kind = check_choice(
        "features", request.option("features", "backbone"), ("backbone", "projector")
    )
    quiet_libraries()
    cores = CoreMeter()
    runs = open_runs(request)
    images = images_of(runs, request, "a confusion matrix", need_classes=True)
    classes = images[0].classes
    assert classes is not None
    panels, words, notes, rows = {}, {}, [], []
    for opened, own in zip(runs, images, strict=True):
        run = opened.run
        with opened.computing(request, cores):
            encode = run.subject(kind).encode
            train = run.features(encode, own.train, request.say)
            test = run.features(encode, own.test, request.say)
            task = _task(train, test, len(classes), run)
            prediction = PROTOCOLS[protocol].predict(task)
        assert test.labels is not None
        predicted = prediction.ranking[:, 0].cpu()
        pairs = test.labels * len(classes) + predicted
        counts = torch.bincount(pairs, minlength=len(classes) ** 2).view(len(classes), -1)
        top1 = 100 * float(counts.diagonal().sum()) / len(predicted)
        panels[f"{opened.label}: {top1:.1f} %"] = counts.numpy()
        words[opened.label] = _words(protocol, prediction.details)
        notes.append(f"{len(predicted):,}")
        rows += [
            [opened.label, classes[true], classes[guess], int(counts[true, guess]),
             100 * int(counts[true, guess]) / max(1, int(counts[true].sum()))]
            for true in range(len(classes)) for guess in range(len(classes))
        ]  # fmt: skip
    caption = (
        f"Predictions of the {_together(words)} on {kind} features for "
        f"{notes[0]} {images[0].words}; each row in percent of its class. Titles: top-1 accuracy."
    )
    figure = confusion_matrix(panels, classes, caption=caption, **request.how)
    columns = ["run", "true_class", "predicted_class", "images", "percent_of_class"]
    return Drawn(figure, columns, rows, caption)


def _task(train: LabeledFeatures, test: LabeledFeatures, classes: int, run: FinishedRun) -> Task:
    """As the run's own evaluation."""
    wanted = run.settings.evaluation
    return Task(
        lambda: train, lambda: test, classes,
        generator=generator_for(run.settings.run.seed, "probe"), device=run.machine.device,
        k=wanted.knn_k, temperature=wanted.knn_temperature,
    )  # fmt: skip


def _words(protocol: str, details: Mapping[str, Any]) -> str:
    if protocol == "linear":
        return "linear probe"
    return f"{measure_title('knn')} (k {details['k']}, T {details['temperature']:g})"


def _together(words: Mapping[str, str]) -> str:
    """What each panel has, once if all have the same."""
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return in_words([f"{word} of {label}" for label, word in words.items()])
