"""Figures of what runs recorded: accuracy, loss and kNN curves; no encoder is run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unmix.commands.conditions import conditions_drawn, grouped
from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import checked_folders
from unmix.commands.reading import read_runs, short_names
from unmix.commands.unlike import on_machines, unlike
from unmix.display import measure_title
from unmix.errors import UserError, check_choice
from unmix.figures.accuracy import accuracy_against_epochs, accuracy_against_time
from unmix.figures.progress import curves
from unmix.figures.series import LOSSES, Condition, Series, joined_over_epochs, notes_on_lines
from unmix.results import RunResults, protocols_of
from unmix.studies.grouping import GroupedRuns

__all__ = ["accuracy", "knn", "loss"]


def accuracy(request: Request) -> Drawn:
    """Top-1 accuracy against epochs or time."""
    against = check_choice("against", request.option("against", "epochs"), ("epochs", "time"))
    conditions, results, groups = _conditions(request)
    known = protocols_of(results)
    if not known:
        raise UserError(
            f"{request.runs[0]}: no run has an accuracy; measure one by unmix knn or unmix probe, "
            "with --data if the images have no classes."
        )
    protocol = request.option("protocol", "linear" if "linear" in known else known[0])
    check_choice("protocol", protocol, known)
    draw = accuracy_against_epochs if against == "epochs" else accuracy_against_time
    figure = draw(conditions, protocol, **request.how)
    series = [condition.accuracies(protocol) for condition in conditions]
    notes = on_machines(groups) if against == "time" else []
    if against == "time" and not any(each.points("time") for each in series):
        why = "runs of one condition on different hardware" if notes else "no training times"
        raise UserError(f"{request.runs[0]}: has {why}; plot against epochs.")
    for note in (*notes, *unlike(groups, [protocol])):
        request.say(note)
    lines = [each for _, each in joined_over_epochs(conditions, protocol, against)]
    caption = " ".join([f"{measure_title(protocol)} top-1 accuracy.", *notes_on_lines(lines)])
    if gone := [each.name for each in lines if notes and len(each.machines) > 1]:
        caption += f" Without a line, as runs were on different hardware: {'; '.join(gone)}."
    return Drawn(figure, *_table(series, "top1_percent"), caption)


def loss(request: Request) -> Drawn:
    """Training loss against epochs."""
    return _recorded(request, "loss", "knn", False)


def knn(request: Request) -> Drawn:
    """kNN accuracy against epochs."""
    return _recorded(request, "knn", "knn", True)


def _recorded(request: Request, column: str, accuracy: str, percent: bool) -> Drawn:
    conditions, _, groups = _conditions(request)
    series = [condition.recorded(column) for condition in conditions]
    if not any(each.values for each in series):
        what = "kNN accuracy; measure it by unmix knn" if percent else "loss in its metrics.csv"
        raise UserError(f"{request.runs[0]}: no run has a {what}.")
    only = [
        replace(
            condition,
            metrics={
                seed: {name: v for name, v in own.items() if name.removesuffix("_epoch") == column}
                for seed, own in condition.metrics.items()
            },
            # Other accuracies would be a second panel.
            runs={
                seed: run if percent else replace(run, evaluations=())
                for seed, run in condition.runs.items()
            },
        )
        for condition in conditions
    ]
    figure = curves(only, loss="loss", accuracy=accuracy, **request.how)
    for note in unlike(groups, ["knn"]) if percent else ():
        request.say(note)
    caption = " ".join(["kNN top-1 accuracy." if percent else LOSSES, *notes_on_lines(series)])
    return Drawn(figure, *_table(series, "top1_percent" if percent else "loss"), caption)


def _conditions(request: Request) -> tuple[list[Condition], list[RunResults], GroupedRuns]:
    """The conditions of the runs, named as in the report, the runs' results, and their groups."""
    folders = checked_folders(request.runs)
    names = short_names([str(path.resolve()) for path in folders])
    known = {names[str(path.resolve())]: path for path in folders}
    results = read_runs(known)
    for run in results:
        if not run.ended:
            folder = known[run.name]
            raise UserError(
                f"{folder}: has not ended; to finish it: unmix pretrain --run "
                f"{shlex.quote(str(folder))}"
            )
        if run.data != results[0].data:
            raise UserError(
                f"{known[run.name]}: is on other data ({run.data}) than {folders[0]} "
                f"({results[0].data}), and their curves do not compare; give runs on the same data."
            )
    notes: list[str] = []
    groups = grouped(known, results)
    conditions = conditions_drawn(groups, notes)
    for note in (*groups.repeated, *notes):
        request.say(note)
    return conditions, results, groups


def _table(series: Sequence[Series], value: str) -> tuple[list[str], list[list[Any]]]:
    rows: list[list[Any]] = []
    for each in series:
        for seed, values in each.values.items():
            for epoch, y in sorted(values.items()):
                seconds = each.seconds.get(seed, {}).get(epoch)
                rows.append([each.name, seed, epoch, "" if seconds is None else seconds, y])
    return ["condition", "seed", "epoch", "seconds", value], rows
