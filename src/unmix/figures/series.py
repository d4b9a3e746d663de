"""Conditions of a figure: runs that differ in the seed alone, and what they measured over training.

The commands group runs by all settings (`unmix.studies.grouping`); `conditions_of` does it for
results alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from unmix.display import counted, run_label
from unmix.figures.looks import Look, looks_of
from unmix.results import RunResults

__all__ = [
    "LOSSES",
    "Condition",
    "Metrics",
    "Point",
    "Series",
    "conditions_of",
    "joined_over_epochs",
    "looks_for",
    "notes_on_lines",
    "training_seconds",
]

# Column to epoch to value; epochs are counted when complete, so the first is 1.
Metrics = Mapping[str, Mapping[int, float]]

LOSSES = (
    "Losses with and without a mixture are sums of different terms: compare their course, not "
    "their height."
)
"""What a reader must know of curves of losses."""

_SETTINGS = ("data", "backbone", "width", "size", "epochs")


@dataclass(frozen=True)
class Point:
    """Values of one epoch over the seeds.

    Attributes:
        x: Epochs, or the mean of the seconds.
        mean: Over the seeds.
        std: Standard deviation (n - 1) over the seeds; 0 for one seed.
        seeds: How many.
    """

    x: float
    mean: float
    std: float
    seeds: int


@dataclass(frozen=True)
class Series:
    """What one condition measured over training.

    Attributes:
        name: Of the condition, the same in every figure.
        values: By seed and epoch; only finite values.
        seconds: When an epoch was complete, by seed and epoch, in seconds of training.
        machines: What the runs were trained on, as far as that is known.
        joined: Whether each epoch is the end of other runs, and none a part of the course of one.
    """

    name: str
    values: Mapping[int, Mapping[int, float]]
    seconds: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    machines: frozenset[str] = frozenset()
    joined: bool = False

    @property
    def measured(self) -> list[int]:
        """All epochs that a seed measured."""
        return sorted({epoch for own in self.values.values() for epoch in own})

    @property
    def shared(self) -> list[int]:
        """The epochs that all seeds measured which came as far.

        A mean over one seed at most epochs and over two at every fifth would be a sawtooth.
        """
        if self.joined:
            return self.measured
        seeds = [own for own in self.values.values() if own]
        return [e for e in self.measured if all(e in own for own in seeds if max(own) >= e)]

    @property
    def partial(self) -> bool:
        """Whether some seeds did not come as far as others."""
        return not self.joined and len({max(own) for own in self.values.values() if own}) > 1

    def points(self, against: str = "epochs") -> list[Point]:
        """A point for each epoch that the seeds share.

        Args:
            against: epochs, or time; then epochs whose time is not known are left out, and times
                of different machines have no mean.
        """
        found: list[Point] = []
        if against == "time" and len(self.machines) > 1:
            return found
        for epoch in self.shared:
            seeds = [seed for seed, own in self.values.items() if epoch in own]
            if against == "time":
                seeds = [seed for seed in seeds if epoch in self.seconds.get(seed, {})]
            if not seeds:
                continue
            ys = [self.values[seed][epoch] for seed in seeds]
            x = float(epoch)
            if against == "time":
                x = statistics.fmean(self.seconds[seed][epoch] for seed in seeds)
            std = statistics.stdev(ys) if len(ys) > 1 else 0.0
            found.append(Point(x, statistics.fmean(ys), std, len(ys)))
        return found


@dataclass(frozen=True)
class Condition:
    """Runs that differ in the seed alone.

    Attributes:
        name: What distinguishes the condition from the others.
        runs: Results by seed; at least one.
        metrics: What each run recorded, by seed: the result of `read_metrics`.
        curve: Conditions with the same text here differ in their epochs alone, and are one curve of
            accuracy against epochs.
    """

    name: str
    runs: Mapping[int, RunResults]
    metrics: Mapping[int, Metrics] = field(default_factory=dict)
    curve: str | None = None

    @property
    def first(self) -> RunResults:
        """One of its runs."""
        return next(iter(self.runs.values()))

    @property
    def machines(self) -> frozenset[str]:
        """What its runs were trained on, as far as it is known."""
        return frozenset(run.machine for run in self.runs.values()) - {""}

    def accuracies(self, protocol: str, last: bool = False) -> Series:
        """Top-1 accuracy in percent.

        Args:
            protocol: knn, linear, ...
            last: Of each run its last evaluation alone.
        """
        values = {
            seed: {row.epoch: row.top1 for row in (rows[-1:] if last else rows)}
            for seed, run in self.runs.items()
            if (rows := run.of(protocol))
        }
        return Series(self.name, values, {s: self._seconds(s) for s in values}, self.machines)

    def recorded(self, column: str) -> Series:
        """A column of `metrics.csv`; kNN and linear accuracies are completed by the results."""
        values = {}
        for seed, metrics in self.metrics.items():
            # Lightning renames a value that is logged per step and per epoch.
            own = dict(metrics.get(column) or metrics.get(f"{column}_epoch") or {})
            own |= {row.epoch: row.top1 for row in self.runs[seed].of(column)}
            if known := {epoch: v for epoch, v in sorted(own.items()) if math.isfinite(v)}:
                values[seed] = known
        return Series(self.name, values, {s: self._seconds(s) for s in values}, self.machines)

    def _seconds(self, seed: int) -> dict[int, float]:
        run = self.runs[seed]
        spent = run.training.get("seconds")
        # What a run took so far says nothing of the epochs of one that goes on.
        known = run.ended and isinstance(spent, int | float)
        total = float(spent) if known else None  # type: ignore[arg-type]
        batch_size = run.training.get("batch_size")
        if found := training_seconds(self.metrics.get(seed, {}), total, batch_size):
            return found
        # Without records: every epoch takes as long.
        return {} if total is None else {e: total * e / run.epochs for e in range(run.epochs + 1)}


def training_seconds(
    metrics: Metrics, total: float | None = None, batch_size: int | None = None
) -> dict[int, float]:
    """When each epoch was complete, in seconds of training without evaluations.

    From the images per second and the steps of each epoch that `metrics.csv` has; empty if it does
    not have them.

    Args:
        metrics: The result of `read_metrics`.
        total: Seconds of the whole run, if it has finished.
        batch_size: Images of a step; needed if the run has not finished.
    """
    rates, steps = metrics.get("images_per_second", {}), metrics.get("step", {})
    found, passed, before = {}, 0.0, 0.0
    for epoch in sorted(set(rates) & set(steps)):
        if not rates[epoch] > 0:
            return {}
        passed += (steps[epoch] - before) / rates[epoch]
        found[epoch], before = passed, steps[epoch]
    if not found or not passed > 0:
        return {}
    if total is not None:
        scale = total / passed
    elif batch_size is not None:
        scale = float(batch_size)
    else:
        return {}
    return {epoch: seconds * scale for epoch, seconds in found.items()}


def conditions_of(
    results: Sequence[RunResults], metrics: Mapping[str, Metrics] | None = None
) -> list[Condition]:
    """Group runs by what their results say, baselines first; each is named by what differs.

    Runs of the same settings and seed differ in a setting that results do not have, and are
    conditions of their own, with the name of the run. For metrics without results there is a
    condition of the name of the run too.

    Args:
        results: The runs.
        metrics: For each run's name, the result of `read_metrics`.
    """
    groups: dict[tuple[object, ...], list[RunResults]] = {}
    for run in sorted(results, key=lambda run: not run.baseline):
        key = (run.method, run.mixture, *(getattr(run, name) for name in _SETTINGS))
        groups.setdefault(key, []).append(run)
    varying = [name for name in _SETTINGS if len({getattr(r, name) for r in results}) > 1]
    known = metrics or {}
    found = []
    for runs in groups.values():
        repeated = len({run.seed for run in runs}) < len(runs)
        for members in [[run] for run in runs] if repeated else [runs]:
            own = [members[0].name] if repeated else []
            found.append(
                Condition(
                    ", ".join([*_words(members[0], varying), *own]),
                    {run.seed: run for run in members},
                    {run.seed: known[run.name] for run in members if run.name in known},
                    ", ".join([*_words(members[0], [v for v in varying if v != "epochs"]), *own]),
                )
            )
    have = {run.name for run in results}
    return found + [_without_results(n, own) for n, own in known.items() if n not in have]


def _without_results(name: str, metrics: Metrics) -> Condition:
    """A run that has not finished."""
    epochs = max((epoch for column in metrics.values() for epoch in column), default=0)
    unknown = RunResults(name, "", "none", "", "", 1.0, 0, epochs, 0, "")
    return Condition(name, {0: unknown}, {0: metrics})


def _words(run: RunResults, varying: Iterable[str]) -> list[str]:
    words = {
        "data": run.data,
        "backbone": run.backbone,
        "width": f"width {run.width:g}",
        "size": f"{run.size} px",
        "epochs": counted(run.epochs, "epoch"),
    }
    return [run_label(run.method, run.mixture), *(words[name] for name in varying)]


def looks_for(conditions: Sequence[Condition]) -> dict[str, Look]:
    """How each condition is drawn, in every figure of a page."""
    return looks_of({c.name: (c.first.method, c.first.mixture) for c in conditions})


def notes_on_lines(series: Iterable[Series]) -> list[str]:
    """What a reader must know of lines whose seeds did not all measure the same epochs."""
    every = list(series)
    notes = []
    if any(len(one.shared) < len(one.measured) for one in every):
        notes.append("Lines are at the epochs that all seeds measured.")
    if any(one.partial for one in every):
        notes.append("A line goes on with fewer seeds where others end.")
    return notes


def joined_over_epochs(
    conditions: Sequence[Condition], protocol: str, against: str = "epochs"
) -> list[tuple[Condition, Series]]:
    """The curves of an accuracy: of each condition, or of its runs of different lengths.

    Conditions that differ in their epochs alone are one curve of their last evaluations. Against
    time they are only if longer runs took longer, which on a shared machine may not be so.

    Args:
        conditions: Those without an evaluation by the protocol are left out.
        protocol: knn, linear, ...
        against: epochs or time.

    Returns:
        For each curve one of its conditions, and the values.
    """
    curves: dict[str, list[Condition]] = {}
    for condition in conditions:
        if any(run.of(protocol) for run in condition.runs.values()):
            curves.setdefault(condition.curve or condition.name, []).append(condition)
    found = []
    for name, members in curves.items():
        joined = _joined(name, members, protocol)
        xs = [point.x for point in joined.points(against)]
        if len(members) > 1 and xs and xs == sorted(xs):
            found.append((members[0], joined))
        else:
            found += [(member, member.accuracies(protocol)) for member in members]
    return found


def _joined(name: str, members: Sequence[Condition], protocol: str) -> Series:
    values: dict[int, dict[int, float]] = {}
    seconds: dict[int, dict[int, float]] = {}
    for member in members:
        last = member.accuracies(protocol, last=True)
        for seed, own in last.values.items():
            values.setdefault(seed, {}).update(own)
            own_seconds = last.seconds.get(seed, {})
            seconds.setdefault(seed, {}).update(
                {e: own_seconds[e] for e in own if e in own_seconds}
            )
    machines = frozenset(machine for member in members for machine in member.machines)
    return Series(name, values, seconds, machines, joined=True)
