"""Finished runs as conditions: grouped where they differ in the seed alone, and compared in words.

The comparisons are those of studies: paired by seed, corrected for their number, with the same
words.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unmix.errors import UserError
from unmix.per_image import per_image
from unmix.results import Evaluation, RunResults, protocols_of, settings_of
from unmix.statistics import compare_single_runs
from unmix.studies.analysis import Comparison, compare_conditions
from unmix.studies.plan import SHARED

__all__ = ["ComparedRun", "GroupedRuns", "RunGroup", "group_runs"]


@dataclass(frozen=True)
class ComparedRun:
    """A finished run.

    Attributes:
        folder: Its run folder.
        results: What it measured; `data` is the same name for the same data alone.
        settings: All that its result depends on.
        label: Its method and mixture.
    """

    folder: Path
    results: RunResults
    settings: Mapping[str, Any]
    label: str

    @property
    def key(self) -> tuple[Any, ...]:
        """The settings that runs of one condition share."""
        own = {**self.settings, "data": self.results.data}
        return tuple(sorted((k, str(v)) for k, v in own.items() if k != "seed"))

    def final(self, protocol: str) -> Evaluation | None:
        """Its evaluation at its last epoch, if there is one."""
        row = self.results.final(protocol)
        return row if row is not None and row.epoch == self.results.epochs else None


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in the seed alone.

    Attributes:
        name: What distinguishes it from the other groups.
        runs: By seed.
    """

    name: str
    runs: Mapping[int, ComparedRun]

    @property
    def first(self) -> ComparedRun:
        """One of its runs; their settings are the same."""
        return next(iter(self.runs.values()))

    def accuracies(self, protocol: str) -> dict[int, float]:
        """Accuracy in percent by seed."""
        rows = {seed: run.final(protocol) for seed, run in self.runs.items()}
        return {seed: row.top1 for seed, row in rows.items() if row is not None}


@dataclass(frozen=True)
class GroupedRuns:
    """Runs as conditions.

    Attributes:
        groups: By name, those without a mixture first.
        repeated: Runs of the same settings and seed as another one, which do not count again.
    """

    groups: Mapping[str, RunGroup]
    repeated: Sequence[str] = ()
    protocols: Sequence[str] = field(default=())

    @cached_property
    def families(self) -> dict[str, list[tuple[str, str]]]:
        """What is compared with what: mixtures with their method without one, methods last."""
        by_method: dict[str, list[RunGroup]] = {}
        for group in self.groups.values():
            by_method.setdefault(group.first.results.method, []).append(group)
        found = {}
        for method, groups in by_method.items():
            plain = [g for g in groups if g.first.results.baseline] or groups[:1]
            found[method] = [
                (group.name, (plain[0] if group in plain else _nearest(group, plain)).name)
                for group in groups
                if group is not plain[0]
            ]
        first, *others = [groups[0].name for groups in by_method.values()]
        return {**found, "methods": [(other, first) for other in others]}

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Those that can be made, each family corrected per protocol."""
        found = []
        for protocol in self.protocols:
            families = {
                family: [pair for pair in pairs if self.why_not(*pair, protocol) is None]
                for family, pairs in self.families.items()
            }
            found += compare_conditions(
                families, [protocol], lambda name, p: self.groups[name].accuracies(p)
            )
        return found

    def why_not(self, a: str, b: str, protocol: str) -> str | None:
        """Why two groups cannot be compared, in a clause; "" where one was not measured."""
        runs = [self.groups[name].first for name in (a, b)]
        for setting in ("data", "size", *SHARED):
            if setting == "data_dir":
                continue
            values = [getattr(run.results, setting, run.settings.get(setting)) for run in runs]
            if values[0] != values[1]:
                return f"{setting} is {_word(values[0])} and {_word(values[1])}"
        ours, theirs = (run.final(protocol) for run in runs)
        if ours is None or theirs is None:
            return ""
        a_way, b_way = (
            {**settings_of(row.details), "test_images": row.details.get("test_images")}
            for row in (ours, theirs)
        )
        for word in dict.fromkeys((*a_way, *b_way)):
            if a_way.get(word) != b_way.get(word):
                return f"{word} is {_word(a_way.get(word))} and {_word(b_way.get(word))}"
        return None

    def words(self) -> list[str]:
        """All comparisons in words, and those that are not possible."""
        lines = []
        for comparison in self.comparisons:
            lines.append(comparison.words())
            a, b = self.groups[comparison.candidate], self.groups[comparison.reference]
            if len(a.runs) == len(b.runs) == 1:
                lines.append(f"  single runs: {_single(a.first, b.first, comparison.protocol)}")
        for a_name, b_name in (pair for pairs in self.families.values() for pair in pairs):
            reasons = {self.why_not(a_name, b_name, p): None for p in self.protocols}
            lines += [
                f"{a_name} against {b_name}: different settings: no comparison ({why})"
                for why in reasons
                if why
            ]
        return lines

    def differing(self) -> dict[str, dict[str, Any]]:
        """For each setting that differs between the groups, each group's value."""
        own = {name: dict(group.first.settings) for name, group in self.groups.items()}
        for name, group in self.groups.items():
            own[name]["data"] = group.first.results.data
        names = [key for key in dict.fromkeys(k for o in own.values() for k in o) if key != "seed"]
        values = {key: {name: settings.get(key) for name, settings in own.items()} for key in names}
        return {k: v for k, v in values.items() if len(set(map(str, v.values()))) > 1}

    def as_dict(self) -> dict[str, Any]:
        """Conditions, and every number of the comparisons."""
        return {
            "conditions": {
                name: {
                    "runs": {str(seed): run.results.name for seed, run in group.runs.items()},
                    "accuracies": {p: group.accuracies(p) for p in self.protocols},
                }
                for name, group in self.groups.items()
            },
            "differing": self.differing(),
            "comparisons": [
                {
                    "family": c.family, "candidate": c.candidate, "reference": c.reference,
                    "protocol": c.protocol, **({} if c.result is None else asdict(c.result)),
                    "words": c.words(),
                }
                for c in self.comparisons
            ],
            "verdicts": self.words(),
        }  # fmt: skip


def group_runs(runs: Sequence[ComparedRun]) -> GroupedRuns:
    """Group runs that differ in the seed alone; each group is named by what differs.

    Args:
        runs: At least one.
    """
    found: dict[tuple[Any, ...], dict[int, ComparedRun]] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: not run.results.baseline):
        members = found.setdefault(run.key, {})
        if run.results.seed in members:
            first = members[run.results.seed].results.name
            repeated.append(
                f"{run.results.name} has the settings and the seed of {first}, and counts once."
            )
        members.setdefault(run.results.seed, run)
    names = _names([next(iter(members.values())) for members in found.values()])
    groups = {
        name: RunGroup(name, dict(sorted(members.items())))
        for name, members in zip(names, found.values(), strict=True)
    }
    return GroupedRuns(groups, tuple(repeated), tuple(protocols_of([r.results for r in runs])))


def _names(runs: Sequence[ComparedRun]) -> list[str]:
    """Method and mixture, and the settings that differ where these are the same."""
    names = []
    for run in runs:
        same_label = [other for other in runs if other.label == run.label]
        keys = dict.fromkeys(key for other in same_label for key, _ in other.key)
        values = {key: {str(dict(other.key).get(key)) for other in same_label} for key in keys}
        words = [
            f"{key} {_word(run.results.data if key == 'data' else run.settings.get(key))}"
            for key in keys
            if len(values[key]) > 1
        ]
        names.append(", ".join([run.label, *words]))
    return names


def _nearest(group: RunGroup, others: Sequence[RunGroup]) -> RunGroup:
    """The one with the fewest other settings."""
    own = set(group.first.key)
    return min(others, key=lambda other: len(own ^ set(other.first.key)))


def _single(a: ComparedRun, b: ComparedRun, protocol: str) -> str:
    """Two encoders on the same test images, or why they cannot be compared image by image."""
    found = []
    for run in (a, b):
        row = run.final(protocol)
        assert row is not None
        try:
            found.append(per_image(run.folder, row))
        except UserError as error:
            command = "knn" if protocol == "knn" else f"probe --protocol {protocol}"
            folder = shlex.quote(str(run.folder))
            return (
                f"no test image by image, for {run.results.name}: {error} "
                f"(unmix {command} {folder} measures them)"
            )
    if found[0].images != found[1].images:
        return "no test image by image: their test images differ"
    return str(compare_single_runs(found[0].correct, found[1].correct))


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
