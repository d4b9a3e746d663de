"""Runs of `compare` as conditions: their groups, and the table that has one row for each."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from unmix.display import DASH, duration, measure_name, percents, run_label
from unmix.errors import UserError
from unmix.figures.table import Cell, ResultsTable
from unmix.names import shown
from unmix.results import RunResults
from unmix.statistics import ALPHA
from unmix.studies.cells import result_settings
from unmix.studies.grouping import ComparedRun, GroupedRuns, group_runs
from unmix.training.run.folder import RunFolder

__all__ = ["conditions_table", "grouped"]

# For a run whose settings cannot be read: what its results say.
_FACTS = ("method", "mixture", "backbone", "width", "size", "epochs", "seed")


def grouped(known: Mapping[str, Path], results: Sequence[RunResults]) -> GroupedRuns:
    """Group runs that differ in the seed alone.

    Args:
        known: The run folder of each name.
        results: The runs, under these names.
    """
    runs = []
    for run in results:
        try:
            settings = result_settings(RunFolder(known[run.name]).settings())
        except UserError:
            settings = {name: getattr(run, name) for name in _FACTS}
        label = run_label(run.method, run.mixture)
        runs.append(ComparedRun(known[run.name], run, settings, label))
    return group_runs(runs)


def conditions_table(found: GroupedRuns) -> ResultsTable:
    """One row for each condition: mean and standard deviation over its seeds.

    An accuracy is marked if it is better than that of the condition's reference, by a paired test
    over seeds that is corrected for the number of comparisons.
    """
    better = {
        (c.candidate, c.protocol)
        for c in found.comparisons
        if c.result is not None and c.result.p_adjusted <= ALPHA and c.result.mean > 0
    }
    rows = []
    for name, group in found.groups.items():
        seconds = [run.results.training.get("seconds") for run in group.runs.values()]
        known = [float(value) for value in seconds if isinstance(value, int | float)]
        cells = [
            Cell(shown(name)),
            Cell(str(len(group.runs))),
            Cell(str(group.first.results.epochs)),
        ]
        for protocol in found.protocols:
            values = list(group.accuracies(protocol).values())
            cells.append(Cell(percents(values), (name, protocol) in better))
        cells.append(Cell(duration(statistics.median(known)) if known else DASH))
        rows.append(tuple(cells))
    titles = [measure_name(protocol) for protocol in found.protocols]
    columns = ("condition", "seeds", "epochs", *titles, "training time")
    return ResultsTable(columns, (False, *[True] * (len(columns) - 1)), tuple(rows))
