"""What the report of a study says: its cells, and what their run folders have beside."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from unmix.commands.compare_report import CONDITIONS, answer_of, differences_of
from unmix.commands.reading import read_run
from unmix.commands.report_samples import mixture_samples
from unmix.config.augmentation import expanded
from unmix.display import (
    DASH,
    counted,
    duration,
    measure_name,
    measure_title,
)
from unmix.errors import UserError
from unmix.figures import read_metrics
from unmix.figures.report_content import (
    Command,
    Condition,
    Entry,
    Report,
    RunDetails,
    Running,
    Table,
)
from unmix.figures.report_runs import curve_sets, environment, flat, summary
from unmix.figures.series import Condition as Measured
from unmix.figures.series import Metrics
from unmix.results import Evaluation, RunResults
from unmix.studies import StudyResults
from unmix.studies.naming import by_augmentation, texts_of
from unmix.studies.plan import slug
from unmix.studies.summary import over_rows

__all__ = ["study_report"]


def study_report(
    found: StudyResults, folder: Path, *, running: Running | None = None, samples: bool = True
) -> Report:
    """The content of a study's report, also while it runs.

    Args:
        found: What is measured.
        folder: Of the study; its runs give the curves and the samples, where they are kept.
        running: How far it is, while it runs.
        samples: Whether to draw mixtures, which needs the images.
    """
    study = found.study
    folders = {name: _folders(found, folder, name) for name in study.conditions}
    known = [_measured(name, own, found.of(name)) for name, own in folders.items()]
    measured = [condition for condition in known if condition.runs]
    first = {name: next(iter(own.values())) for name, own in folders.items() if own}
    pictures, notes = mixture_samples(first) if samples else ([], [])
    cells = [cell for name in study.conditions for cell in found.of(name)]
    differing, common = _settings(found)
    baselines = {
        name: {p: statistics.fmean(values.values()) for p, values in own.items() if values}
        for name, own in found.baselines.items()
    }
    return Report(
        title=f"Study {study.name}",
        answer=answer_of(
            found.findings,
            [line for o in over_rows(found) for line in o.words(measure_name(o.protocol))],
        ),
        running=running,
        summary=_summary(study.about, measured),
        notes=[*(note.removeprefix("note: ") for note in found.notes()), *notes],
        conditions=_conditions(found),
        differences=differences_of(found.findings),
        baselines={
            name: {measure_title(p): value for p, value in own.items()}
            for name, own in baselines.items()
        },
        tables=[_conditions_table(found), _runs_table(found)],
        curves=curve_sets(measured, baselines),
        samples=pictures,
        differing=differing,
        common=common,
        environment=environment(
            [{**c.get("hardware", {}), **c.get("versions", {}), "code": c["code"]} for c in cells]
        ),
        commands=_commands(found, folder),
        runs=[_details(cell) for cell in cells],
    )  # fmt: skip


def _summary(about: str, measured: Sequence[Measured]) -> str:
    results = [run for m in measured for run in m.runs.values() if run.data]
    return " ".join(filter(None, [about, summary(results) if results else ""]))


def _folders(found: StudyResults, folder: Path, name: str) -> dict[int, Path]:
    """The run folder of each seed, as far as they are kept; of several the newest."""
    runs = {}
    for seed in found.study.seeds_of(name):
        own = [*(folder / "runs").glob(f"{slug(name)}-{seed}-????????")]
        kept = [path for path in own if (path / "metrics.csv").exists()]
        if kept:
            runs[seed] = max(kept, key=lambda path: (path / "metrics.csv").stat().st_mtime)
    return runs


def _measured(
    name: str, folders: Mapping[int, Path], cells: Sequence[Mapping[str, Any]]
) -> Measured:
    """Results and metrics of a condition's runs; of an unfinished one the metrics alone.

    Of a run whose folder is gone, the course that its cell has kept.
    """
    runs = {cell["seed"]: _kept(name, cell) for cell in cells if cell.get("course")}
    metrics: dict[int, Metrics] = {}
    for seed, folder in folders.items():
        runs[seed] = RunResults(name, "", "none", "", "", 1.0, 0, 0, seed, "")
        with suppress(UserError):
            runs[seed] = read_run(folder)
        with suppress(UserError):
            metrics[seed] = read_metrics(folder / "metrics.csv")
    return Measured(name, runs, metrics)


def _kept(name: str, cell: Mapping[str, Any]) -> RunResults:
    rows = [
        Evaluation(protocol, int(epoch), value)
        for protocol, course in cell["course"].items()
        for epoch, value in course.items()
    ]
    training = {"seconds": cell["seconds"]} if cell.get("seconds") else {}
    return RunResults(
        name, "", "none", "", "", 1.0, 0, cell["epochs"], cell["seed"], "",
        tuple(sorted(rows, key=lambda row: row.epoch)), training, cell.get("hardware") or {},
    )  # fmt: skip


def _conditions(found: StudyResults) -> list[Condition]:
    conditions = []
    for name in found.study.conditions:
        settings = _flat(found, name)
        mixture = "none"
        if settings.get("unmix"):
            mixture = "Un-Mix"
        elif settings.get("IM"):
            mixture = str(settings.get("IM_type", "IM"))
        accuracies = {
            measure_title(p): values
            for p in found.study.protocols
            if (values := found.accuracies(name, p))
        }
        conditions.append(Condition(name, accuracies, str(settings.get("method", "")), mixture))
    return conditions


def _flat(found: StudyResults, name: str) -> Mapping[str, Any]:
    """The settings of a condition: of a cell that was measured, else as it is planned."""
    if cells := found.of(name):
        return cells[0]["settings"]
    return expanded(found.study.stated(name))


def _settings(
    found: StudyResults,
) -> tuple[list[tuple[str, Sequence[str]]], list[tuple[str, str]]]:
    """Those that differ between conditions, and those that all share."""
    names = list(found.study.conditions)
    settings = by_augmentation([_flat(found, name) for name in names])
    flat_ = dict(zip(names, settings, strict=True))
    differing: list[tuple[str, Sequence[str]]] = []
    common = []
    for key in dict.fromkeys(key for own in flat_.values() for key in own if key != "seed"):
        texts = texts_of([own.get(key) for own in flat_.values()], key)
        if len(set(texts)) > 1:
            differing.append((key, texts))
        else:
            common.append((key, texts[0]))
    return differing, common


def _conditions_table(found: StudyResults) -> Table:
    """What needs no training and the conditions, with their cost and accuracies."""
    columns = found.columns()
    known = {row[0].text: row for row in found.findings.rows()}
    rows = []
    for texts in found.rows():
        row = [Entry(text) for text in texts]
        for i, cell in enumerate(known.get(texts[0], ())):
            row[i] = Entry(cell.text, cell.value, cell.spread, cell.best)
        rows.append(row)
    numeric = [column not in ("condition", "published") for column in columns]
    return Table("Conditions", columns, numeric, rows, CONDITIONS.format(at="at the last epoch"))


def _runs_table(found: StudyResults) -> Table:
    """Every run with its accuracies, loss and time."""
    protocols = found.study.protocols
    rows = []
    for name in found.study.conditions:
        for cell in found.of(name):
            values = [cell["accuracies"].get(p) for p in protocols]
            seconds, loss = cell.get("seconds"), cell.get("loss")
            rows.append(
                [
                    Entry(name),
                    Entry(str(cell["seed"]), cell["seed"]),
                    *(Entry(DASH) if v is None else Entry(f"{v:.2f}", float(v)) for v in values),
                    Entry(DASH) if loss is None else Entry(f"{loss:.4g}", float(loss)),
                    Entry(DASH) if seconds is None else Entry(duration(seconds), float(seconds)),
                ]
            )
    titles = [measure_name(p) for p in protocols]
    columns = ("condition", "seed", *titles, "loss", "training time")
    numeric = (False, *[True] * (len(columns) - 1))
    return Table("All runs", columns, numeric, rows, "The CSV has the time in seconds.")


def _commands(found: StudyResults, folder: Path) -> list[Command]:
    """Of the study, if its folder is where `unmix study` would make it, and of each condition."""
    commands = []
    if slug(found.study.name) == folder.name:
        words = ["unmix", "study", str(folder / "study.yaml"), "--out", str(folder.parent)]
        commands.append(Command("The whole study", shlex.join(words)))
    for name in found.study.conditions:
        cells = found.of(name)
        if cells and (text := cells[0].get("command")):
            others = len(cells) - 1
            more = f"; {counted(others, 'other seed')}: change --seed" if others else ""
            commands.append(Command(f"{name}, seed {cells[0]['seed']}{more}", str(text)))
    return commands


def _details(cell: Mapping[str, Any]) -> RunDetails:
    """What is known of a cell beside its settings, which are those of its condition."""
    groups = {
        "Accuracies, top-1 in percent": cell["accuracies"],
        "Training": {
            k: cell[k] for k in ("epochs", "loss", "seconds", "images_per_second") if k in cell
        },
        "Hardware": cell.get("hardware", {}),
        "Versions": {**cell["code"], **cell.get("versions", {})},
    }
    return RunDetails(
        f"{cell['condition']}, seed {cell['seed']}",
        {heading: flat(items) for heading, items in groups.items() if items},
    )
