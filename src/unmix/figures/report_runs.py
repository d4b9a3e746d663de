"""Parts of a report that are made from the results of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from unmix.display import (
    DASH,
    QUALITY,
    counted,
    duration,
    measure_name,
    measure_title,
    method_name,
    value_text,
)
from unmix.figures.report_content import Curve, CurveSet, Entry, RunDetails, Table
from unmix.figures.series import LOSSES, Condition, Series, notes_on_lines
from unmix.names import in_words, shown
from unmix.results import Evaluation, RunResults, described, details_in_words

__all__ = ["curve_sets", "environment", "flat", "quality_tables", "run_details", "summary"]


def summary(results: Sequence[RunResults]) -> str:
    """Describe the runs in a sentence or two."""
    if not results:
        return "No run is in this report."
    runs = counted(len(results), "run") if len(results) > 1 else "One run"
    methods = _join(method_name(run.method) for run in results)
    networks = _join(f"{run.backbone} of width {run.width:g}" for run in results)
    sizes = _join(f"{run.size}" for run in results)
    data = _join(shown(run.data) for run in results)
    mixed = _join(run.mixture for run in results if not run.baseline)
    plain = "without a mixture" if any(run.baseline for run in results) else ""
    how = " and ".join(part for part in (plain, f"with {mixed}" if mixed else "") if part)
    low, high = min(run.epochs for run in results), max(run.epochs for run in results)
    epochs = f"{low} to {high} epochs" if low < high else counted(low, "epoch")
    text = f"{runs} of {methods} on {data}: {networks}, images of {sizes} pixels, {epochs}, {how}."
    seconds = [run.training.get("seconds") for run in results]
    known = [value for value in seconds if isinstance(value, int | float)]
    if len(known) == len(results):
        text += f" Training took {duration(sum(known))} in all."
    if not any(run.evaluations for run in results):
        text += " The images have no labels, so there are no accuracies."
    return text


def _join(words: Iterable[str]) -> str:
    """Join distinct words with commas and "and"."""
    once = list(dict.fromkeys(words))
    return in_words(once)


def run_details(run: RunResults, name: str | None = None) -> RunDetails:
    """All results of a run.

    Args:
        run: Its results.
        name: By default the run's own.
    """
    settings = {
        field: getattr(run, field)
        for field in ("method", "mixture", "data", "backbone", "width", "size", "epochs", "seed")
    }
    # Rows of one protocol and epoch may differ in their settings.
    rows = {f"{described(row)}, epoch {row.epoch}": _evaluation(row) for row in run.evaluations}
    groups = {
        "Settings": settings,
        "Evaluations": rows,
        "Without labels": run.quality,
        "Training": run.training,
        "Hardware": run.hardware,
        "Versions": run.versions,
    }
    return RunDetails(
        name or run.name, {heading: flat(items) for heading, items in groups.items() if items}
    )


def quality_tables(results: Sequence[RunResults]) -> list[Table]:
    """A table of the measures that need no labels; none if no run has them."""
    known = [run for run in results if run.quality]
    if not known:
        return []
    rows = []
    for run in known:
        values = [(run.quality.get(name), decimals) for name, decimals in QUALITY.items()]
        cells = [
            Entry(f"{value:.{decimals}f}", float(value))
            if isinstance(value, int | float)
            else Entry(DASH)
            for value, decimals in values
        ]
        rows.append([Entry(run.name), *cells, Entry(str(run.quality.get("dimension", DASH)))])
    return [
        Table(
            "Quality without labels",
            ("run", *map(measure_title, QUALITY), "dimension"),
            (False, *[True] * (len(QUALITY) + 1)),
            rows,
            "At the end of each run, of its training images and with its own views. Higher RankMe "
            "and LiDAR, alpha-ReQ close to 1, and lower alignment and uniformity are said to be "
            "better; the documentation says where each misleads. Only features of one dimension "
            "can be compared.",
        )
    ]


def _evaluation(row: Evaluation) -> str:
    top5 = "" if row.top5 is None else f", top-5 {row.top5:.2f}"
    details = f", {details_in_words(row.details)}" if row.details else ""
    return f"top-1 {row.top1:.2f}{top5}{details}"


def flat(items: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested settings into pairs of name and text."""
    rows: list[tuple[str, str]] = []
    for name, item in items.items():
        label = prefix + measure_name(name)
        if isinstance(item, Mapping):
            rows += flat(item, f"{label}, ")
        else:
            rows.append((label, value_text(item, name)))
    return rows


def environment(records: Sequence[Mapping[str, object]]) -> list[tuple[str, str]]:
    """Hardware and versions of runs; what differs between them is counted.

    Args:
        records: For each run, its `hardware` and `versions` as one mapping.
    """
    rows = [dict(flat(record)) for record in records]
    found = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        counts = {value: values.count(value) for value in dict.fromkeys(values)}
        if len(counts) == 1 and len(values) == len(rows):
            found.append((name, values[0]))
        else:
            texts = (f"{value} ({counted(n, 'run')})" for value, n in counts.items())
            found.append((name, "; ".join(texts)))
    return found


def curve_sets(
    conditions: Sequence[Condition], references: Mapping[str, Mapping[str, float]] | None = None
) -> list[CurveSet]:
    """Accuracy by each protocol that was measured more than once, and the training loss.

    Without times where the runs of a condition were on different hardware.

    Args:
        conditions: Runs with their metrics.
        references: Accuracy of what needs no training: name, protocol, percent.
    """
    protocols = dict.fromkeys(
        row.measure for c in conditions for run in c.runs.values() for row in run.evaluations
    )
    found = []
    machines = _on_machines(conditions)
    for protocol in protocols:
        title = measure_title(protocol)
        series = [_accuracies(c, protocol) for c in conditions]
        curves = _curves(series)
        if any(len(curve.epochs) > 1 for curve in curves):
            found.append(
                CurveSet(
                    f"Accuracy during training, {measure_name(protocol)}",
                    f"{title} top-1 (%)",
                    curves,
                    " ".join([*machines, *notes_on_lines(series)]),
                    {n: row[protocol] for n, row in (references or {}).items() if protocol in row},
                )
            )
    recorded = [c.recorded("loss") for c in conditions]
    if losses := _curves(recorded):
        found.append(
            CurveSet(
                "Course of training",
                "training loss",
                losses,
                " ".join([LOSSES, *notes_on_lines(recorded)]),
            )
        )
    return found


def _on_machines(conditions: Sequence[Condition]) -> list[str]:
    """What a reader must know of the times of curves."""
    known = [condition.machines for condition in conditions]
    if any(len(own) > 1 for own in known):
        return ["Without times, as runs of one condition were on different hardware."]
    different = len(frozenset().union(*known)) > 1
    return [
        "Time is that of training alone, without evaluations.",
        *(["The runs were on different hardware: their times do not compare."] * different),
    ]


def _accuracies(condition: Condition, protocol: str) -> Series:
    """What was recorded during training and after it, also of runs without records."""
    known, recorded = condition.accuracies(protocol), condition.recorded(protocol)
    return Series(
        condition.name,
        dict(sorted({**known.values, **recorded.values}.items())),
        {**known.seconds, **recorded.seconds},
        condition.machines,
    )


def _curves(series: Sequence[Series]) -> list[Curve]:
    found = []
    for one in series:
        shared = set(one.shared)
        for seed, own in one.values.items():
            values = {epoch: value for epoch, value in own.items() if epoch in shared}
            times = one.seconds.get(seed, {}) if len(one.machines) < 2 else {}
            known = all(epoch in times for epoch in values)
            seconds = [times[epoch] for epoch in values] if known else None
            found.append(Curve(one.name, seed, list(values), list(values.values()), seconds))
    return found
