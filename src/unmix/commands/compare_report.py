"""What the report of `compare` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from unmix.commands.report_samples import mixture_samples
from unmix.display import Answer, counted, measure_title, value_text
from unmix.figures.page_tables import table_of
from unmix.figures.report_content import (
    Command,
    Condition,
    Difference,
    Picture,
    Report,
    Running,
)
from unmix.figures.report_runs import (
    curve_sets,
    environment,
    quality_tables,
    run_details,
    summary,
)
from unmix.figures.series import Condition as Drawn
from unmix.figures.table import ResultsTable
from unmix.results import RunResults
from unmix.studies.findings import Findings
from unmix.studies.grouping import GroupedRuns
from unmix.studies.naming import texts_of

__all__ = ["CONDITIONS", "answer_of", "comparison_report", "differences_of"]

_RUNS = "Top-1 in percent {at}, unless another epoch is named; a dash: not measured."
CONDITIONS = (
    "Top-1 in percent {at}: mean and standard deviation over the seeds. "
    "Forward-equivalents: operations of a step over those of encoding its images once. Cost: of "
    "the whole training, relative to the cheapest. Time per run: the median over the seeds. Busy: "
    "other processes took cores from the training of a run. A star: better than its reference by a "
    "test."
)
"""What the columns of a table of conditions mean."""


def comparison_report(
    groups: GroupedRuns,
    drawn: Sequence[Drawn],
    tables: Sequence[ResultsTable],
    pictures: Sequence[Picture],
    baselines: Mapping[str, Mapping[str, float]],
    notes: Sequence[str],
    command: str,
    *,
    epoch: int | None = None,
    samples: bool = True,
) -> Report:
    """The content of the report of some runs.

    Args:
        groups: The runs as conditions.
        drawn: The same, as figures take them.
        tables: Of the conditions and of the runs.
        pictures: Further figures.
        baselines: Accuracy of what needs no training: name, protocol, percent.
        notes: What a reader must know.
        command: That made the report.
        epoch: The epochs after which runs are compared; None for the end.
        samples: Whether to draw mixtures, which needs the images.
    """
    members = list(groups.groups.values())
    results = [run.results for group in members for run in group.all]
    first = {group.name: group.first.folder for group in members}
    mixed, missing = mixture_samples(first) if samples else ([], [])
    findings = groups.findings
    singles = [line.strip() for line in groups.words() if line.startswith(" ")]
    at = "at the last epoch" if epoch is None else f"after epoch {epoch}"
    return Report(
        title=f"Comparison of {counted(len(results), 'run')}",
        answer=answer_of(findings, singles),
        running=_running(results),
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
        differences=differences_of(findings),
        baselines={
            name: {measure_title(p): value for p, value in own.items()}
            for name, own in baselines.items()
        },
        tables=[
            table_of(title, table, caption.format(at=at))
            for title, table, caption in zip(
                ("Conditions", "Runs"), tables, (CONDITIONS, _RUNS), strict=True
            )
        ]
        + quality_tables(results),
        curves=curve_sets(drawn, baselines),
        pictures=pictures,
        samples=mixed,
        differing=[
            (key, texts_of([values.get(group.name) for group in members], key))
            for key, values in groups.differing().items()
        ],
        common=[(key, value_text(value, key)) for key, value in groups.common().items()],
        environment=environment([{**run.hardware, **run.versions} for run in results if run.ended]),
        commands=[
            Command("This comparison", command),
            *(Command(run.name, run.command) for run in results if run.command),
        ],
        runs=[run_details(run) for run in results],
    )


def answer_of(findings: Findings, more: Sequence[str] = ()) -> Answer:
    """What a report opens with.

    Args:
        findings: What the conditions show.
        more: Further sentences.
    """
    found = findings.answer()
    return replace(found, others=[*found.others, *more])


def differences_of(findings: Findings) -> list[Difference]:
    """The comparisons that the paired dots show."""
    found = []
    for c in findings.comparisons:
        if c.result is not None:
            apart = tuple(findings.apart(c.candidate, c.reference))
            title = measure_title(c.protocol)
            found.append(Difference(c.candidate, c.reference, title, c.short(), apart))
    return found


def _running(results: Sequence[RunResults]) -> Running | None:
    """How far the runs are that have not ended; None if all have."""
    going = [run for run in results if not run.ended]
    if not going:
        return None
    each = "; ".join(f"{run.name}: {run.progress} epoch{'s'[: run.epochs != 1]}" for run in going)
    done = sum(
        run.epochs if run.complete_epochs is None else run.complete_epochs for run in results
    )
    ended = f"{len(results) - len(going)} of {counted(len(results), 'run')} have ended"
    return Running(f"{ended}; {each}.", done / max(1, sum(run.epochs for run in results)))
