"""Runs of `compare` as conditions: their groups and costs, and the tables of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from unmix.backbones import check_stem
from unmix.config import field_names
from unmix.display import DASH, run_label
from unmix.errors import UserError
from unmix.figures.progress import read_metrics
from unmix.figures.series import Condition
from unmix.figures.table import Cell, ResultsTable
from unmix.names import shown
from unmix.results import RunResults
from unmix.studies.cells import result_settings
from unmix.studies.cost import forward_equivalents, unscheduled
from unmix.studies.findings import Findings
from unmix.studies.grouping import ComparedRun, CostOf, GroupedRuns, group_runs
from unmix.studies.naming import texts_of
from unmix.training.run.data_record import DataRecord
from unmix.training.run.folder import RunFolder

__all__ = ["conditions_drawn", "conditions_table", "costs", "grouped", "settings_table"]

# For a run whose settings cannot be read: what its results say.
_FACTS = ("method", "mixture", "backbone", "width", "size", "epochs", "seed")
# What does not change the operations of a step.
_NO_OPERATIONS = {
    *(name for group in ("optimizer", "evaluation", "machine") for name in field_names(group)),
    "seed", "epochs", "data", "data_dir", "train_folder", "test_folder", "run", "limit",
} - {"devices", "nodes"}  # fmt: skip
_LONGEST = 40  # letters of a value, such as a path
_WIDE = 100  # letters of a line


def grouped(
    known: Mapping[str, Path],
    results: Sequence[RunResults],
    *,
    epoch: int | None = None,
    reference: str | None = None,
    cost_of: CostOf = lambda run: None,
) -> GroupedRuns:
    """Group runs that differ in the seed alone.

    Args:
        known: The run folder of each name.
        results: The runs, under these names.
        epoch: The epochs after which they are compared; None for the end.
        reference: The condition that all others are compared with.
        cost_of: The forward-equivalents of a run; see `costs`.

    Raises:
        UserError: if there is no such condition.
    """
    runs = []
    for run in results:
        try:
            settings = result_settings(RunFolder(known[run.name]).settings())
        except UserError:
            settings = {name: getattr(run, name) for name in _FACTS}
        if settings.get("stem") == "auto" and not run.backbone.startswith("timm:"):
            settings["stem"] = check_stem("auto", run.size)  # imported weights have it by name
        label = run_label(run.method, run.mixture)
        if run.imported and run.method != "imported":
            label += ", imported"
        runs.append(ComparedRun(known[run.name], run, settings, label, epoch))
    return group_runs(runs, cost_of, reference)


def costs(notes: list[str]) -> CostOf:
    """A function that counts the forward-equivalents of a run, once for those of equal steps.

    Args:
        notes: Takes a line for each run whose operations cannot be counted.
    """
    known: dict[tuple[Any, ...], float | None] = {}

    def cost_of(run: ComparedRun) -> float | None:
        if run.results.imported:
            return None  # how they were trained is not known
        try:
            settings = RunFolder(run.folder).settings()
            flat = settings.flat().items()
            unimportant = set(_NO_OPERATIONS)
            if unscheduled(settings) is not None:
                unimportant -= {"epochs"}  # it says how many steps are mixed
            key = tuple((name, str(value)) for name, value in flat if name not in unimportant)
            if key not in known:
                known[key] = None
                known[key] = forward_equivalents(settings, _images(run.folder))
            return known[key]
        except (UserError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            notes.append(f"The operations of {run.name} cannot be counted: {reason}")
            return None

    return cost_of


def _images(folder: Path) -> int:
    """How many images a run was trained on; a usual number if it is not known."""
    with suppress(UserError):
        record = DataRecord.read(folder)
        if record is not None and record.splits:
            return next(iter(record.splits.values())).images
    return 50_000


def conditions_drawn(groups: GroupedRuns, notes: list[str]) -> list[Condition]:
    """The conditions as figures take them, with what each run recorded in its `metrics.csv`.

    Args:
        groups: The conditions.
        notes: Takes a line for each run without records.
    """
    names = list(groups.groups)
    found = []
    for name, group in groups.groups.items():
        metrics = {}
        for seed, run in group.runs.items():
            try:
                metrics[seed] = read_metrics(RunFolder(run.folder).metrics)
            except UserError as error:
                if run.results.ended and not run.results.imported:
                    notes.append(f"{run.name} has no curves: {error}")
        runs = {seed: run.results for seed, run in group.runs.items()}
        word = f"epochs {group.first.results.epochs}"
        # Conditions that differ in their epochs alone are one curve of their ends.
        curve = ", ".join(part for part in name.split(", ") if part != word) or group.first.label
        alone = sum(word in other.split(", ") for other in names) == len(names)
        found.append(Condition(name, runs, metrics, None if alone else curve))
    return found


def conditions_table(found: Findings) -> ResultsTable:
    """One row for each condition: what it cost, mean and standard deviation over its seeds.

    An accuracy is marked if it is better than that of the condition's reference, by a paired test
    over seeds that is corrected for the number of comparisons.
    """
    columns = found.columns()
    rows = [
        tuple(Cell(shown(cell.text), cell.best, cell.value, cell.spread) for cell in row)
        for row in found.rows()
    ]
    numeric = (False, *[True] * (len(columns) - 1))
    return ResultsTable(tuple(columns), numeric, tuple(rows))


def settings_table(differing: Mapping[str, Mapping[str, Any]]) -> ResultsTable | None:
    """The settings that differ, and each condition's value; None if none do.

    Args:
        differing: For each setting the value of each condition.
    """
    if not differing:
        return None
    names = list(dict.fromkeys(name for values in differing.values() for name in values))
    texts = {}
    for key, values in differing.items():
        own = dict(zip(values, texts_of([*values.values()], key), strict=True))
        texts[key] = [own.get(name, DASH) for name in names]
    by_setting = _plain_table(["setting", *names], texts)
    columns = zip(*texts.values(), strict=True)
    by_condition = _plain_table(["condition", *texts], dict(zip(names, columns, strict=True)))
    fits = len(by_setting.text().partition("\n")[0]) <= _WIDE
    narrower = min((by_setting, by_condition), key=lambda t: len(t.text().partition("\n")[0]))
    return by_setting if fits else narrower


def _plain_table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> ResultsTable:
    """A table of texts; the name of a row is whole, or two conditions would look the same."""
    cells = tuple(
        (Cell(shown(name)), *(Cell(_shortened(shown(text))) for text in row))
        for name, row in rows.items()
    )
    return ResultsTable(tuple(map(shown, columns)), (False,) * len(columns), cells)


def _shortened(text: str) -> str:
    """A long value: of a path its end, of another its start and its end."""
    if len(text) <= _LONGEST:
        return text
    if "/" in text:
        return f"…{text[1 - _LONGEST :]}"
    end = _LONGEST // 3
    return f"{text[: _LONGEST - 1 - end]}…{text[-end:]}"
