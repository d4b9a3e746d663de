"""Finished runs side by side: table, figures, softness and the HTML report."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unmix.commands.compare_report import comparison_report
from unmix.commands.comparison import Comparison
from unmix.commands.conditions import conditions_table, grouped
from unmix.commands.finished import Say
from unmix.commands.predictions import Predictions, predictions
from unmix.display import measure_name, measure_title, run_label
from unmix.errors import UserError, check_given
from unmix.figures import (
    accuracy_against_epochs,
    curves,
    read_metrics,
    results_table,
    save,
    write_page,
)
from unmix.figures.report_content import Picture
from unmix.figures.saving import inline
from unmix.files import atomic_write
from unmix.names import json_bytes, shown
from unmix.results import (
    Evaluation,
    RunResults,
    described,
    finite,
    load_results,
    protocols_of,
    settings_of,
)
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.run.data_record import DataRecord
from unmix.training.run.extending import notes_on_extensions
from unmix.training.run.folder import RunFolder

__all__ = ["COMPARISON", "compare"]

COMPARISON = "compare.json"

_MOST = 4


@dataclass(frozen=True)
class _Drawn:
    """A figure, the name of its files, and the sentences under it."""

    stem: str
    figure: Figure
    caption: str


_ACCURACY, _CURVES, _PREDICTIONS = (
    "Accuracy against epochs",
    "Course of training",
    "Prediction curves",
)


def compare(
    *runs: Path | str | Sequence[Path | str],
    out: Path | str | None = None,
    device: str = "auto",
    data_dir: str | None = None,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    say: Say = print_line,
) -> Comparison:
    """Say which runs are better, print their table, and write figures, softness and a report.

    Runs that differ in the seed alone are one condition; conditions are compared by paired seeds,
    as in a study, single runs on the same test images.

    Written are `accuracy`, `curves` and `predictions` as PNG and SVG, `softness.json`,
    `compare.json` with all numbers, and `report.html`. What cannot be made of these runs is left
    out, with a line that says why.

    Args:
        runs: Run folders, one or more, one by one or as one list.
        out: Folder for the files; by default `compare` beside the runs.
        device: Where features for the prediction curves are computed.
        data_dir: Where the images for them lie; by default where the first run's were.
        baselines: What needs no training, to stand beside: `{"raw pixels": {"knn": 39.5}}`.
        say: Prints a line.

    Returns:
        The folder, the results, their table and the figures; a notebook shows them.

    Raises:
        UserError: if a run folder has no results, or a file cannot be written.
    """
    quiet_libraries()
    folders = _folders(listed(runs))
    known = dict(zip(_names(folders), folders, strict=True))
    found = [_own(name, load_results(path)) for name, path in known.items()]
    results = _named_by_data(known, found)
    check_given("out", out)
    folder = Path(out) if out is not None else _beside(folders)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file; give a folder.")
    groups = grouped(known, results)
    verdicts = groups.words()
    conditions = conditions_table(groups) if len(groups.groups) < len(results) else None
    table = results_table(results, baselines)
    for part in ("\n".join(verdicts), "" if conditions is None else conditions.text()):
        if part:
            say(f"{part}\n")
    say(table.text())
    notes = [
        *groups.repeated, *_unlike(results), *_other_rows(results), *notes_on_extensions(known),
    ]  # fmt: skip
    figures = _figures(known, results, notes, baselines or {})
    curves_ = _predictions(known, results, notes, device, data_dir, say)
    if curves_ is not None:
        caption = f"Measures are over {curves_.images:,} {curves_.split} images of {curves_.data}."
        figures["Prediction curves"] = _Drawn("predictions", curves_.figure, caption)
        curves_.write(folder / "softness.json")
    for drawn in figures.values():
        save(drawn.figure, folder / drawn.stem)
    tables = [table] if conditions is None else [conditions, table]
    pictures = []
    if curves_ is not None:
        title, caption = "Prediction curves", figures["Prediction curves"].caption
        pictures.append(Picture(title, inline(curves_.inline, title), caption))
    report = comparison_report(groups, tables, pictures, baselines or {}, notes, _command(folders))
    write_page(folder / "report.html", report)
    for note in notes:
        say(note)
    content = {
        "schema": 1,
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
    paths = {title: folder / f"{drawn.stem}.png" for title, drawn in figures.items()}
    return Comparison(
        folder, tuple(results), table, paths, tuple(notes), tuple(verdicts), conditions
    )


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
        "evaluations": run.flat,
        "training": dict(run.training),
    }


def _folders(runs: Sequence[Path | str]) -> list[Path]:
    for run in runs:
        check_given("runs", run, flag="RUN")
    folders = [Path(run) for run in runs]
    if not folders:
        raise UserError("RUN: no run was given; give one run folder or more.")
    for path in folders:
        if not path.is_dir():
            raise UserError(f"{path}: there is no such run folder.")
    for path, count in Counter(path.resolve() for path in folders).items():
        if count > 1:
            raise UserError(f"{path}: is given {count} times; give each run once.")
    return folders


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [path.resolve().parts for path in folders]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return [shown("/".join(part[-length:])) for part in parts]


def _beside(folders: Sequence[Path]) -> Path:
    """The folder `compare` in the lowest folder that holds all runs."""
    return Path(os.path.commonpath([path.absolute().parent for path in folders])) / "compare"


def _own(name: str, run: RunResults) -> RunResults:
    """The run under a name, without its accuracies on other data sets; texts as they are shown."""
    rows = tuple(row for row in run.evaluations if "data" not in row.details)
    data, command = shown(run.data), shown(run.command)
    return replace(run, name=name, data=data, command=command, evaluations=rows)


def _named_by_data(known: Mapping[str, Path], results: Sequence[RunResults]) -> list[RunResults]:
    """Give the same data one name, and different data of the same name different names."""
    names: dict[tuple[tuple[str, str], ...], str] = {}
    named = []
    for run in results:
        folder = RunFolder(known[run.name])
        record = words = None
        with suppress(UserError):
            record, words = DataRecord.read(folder.path), folder.words()
        if record is None or words is None or not record.splits:
            named.append(run)
            continue
        key = tuple((split, found.digest) for split, found in sorted(record.splits.items()))
        if key not in names:
            tries = (run.data, shown(str(words.get("data"))))
            fresh = [name for name in tries if name not in names.values()]
            names[key] = fresh[0] if fresh else f"{tries[1]} (as it was for {run.name})"
        named.append(replace(run, data=names[key]))
    return named


def _unlike(results: Sequence[RunResults]) -> list[str]:
    """Say where the runs' accuracies by a protocol were not measured in the same way."""
    notes = []
    for protocol in protocols_of(results):
        rows = {run.name: row for run in results if (row := run.final(protocol))}
        ways = {name: settings_of(row.details) for name, row in rows.items()}
        words = {
            word: {name: way.get(word) for name, way in ways.items()}
            for word in dict.fromkeys(word for way in ways.values() for word in way)
        }
        for word, values in words.items():
            if len({str(value) for value in values.values()}) > 1:
                way = measure_title(protocol)
                each = ", ".join(f"{value} for {name}" for name, value in values.items())
                notes.append(f"{way} was measured with different settings: {word} is {each}.")
    return notes


def _other_rows(results: Sequence[RunResults]) -> list[str]:
    """Name the accuracies at a run's last epoch that the table does not show."""
    notes = []
    for run in results:
        shown_rows = [run.final(protocol) for protocol in protocols_of([run])]
        others = [
            f"{described(row)}: {row.top1:.1f}%"
            for row in run.evaluations
            if row.epoch == run.epochs and not any(row is one for one in shown_rows)
        ]
        if others:
            notes.append(f"{run.name} was measured in other ways too: {'; '.join(others)}.")
    return notes


def _figures(
    known: Mapping[str, Path],
    results: Sequence[RunResults],
    notes: list[str],
    baselines: Mapping[str, Mapping[str, float]],
) -> dict[str, _Drawn]:
    """Draw what the runs' results and metrics give, by title."""
    figures = {}
    protocol = next((name for name in ("linear", "knn") if any(r.of(name) for r in results)), None)
    if protocol is None:
        notes.append("No run has a kNN or linear accuracy, so there is no accuracy against epochs.")
    else:
        figures["Accuracy against epochs"] = _Drawn(
            "accuracy",
            accuracy_against_epochs(
                results,
                protocol,
                {name: row[protocol] for name, row in baselines.items() if protocol in row},
            ),
            f"Top-1 accuracy, {measure_name(protocol)}; baselines are dotted.",
        )
    metrics = _metrics(known, results, notes)
    if metrics:
        figures["Course of training"] = _Drawn(
            "curves",
            curves(metrics, results),
            "Losses with and without a mixture are sums of different terms: compare their course, "
            "not their height.",
        )
    return figures


def _metrics(
    known: Mapping[str, Path], results: Sequence[RunResults], notes: list[str]
) -> dict[str, dict[str, dict[int, float]]]:
    """The runs' metrics, their kNN completed by the last epoch's, which follows the training."""
    metrics = {}
    for run in results:
        try:
            found = read_metrics(RunFolder(known[run.name]).metrics)
        except UserError as error:
            notes.append(f"{run.name} has no curves: {error}")
            continue
        last: Evaluation | None = run.final("knn")
        if last is not None:
            found["knn"] = {**found.get("knn", {}), last.epoch: last.top1}
        metrics[run.name] = found
    return metrics


def _predictions(
    known: Mapping[str, Path],
    results: Sequence[RunResults],
    notes: list[str],
    device: str,
    data_dir: str | None,
    say: Say,
) -> Predictions | None:
    data = {run.data for run in results}
    if len(data) > 1:
        notes.append(
            f"The runs are on different data ({', '.join(sorted(data))}), so there are no "
            "prediction curves: they need the same images for all."
        )
        return None
    chosen = list(results[:_MOST])
    if len(results) > _MOST:
        names = ", ".join(run.name for run in chosen)
        notes.append(f"The prediction curves are of the first {_MOST} runs: {names}.")
    labels = [run_label(run.method, run.mixture) for run in chosen]
    if len(set(labels)) < len(labels):
        labels = [run.name for run in chosen]
    pairs = {label: (known[run.name], run) for label, run in zip(labels, chosen, strict=True)}
    try:
        return predictions(pairs, device=device, data_dir=data_dir, say=say)
    except UserError as error:
        notes.append(f"There are no prediction curves: {error}")
        return None


def _command(folders: Sequence[Path]) -> str:
    """The command of this comparison."""
    return shlex.join(["unmix", "compare", *map(str, folders)])
