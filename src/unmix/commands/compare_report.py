"""What the report of `compare` says."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress

from unmix.commands.report_answer import Spent, answer_of
from unmix.commands.report_samples import mixture_samples
from unmix.display import counted, measure_name, measure_title, percents, value_text
from unmix.errors import UserError
from unmix.figures import read_metrics
from unmix.figures.page_tables import table_of
from unmix.figures.report_content import Command, Condition, Difference, Picture, Report
from unmix.figures.report_runs import (
    curve_sets,
    environment,
    quality_tables,
    run_details,
    summary,
)
from unmix.figures.series import Condition as Measured
from unmix.figures.series import Metrics
from unmix.figures.table import ResultsTable
from unmix.results import RunResults
from unmix.studies.grouping import GroupedRuns, RunGroup
from unmix.training.run.folder import RunFolder

__all__ = ["comparison_report"]

_CAPTION = (
    "Top-1 in percent at the last epoch, unless another epoch is named; a dash: not measured."
)
_CONDITIONS = (
    "Top-1 in percent at the last epoch: mean and standard deviation over the seeds. A star: "
    "better than its reference by a test."
)


def comparison_report(
    groups: GroupedRuns,
    tables: Sequence[ResultsTable],
    pictures: Sequence[Picture],
    baselines: Mapping[str, Mapping[str, float]],
    notes: Sequence[str],
    command: str,
) -> Report:
    """The content of the report of some runs.

    Args:
        groups: The runs as conditions.
        tables: Of the conditions, if they are not the runs, and of the runs.
        pictures: Further figures.
        baselines: Accuracy of what needs no training: name, protocol, percent.
        notes: What a reader must know.
        command: That made the report.
    """
    members = list(groups.groups.values())
    results = [run.results for group in members for run in group.runs.values()]
    measured = [_measured(group) for group in members]
    samples, missing = mixture_samples({group.name: group.first.folder for group in members})
    lines = groups.words()
    comparisons = groups.comparisons
    shown_ = {c.words() for c in comparisons}
    differing = groups.differing()
    shared = {k: v for k, v in members[0].first.settings.items() if k not in {*differing, "seed"}}
    captions = [_CONDITIONS, _CAPTION][-len(tables) :]
    titles = ["Conditions", "Runs"][-len(tables) :]
    return Report(
        title=f"Comparison of {counted(len(results), 'run')}",
        answer=answer_of(
            comparisons,
            {group.name: _spent(group) for group in members},
            others=[line.strip() for line in lines if line not in shown_],
            nothing=_nothing(groups),
        ),
        summary=summary(results),
        notes=[*notes, *missing],
        conditions=[
            Condition(
                group.name,
                {
                    measure_title(p): values
                    for p in groups.protocols
                    if (values := group.accuracies(p))
                },
                group.first.results.method,
                group.first.results.mixture,
            )
            for group in members
        ],
        differences=[
            Difference(
                c.candidate, c.reference, measure_title(c.protocol),
                c.short().removesuffix(f" against {c.reference}"),
            )
            for c in comparisons
            if c.result is not None
        ],
        baselines={
            name: {measure_title(p): value for p, value in own.items()}
            for name, own in baselines.items()
        },
        tables=[
            table_of(title, table, caption)
            for title, table, caption in zip(titles, tables, captions, strict=True)
        ]
        + quality_tables(results),
        curves=curve_sets(measured, baselines),
        pictures=pictures,
        samples=samples,
        differing=[
            (key, [value_text(values[group.name], key) for group in members])
            for key, values in differing.items()
        ],
        common=[(key, value_text(value, key)) for key, value in shared.items()],
        environment=environment([{**run.hardware, **run.versions} for run in results]),
        commands=[
            Command("This comparison", command),
            *(Command(run.name, run.command) for run in results if run.command),
        ],
        runs=[run_details(run) for run in results],
    )  # fmt: skip


def _nothing(groups: GroupedRuns) -> str:
    """The headline where no two conditions were compared."""
    if not groups.protocols:
        return "These runs have no accuracies."
    protocol = groups.protocols[0]
    reached = [
        f"{name} reaches {percents([*values.values()])}% ({measure_name(protocol)})"
        for name, group in groups.groups.items()
        if (values := group.accuracies(protocol))
    ]
    words = "; ".join(reached[:3])
    return f"{words}." if len(groups.groups) == 1 else f"{words}; nothing is compared."


def _measured(group: RunGroup) -> Measured:
    runs: dict[int, RunResults] = {}
    metrics: dict[int, Metrics] = {}
    for seed, run in group.runs.items():
        runs[seed] = run.results
        with suppress(UserError):
            metrics[seed] = read_metrics(RunFolder(run.folder).metrics)
    return Measured(group.name, runs, metrics)


def _spent(group: RunGroup) -> Spent:
    seconds = [run.results.training.get("seconds") for run in group.runs.values()]
    known = [float(value) for value in seconds if isinstance(value, int | float)]
    return Spent(seconds=statistics.median(known) if known else None)
