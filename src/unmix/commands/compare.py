"""Runs side by side: the answer, tables, figures, softness and the HTML report."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unmix.commands.compare_report import comparison_report
from unmix.commands.compare_text import Told, not_evaluated, notes_on
from unmix.commands.comparison import Comparison
from unmix.commands.conditions import conditions_drawn, costs, grouped
from unmix.commands.finished import Say
from unmix.commands.predictions import Predictions, predictions, split_word
from unmix.commands.reading import given_folders, read_runs, short_names
from unmix.errors import UserError, check_given, check_number
from unmix.figures import (
    accuracy_against_epochs,
    accuracy_against_time,
    curves,
    save,
    write_page,
)
from unmix.figures.looks import Look
from unmix.figures.report_content import Picture
from unmix.figures.saving import inline
from unmix.figures.series import Condition, looks_for
from unmix.files import as_path, atomic_write
from unmix.names import json_bytes, shown
from unmix.results import RunResults, finite, protocols_of
from unmix.studies.grouping import GroupedRuns
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.run.extending import notes_on_extensions

__all__ = ["COMPARISON", "compare", "listed"]

COMPARISON = "compare.json"

_MOST = 6


def compare(
    *runs: Path | str | Sequence[Path | str],
    out: Path | str | None = None,
    device: str = "auto",
    data_dir: str | None = None,
    epoch: int | None = None,
    reference: str | None = None,
    settings: bool = False,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    say: Say = print_line,
) -> Comparison:
    """Say which condition is better, by how much, how sure and at what cost, and why.

    Runs that differ in the seed alone are one condition, named by what differs from the others;
    conditions are compared by paired seeds, as in a study, single runs on the same test images. A
    run that is still trained is shown with its epoch, and counts once it has ended.

    Printed are the answer, the settings that differ, the conditions with their cost, and the runs.
    Written are `accuracy`, `time`, `curves` and `predictions` as PNG and SVG, `softness.json`,
    `compare.json` with all numbers, and `report.html`. What cannot be made of these runs is left
    out, with a line that says why.

    Args:
        runs: Run folders, one or more, one by one or as one list.
        out: Folder for the files; by default `compare` beside the runs.
        device: Where features for the prediction curves are computed.
        data_dir: Where the images for them lie; by default where the first run's were.
        epoch: Compare after so many epochs instead of at the end, also runs that are still trained.
        reference: Compare all conditions with this one, named as in the table.
        settings: Print the settings that all runs share, too.
        baselines: What needs no training, to stand beside: `{"raw pixels": {"knn": 39.5}}`.
        say: Prints a line.

    Returns:
        The folder, the results, their tables and the figures; a notebook shows them.

    Raises:
        UserError: if a folder holds no run, results are damaged or of another version, no run was
            evaluated at the epoch, or a file cannot be written.
    """
    quiet_libraries()
    if epoch is not None:
        check_number("epoch", epoch, at_least=1)
    check_given("out", out)
    folders, notes = given_folders(listed(runs))
    names = short_names([str(path.resolve()) for path in folders])
    known = {names[str(path.resolve())]: path for path in folders}
    results = read_runs(known)
    folder = _writable(_beside(folders) if out is None else as_path(out), given=out is not None)
    groups = grouped(known, results, epoch=epoch, reference=reference, cost_of=costs(notes))
    if epoch is not None and not groups.measured:
        raise UserError(not_evaluated(results, epoch), parameter="epoch")
    found = Told(groups, results, baselines, epoch)
    for text in found.texts(settings):
        say(f"{text}\n")
    notes += notes_on(known, groups, results)
    if epoch is not None:
        notes.append(
            f"Compared after epoch {epoch}, not at the end; epochs, cost and time are of the whole "
            "runs."
        )
    notes += notes_on_extensions({run.name: known[run.name] for run in results})
    drawn_conditions = conditions_drawn(groups, notes)
    figures = _figures(drawn_conditions, notes, baselines or {})
    looks = looks_for(drawn_conditions)
    curves_ = _predictions(groups, looks, notes, device, data_dir, say)
    pictures = []
    if curves_ is not None:
        title = "Prediction curves"
        over = f"{curves_.images:,} {split_word(curves_.split)} images of {curves_.data}"
        figures[title] = ("predictions", curves_.figure)
        pictures.append(Picture(title, inline(curves_.inline, title), f"Measures are over {over}."))
        curves_.write(folder / "softness.json")
    for stem, figure in figures.values():
        save(figure, folder / stem)
    report = comparison_report(
        groups, drawn_conditions, [found.conditions, found.runs], pictures, baselines or {}, notes,
        _command(folders, out=out, device=device, data_dir=data_dir, epoch=epoch,
                 reference=reference),
        epoch=epoch,
    )  # fmt: skip
    write_page(folder / "report.html", report)
    for note in notes:
        say(note)
    content = {
        "schema": 1,
        "epoch": epoch,
        "runs": [_plain(run, known[run.name]) for run in results],
        "baselines": dict(baselines or {}),
        **groups.as_dict(),
        "softness": {} if curves_ is None else curves_.content,
        "notes": notes,
        "report": str((folder / "report.html").absolute()),
    }
    text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(folder / COMPARISON, json_bytes(text))
    say(f"report: {shown(folder / 'report.html')}")
    paths = {title: folder / f"{stem}.png" for title, (stem, _) in figures.items()}
    return Comparison(
        folder, tuple(results), found.runs, paths, tuple(notes), tuple(found.verdicts),
        found.conditions, found.settings, groups.findings.answer(),
    )  # fmt: skip


def listed(runs: Iterable[Path | str | Sequence[Path | str]]) -> list[Path | str]:
    """Runs that were given one by one, or as one list."""
    found: list[Path | str] = []
    for run in runs:
        found += [run] if isinstance(run, str | Path) else run
    return found


def _plain(run: RunResults, folder: Path) -> dict[str, Any]:
    """A run's results as `compare.json` has them."""
    names = ("name", "method", "mixture", "data", "backbone", "width", "size", "epochs", "seed")
    return {
        **{name: getattr(run, name) for name in names},
        "folder": str(folder.absolute()),
        "complete_epochs": run.epochs if run.complete_epochs is None else run.complete_epochs,
        "running": run.running,
        "evaluations": run.flat,
        "training": dict(run.training),
    }


def _beside(folders: Sequence[Path]) -> Path:
    """The folder `compare` in the lowest folder that holds all runs."""
    return Path(os.path.commonpath([path.absolute().parent for path in folders])) / "compare"


def _command(folders: Sequence[Path], **given: object) -> str:
    """The command of this comparison, with the settings that are not the usual ones."""
    usual = {name: value.default for name, value in signature(compare).parameters.items()}
    words = [
        word
        for name, value in given.items()
        if value != usual[name]
        for word in (f"--{name}", str(value))
    ]
    return shlex.join(["unmix", "compare", *map(str, folders), *words])


def _writable(folder: Path, given: bool) -> Path:
    """The folder of the report, created before anything is computed for it.

    Raises:
        UserError: if it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file; give a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "Permission denied"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        advice = "" if given else "; give --out with a folder for the report"
        raise UserError(f"--out: {folder} cannot be written ({reason}){advice}.")
    return folder


def _figures(
    conditions: Sequence[Condition],
    notes: list[str],
    baselines: Mapping[str, Mapping[str, float]],
) -> dict[str, tuple[str, Figure]]:
    """Draw what the runs' results and metrics give: by title, the name of its files and it."""
    figures = {}
    looks = looks_for(conditions)  # the same in every figure
    results = [run for condition in conditions for run in condition.runs.values()]
    preferred = ("linear", "knn", *protocols_of(results))
    protocol = next((name for name in preferred if any(r.of(name) for r in results)), None)
    if protocol is None:
        notes.append("No run has an accuracy, so there is no accuracy against epochs.")
    else:
        references = {name: row[protocol] for name, row in baselines.items() if protocol in row}
        for title, stem, draw in (
            ("Accuracy against epochs", "accuracy", accuracy_against_epochs),
            ("Accuracy against time", "time", accuracy_against_time),
        ):
            figures[title] = (stem, draw(conditions, protocol, references, looks=looks))
    recorded = [condition for condition in conditions if condition.metrics]
    if recorded:
        figures["Course of training"] = ("curves", curves(recorded, looks=looks))
    return figures


def _predictions(
    groups: GroupedRuns,
    looks: Mapping[str, Look],
    notes: list[str],
    device: str,
    data_dir: str | None,
    say: Say,
) -> Predictions | None:
    """Prediction curves of a run of each condition, or of the runs of the only one."""
    every = [run for group in groups.groups.values() for run in group.all]
    data = {run.results.data for run in every}
    if len(data) > 1:
        notes.append(
            f"The runs are on different data ({', '.join(sorted(data))}), so there are no "
            "prediction curves: they need the same images for all."
        )
        return None
    ended = {name: group.ended for name, group in groups.groups.items() if group.ended}
    if len(groups.groups) > 1:
        chosen = {name: runs[0] for name, runs in ended.items()}
        what = "conditions"
    else:
        chosen = {run.name: run for run in every if run.results.ended}
        chosen = chosen if len(chosen) > 1 else {run.label: run for run in chosen.values()}
        what = "runs"
    if not chosen:
        notes.append("No run has ended, so there are no prediction curves.")
        return None
    if len(chosen) > _MOST:
        chosen = dict(list(chosen.items())[:_MOST])
        notes.append(f"The prediction curves are of the first {_MOST} {what}: {'; '.join(chosen)}.")
    if what == "conditions" and any(len(runs) > 1 for runs in ended.values()):
        names = ", ".join(run.name for run in chosen.values())
        notes.append(f"The prediction curves are of one run of each condition: {names}.")
    pairs = {label: (run.folder, run.results) for label, run in chosen.items()}
    own = looks if what == "conditions" else None
    try:
        found = predictions(pairs, device=device, data_dir=data_dir, looks=own, say=say)
    except UserError as error:
        notes.append(f"There are no prediction curves: {error}")
        return None
    if found.left_out:
        notes.append(
            f"There are no prediction curves of {', '.join(found.left_out)}: features can be "
            "negative, as the network does not end in a ReLU."
        )
    return found
