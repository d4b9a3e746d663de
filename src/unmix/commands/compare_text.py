"""What `compare` prints: the answer, the settings that differ, the conditions, the runs; notes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from unmix.commands.conditions import conditions_table, settings_table
from unmix.commands.unlike import on_machines, some_of, unlike
from unmix.display import counted, value_text
from unmix.figures.table import Baselines, results_table
from unmix.results import RunResults, described, protocols_of
from unmix.statistics import fewest_pairs
from unmix.studies.grouping import GroupedRuns

__all__ = ["Told", "not_evaluated", "notes_on"]

_LINES = 6  # more verdicts than these are told apart by what they show


class Told:
    """The texts and tables of a comparison.

    Args:
        groups: The conditions.
        results: Of all runs.
        baselines: What needs no training.
        epoch: The epochs after which runs are compared; None for the end.
    """

    def __init__(
        self,
        groups: GroupedRuns,
        results: Sequence[RunResults],
        baselines: Baselines | None,
        epoch: int | None = None,
    ) -> None:
        self.groups = groups
        self.verdicts = groups.words()
        self.conditions = conditions_table(groups.findings)
        self.settings = settings_table(groups.differing())
        if epoch is not None:
            results = [_until(run, epoch) for run in results]
        self.runs = results_table(results, baselines, self.condition_of)

    @cached_property
    def condition_of(self) -> dict[str, str]:
        """For the name of each run that of its condition."""
        return {run.name: name for name, group in self.groups.groups.items() for run in group.all}

    def texts(self, common: bool) -> list[str]:
        """The parts, each a text of some lines.

        Args:
            common: Whether settings that all runs share are printed too.
        """
        found = self.groups.findings
        costs = [line for pair in found.compared if (line := found.cost(*pair))]
        parts = ["\n".join(self._answer()), "\n".join(costs[:_LINES])]
        if self.settings is not None:
            parts.append(self.settings.text())
        parts.append(self._common(common))
        parts += [self.conditions.text(), self.runs.text()]
        return [part for part in parts if part]

    def _answer(self) -> list[str]:
        """The verdicts; of many the best one first, and those without enough seeds as a number."""
        found = self.groups.findings
        if not found.comparisons:
            return [found.answer().headline, *found.refusals()]
        if len(self.verdicts) <= 2 * len(found.measures):
            return self.verdicts
        answer = found.answer()
        lines = [" ".join(filter(None, (answer.headline, answer.sure)))]
        if len(self.verdicts) <= _LINES:
            return [*lines, *self.verdicts]
        shown = [c for c in found.comparisons if c.outcome not in ("too few", "none")]
        lines += [c.words() for c in shown]
        few = [c for c in found.comparisons if c.outcome == "too few" and c.result is not None]
        if few:
            most = max(c.result.pairs for c in few if c.result is not None)
            many = max(c.result.comparisons for c in few if c.result is not None)
            lines.append(
                f"{counted(len(few), 'comparison')} without a verdict: at most "
                f"{counted(most, 'paired seed')} each, and {fewest_pairs(many)} are needed for "
                f"{many}; {_SEE} lists them."
            )
        refused = found.refusals()
        lines += refused[:_LINES]
        if len(refused) > _LINES:
            lines.append(f"{len(refused) - _LINES} more are not compared; {_SEE} says why.")
        return lines

    def _common(self, shown: bool) -> str:
        common = self.groups.common()
        if shown:
            return "\n".join(f"{name} {value_text(value, name)}" for name, value in common.items())
        of = "all runs" if len(self.condition_of) > 1 else "this run"
        return f"{counted(len(common), 'setting')} of {of} are not listed: --settings prints them."


def _until(run: RunResults, epoch: int) -> RunResults:
    """A run with its evaluations up to an epoch."""
    return replace(run, evaluations=tuple(e for e in run.evaluations if e.epoch <= epoch))


_SEE = "compare.json"


def not_evaluated(results: Sequence[RunResults], epoch: int) -> str:
    """Why nothing can be compared after an epoch, and what can."""
    epochs = sorted({row.epoch for run in results for row in run.evaluations})
    words = ", ".join(map(str, epochs))
    if len(epochs) > _LINES:
        words = f"{epochs[0]}, {epochs[1]}, ..., {epochs[-1]}"
    after = f"they were after {words}" if epochs else "none was at all"
    return f"no run was evaluated after epoch {epoch}; {after}."


def notes_on(
    known: Mapping[str, Path], groups: GroupedRuns, results: Sequence[RunResults]
) -> list[str]:
    """What a reader must know of the runs: unfinished, counted once, measured in other ways."""
    return [
        *groups.repeated,
        *_unfinished(known, results),
        *unlike(groups, groups.protocols),
        *on_machines(groups),
        *_busy(results),
        *_other_rows(results),
        *_without_accuracy(known, results),
    ]


def _unfinished(known: Mapping[str, Path], results: Sequence[RunResults]) -> list[str]:
    notes = []
    for run in results:
        if run.complete_epochs is None:
            continue
        at = f"epoch {run.complete_epochs} of {run.epochs}"
        on = f"unmix pretrain --run {shlex.quote(str(known[run.name]))}"
        how = f"is running, at {at}" if run.running else f"has stopped at {at} ({on} goes on)"
        notes.append(f"{run.name} {how}; it counts in comparisons at its end.")
    return notes


def _busy(results: Sequence[RunResults]) -> list[str]:
    """Say which training times are longer for what else the machine did."""
    missed = {run.name: taken for run in results if (taken := run.busy) is not None}
    if not missed:
        return []
    name, most = max(missed.items(), key=lambda item: item[1])
    cores = next(run.hardware["cores"] for run in results if run.name == name)
    upto = "" if len(missed) == 1 else "up to "
    return [
        f"Busy: during the training of {some_of(list(missed))} other processes took {upto}"
        f"{most:.1f} of {counted(cores, 'core')}; the times would be shorter without them."
    ]


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


def _without_accuracy(known: Mapping[str, Path], results: Sequence[RunResults]) -> list[str]:
    none = [run.name for run in results if run.ended and not run.evaluations]
    if not none:
        return []
    folder = shlex.quote(str(known[none[0]]))
    return [
        f"{some_of(none)}: without an accuracy; unmix probe {folder} --data LABELED measures one "
        "on images with classes."
    ]
