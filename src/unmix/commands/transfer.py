"""`unmix transfer`: runs evaluated on other labeled sets, in one table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from unmix.commands.compare import listed
from unmix.commands.conditions import grouped
from unmix.commands.evaluated import Splits
from unmix.commands.finetune import finetune
from unmix.commands.finished import FinishedRun, Say, line_of, say_skipped
from unmix.commands.probe import classifier_task
from unmix.commands.reading import short_names
from unmix.commands.rows import NotSavedError
from unmix.data.fingerprint import digest_of
from unmix.display import DASH, measure_name, percent, percents
from unmix.errors import UserError, check_choice
from unmix.evaluation import PROTOCOLS, Task, evaluate
from unmix.evaluation.labeled import Amount
from unmix.figures.table import Cell, ResultsTable
from unmix.files import as_path
from unmix.hardware.threads import CoreMeter
from unmix.names import shown
from unmix.per_image import per_image
from unmix.results import Evaluation, load_results
from unmix.rows import settings_of
from unmix.statistics import ALPHA, FEWEST_VALUES, compare_paired, holm, mean_ranks, verdict
from unmix.training.console import quiet_libraries, silent
from unmix.training.console import say as print_line
from unmix.training.run.data_record import same_place

__all__ = ["Transfer", "transfer"]

_FINE_TUNING = "finetune"


@dataclass(frozen=True)
class Transfer:
    """Accuracies of runs on several data sets.

    Attributes:
        rows: For each run, data set and protocol the row of `results.json`.
        table: What is printed: a row for each condition and protocol, a column for each data set.
        words: The comparison of two conditions, in words; empty without one.
    """

    rows: Mapping[tuple[str, str, str], Mapping[str, Any]]
    table: ResultsTable
    words: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        return self.table._repr_html_()

    def as_dict(self) -> dict[str, Any]:
        """All rows and comparisons as JSON types."""
        rows = [{"run": run, "on": data, **row} for (run, data, _), row in self.rows.items()]
        return {"rows": rows, "comparisons": list(self.words)}


def transfer(
    *runs: Path | str | Sequence[Path | str],
    data: Sequence[str],
    protocols: Sequence[str] = ("linear", "knn"),
    labels: str = "100%",
    epochs: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | None = None,
    overwrite: bool = False,
    say: Say = print_line,
) -> Transfer:
    """Evaluate runs on other labeled data sets, and print one table.

    The rows are kept in each run's `results.json`, as those of `unmix knn`, `probe` and `finetune`
    with `--data`; what is there already is not measured again. Runs that differ in the seed alone
    are one condition. Two conditions are compared by their mean difference over the data sets.

    Args:
        runs: Run folders or encoder files, one or more.
        data: The data sets, by name or folder.
        protocols: Those of knn and probe, and finetune.
        labels: Of finetune: 100%, 10%, 1%, or a number of images of each class.
        epochs: Of finetune: epochs.
        device: auto, cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        data_dir: Folder of the data sets' files, for the names that need it.
        overwrite: Measure again what is measured already.
        say: Prints a line.

    Returns:
        The rows, the table and the comparisons.

    Raises:
        NotSavedError: if a `results.json` cannot be written; its `rows` are the results.
        UserError: if a run is not complete, a data set has no classes, or a value is unknown.
    """
    folders = [as_path(run) for run in listed(runs)]
    _check(folders, data, protocols, labels, epochs)
    quiet_libraries()
    cores = CoreMeter()
    names = _names(folders)
    rows: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    lost: NotSavedError | None = None
    for name, folder in zip(names, folders, strict=True):
        finished = FinishedRun.open(folder, device)
        for place in data:
            job = _Job(finished, place, data_dir, overwrite, _prefixed(name, say))
            with finished.computing(threads, cores, silent):
                for protocol in protocols:
                    try:
                        row = (
                            _fine_tuned(job, folder, labels, epochs, threads)
                            if protocol == _FINE_TUNING
                            else job.measured(protocol)
                        )
                    except NotSavedError as error:
                        lost, row = error, error.rows[0]
                    rows[name, place, str(row["protocol"])] = row
    found = _summary(dict(zip(names, folders, strict=True)), list(data), rows)
    say("")
    say(found.table.text())
    for line in found.words:
        say(line)
    if lost is not None:
        lost.rows = [dict(row) for row in rows.values()]
        raise lost
    return found


def _check(
    folders: Sequence[Path],
    data: Sequence[str],
    protocols: Sequence[str],
    labels: str,
    epochs: int | None,
) -> None:
    if not folders:
        raise UserError("no run was given; give one or more run folders.")
    for what, given in (("data", [str(d) for d in data]), ("protocols", list(protocols))):
        if not given:
            raise UserError(f"--{what}: give one or more.")
        again = next((each for each in given if given.count(each) > 1), None)
        if again is not None:
            raise UserError(f"--{what}: {again} is given {given.count(again)} times.")
    for one, other in combinations(map(str, data), 2):
        if same_place(one, other):
            raise UserError(f"{one} and {other} are the same data.", parameter="data")
    for protocol in protocols:
        check_choice("protocols", protocol, (*PROTOCOLS, _FINE_TUNING))
    Amount(labels)
    if _FINE_TUNING not in protocols:
        for flag, value, usual in (("labels", labels, "100%"), ("epochs", epochs, None)):
            if value != usual:
                raise UserError(
                    f"--{flag}: {value} applies only to the protocol {_FINE_TUNING}; add it to "
                    "--protocols, or leave this out."
                )


class _Job:
    """One run on one data set: features are encoded once, when they are first needed."""

    def __init__(
        self,
        finished: FinishedRun,
        data: str,
        data_dir: str | None,
        overwrite: bool,
        say: Callable[[str], None],
    ) -> None:
        self.finished, self.data, self.data_dir = finished, data, data_dir
        self.overwrite, self.say = overwrite, say
        self.splits: Splits = finished.splits("a transfer", data, data_dir)
        if self.splits.note is not None:
            say(self.splits.note)
        self.subject = finished.subject()
        self.features = cache(
            lambda split: finished.features(self.subject.encode, getattr(self.splits, split), say)
        )

    def measured(self, protocol: str) -> Mapping[str, Any]:
        """The row of a protocol: the one that is kept, or a new one.

        Raises:
            NotSavedError: if it cannot be kept.
        """
        kept = None if self.overwrite else self._kept(protocol)
        if kept is not None:
            self.say(f"{line_of(kept)} (measured before)")
            return kept
        task = classifier_task(
            self.finished, self.subject, self.splits, {}, self.say, self.features
        )
        if protocol == "knn-euclidean":
            task.k = 5
        found = evaluate(protocol, task)
        row = {**found.row, **self.subject.of, **self.splits.named}
        say_skipped(self.say, self.splits.train, self.splits.test)
        self.say(line_of(row))
        self.finished.keep(row, found, self.splits, main=True, say=self.say)
        return row

    def _task(self) -> Task:
        return classifier_task(
            self.finished, self.subject, self.splits, {}, self.say, self.features
        )

    def _kept(self, protocol: str) -> Mapping[str, Any] | None:
        """The row of the same protocol, published settings and images, if there is one."""
        if self.finished.alone:
            return None
        settings = self.finished.settings
        try:
            rows = load_results(self.finished.folder.path).evaluations
        except UserError:
            return None
        images = digest_of(self.splits.test, torch.arange(len(self.splits.test)))
        for row in rows:
            if not self._is_plain(row, protocol) or row.epoch != settings.run.epochs:
                continue
            try:
                kept = per_image(self.finished.folder.path, row)
            except UserError:
                continue
            if (kept.images, kept.train) == (images, self.splits.train_digest):
                return {"protocol": protocol, "epoch": row.epoch, "top1": row.top1,
                        "top5": row.top5, **row.details}  # fmt: skip
        return None

    def _is_plain(self, row: Evaluation, protocol: str) -> bool:
        """Whether a row has the settings that this command uses."""
        trained = PROTOCOLS[protocol].trained
        expected: dict[str, Any] = {"features": "backbone"} | self.splits.named
        if protocol == "knn":
            expected |= {"k": min(200, len(self.splits.train)), "temperature": 0.1}
        elif protocol == "knn-euclidean":
            expected |= {"k": min(5, len(self.splits.train))}
        elif trained:
            published = PROTOCOLS[protocol].settings(self._task())  # type: ignore[attr-defined]
            expected |= {"epochs": published.epochs, "lr": published.lr}
        return row.protocol == protocol and settings_of(row.details) == expected


def _fine_tuned(
    job: _Job, folder: Path, labels: str, epochs: int | None, threads: int | None
) -> Mapping[str, Any]:
    return finetune(
        folder, labels=labels, epochs=epochs, threads=threads, overwrite=job.overwrite,
        data=job.data, data_dir=job.data_dir, device=job.finished.machine.device.type,
        say=_without_setup(job.say),
    )  # fmt: skip


def _prefixed(name: str, say: Say) -> Say:
    return lambda text: say(f"{name}: {text}")


def _without_setup(say: Say) -> Say:
    """Without the line on encoder and device, which is the same for all."""
    return lambda text: None if text.startswith("encoder: ") else say(text)


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of those above as tell them apart."""
    for depth in range(1, 20):
        names = ["/".join(folder.resolve().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    twice = next(f for f in folders if folders.count(f) > 1)
    raise UserError(f"{twice}: is given {folders.count(twice)} times.")


def _conditions(
    known: Mapping[str, Path],
) -> tuple[dict[str, dict[int, str]], Sequence[str], Collection[int]]:
    """Names of runs by condition and seed, a sentence for each run or seed that does not count,
    and of two conditions the seeds that are no pairs.

    An encoder file is a condition of its own.
    """
    results = {}
    for name, folder in known.items():
        try:
            results[name] = load_results(folder)
        except UserError:
            return {name: {0: name} for name in known}, (), ()
    if len(results) == 1:
        return {name: {found.seed: name} for name, found in results.items()}, (), ()
    groups = grouped(known, [replace(found, name=name) for name, found in results.items()])
    conditions = {
        condition: {seed: run.results.name for seed, run in group.runs.items()}
        for condition, group in groups.groups.items()
    }
    if len(conditions) != 2:
        return conditions, groups.repeated, ()
    apart = groups.findings.apart(*conditions)
    return conditions, [*groups.repeated, *groups.findings.no_pairs()], apart


def _summary(
    known: Mapping[str, Path],
    data: Sequence[str],
    rows: Mapping[tuple[str, str, str], Mapping[str, Any]],
) -> Transfer:
    """The table of means over seeds, and the comparison where there are two conditions."""
    conditions, repeated, apart = _conditions(known)
    protocols = list(dict.fromkeys(protocol for _, _, protocol in rows))
    top1 = {key: float(row["top1"]) for key, row in rows.items()}
    cells = []
    for condition, runs in conditions.items():
        for protocol in protocols:
            values = [[top1[run, place, protocol] for run in runs.values()] for place in data]
            over = percent(mean(map(mean, values))) if values else DASH
            texts = [shown(condition), measure_name(protocol), *map(percents, values), over]
            cells.append(tuple(Cell(text) for text in texts))
    columns = ("condition", "protocol", *short_names(data).values(), "mean")
    numeric = (False, False, *[True] * (len(data) + 1))
    words = list(repeated)
    if len(conditions) == 2:
        for protocol in protocols:
            words += _compared(conditions, data, protocol, top1, apart)
    return Transfer(rows, ResultsTable(columns, numeric, tuple(cells)), tuple(words))


def _compared(
    conditions: Mapping[str, Mapping[int, str]],
    data: Sequence[str],
    protocol: str,
    top1: Mapping[tuple[str, str, str], float],
    apart: Collection[int],
) -> list[str]:
    """The second condition against the first: on each set by paired seeds, and over the sets.

    `apart` are seeds that are no pairs.
    """
    (reference, ours), (candidate, theirs) = conditions.items()
    title = f"{candidate} against {reference}, {measure_name(protocol)}"
    seeds = sorted((set(ours) & set(theirs)) - set(apart))
    means = {
        place: {
            name: mean(top1[runs[seed], place, protocol] for seed in (seeds or runs))
            for name, runs in conditions.items()
        }
        for place in data
    }
    rank = mean_ranks(means, reference)[candidate]
    if len(data) == 1:
        sure = " on one data set"
    elif rank.difference_interval is None:
        sure = (
            f" on average over {len(data)} data sets; an interval over data sets needs "
            f"{FEWEST_VALUES} or more"
        )
    else:
        low, high = rank.difference_interval
        sure = (
            f" on average over {len(data)} data sets "
            f"({100 * (1 - ALPHA):g}% interval over data sets {low:+.1f} to {high:+.1f})"
        )
    lines = [f"{title}: {rank.mean_difference:+.1f} points{sure}"]
    if len(seeds) < 2:
        return lines
    pairs = [
        compare_paired(
            {seed: top1[theirs[seed], place, protocol] for seed in seeds},
            {seed: top1[ours[seed], place, protocol] for seed in seeds},
        )
        for place in data
    ]
    corrected = holm([pair for pair in pairs if pair is not None])
    names = short_names(data)
    lines += [
        f"  {names[place]}: {verdict(pair)}" for place, pair in zip(data, corrected, strict=True)
    ]
    return lines
