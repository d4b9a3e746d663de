"""Single runs as conditions: grouped where they differ in the seed alone, named, and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unmix.config import field_names
from unmix.display import measure_name, value_text
from unmix.errors import UserError
from unmix.results import Evaluation, RunResults, is_transfer, protocols_of
from unmix.rows import settings_of
from unmix.studies.comparisons import computed_in
from unmix.studies.findings import Findings, Measured
from unmix.studies.image_by_image import other_images, single_runs
from unmix.studies.naming import Named, by_augmentation, differing, names_of

__all__ = ["ComparedRun", "GroupedRuns", "RunGroup", "group_runs"]

# What changes neither the training nor what is compared: the seed, what computes, and how often
# and how a run was evaluated, which each accuracy says itself.
_NO_CONDITION = {"seed", "device", "augmentation", *field_names("evaluation")}
# What two conditions must share to be compared by accuracies on their own data.
_SHARED = ("data", "size", "limit")
# Known of a finished run alone.
_COUNTS = ("train_images", "test_images")
# What is known of weights that were imported, besides their file.
_OF_WEIGHTS = (
    "method", "epochs", "size", "backbone", "width", "stem", "patch", "heads", "depth", "registers",
    "class_token", "pooling", "view",
)  # fmt: skip

CostOf = Callable[["ComparedRun"], float | None]
"""From a run to the forward-equivalents of its step, if they are known."""


@dataclass(frozen=True)
class ComparedRun:
    """A run, finished or not.

    Attributes:
        folder: Its run folder.
        results: What it measured; `data` is the same name for the same data alone. An accuracy on
            other data has a protocol of its own, as "knn on digits".
        settings: All that its result depends on.
        label: Its method and mixture.
        at: The epochs after which it is compared; None for the end.
    """

    folder: Path
    results: RunResults
    settings: Mapping[str, Any]
    label: str
    at: int | None = None

    @cached_property
    def own(self) -> dict[str, Any]:
        """The settings that runs of one condition share."""
        kept = {k: v for k, v in self.settings.items() if k not in _NO_CONDITION}
        if self.results.baseline:
            kept = {k: v for k, v in kept.items() if k not in field_names("mixture")}
        weights = _weights(kept.get("init"), kept.pop("init_sha256", None))
        teacher = _weights(kept.get("teacher"), kept.pop("teacher_sha256", None))
        if teacher is not None:
            kept["teacher"] = teacher
        if self.results.imported:
            # How other weights were trained is not known, so that is no difference; the settings'
            # method is the one whose class rebuilds the encoder.
            kept = {k: v for k, v in kept.items() if k in _OF_WEIGHTS}
            kept |= {"weights": weights, "method": self.results.method}
        elif weights is not None:
            kept["init"] = weights
        return {**kept, "mixture": self.results.mixture, "data": self.results.data}

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for runs of one condition."""
        return tuple(sorted((name, str(value)) for name, value in self.own.items()))

    @property
    def name(self) -> str:
        """Of the run."""
        return self.results.name

    def final(self, protocol: str) -> Evaluation | None:
        """Its evaluation after the epochs that are compared, if there is one."""
        epoch = self.results.epochs if self.at is None else self.at
        rows = [row for row in self.results.of(protocol) if row.epoch == epoch]
        return rows[-1] if rows else None


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in the seed alone.

    Attributes:
        name: What distinguishes it from the other groups.
        runs: By seed.
        repeated: Others of these settings and seeds, which do not count.
    """

    name: str
    runs: Mapping[int, ComparedRun]
    repeated: Sequence[ComparedRun] = ()

    @property
    def first(self) -> ComparedRun:
        """One of its runs; their settings are the same."""
        return next(iter(self.runs.values()))

    @property
    def all(self) -> list[ComparedRun]:
        """Its runs, also those that do not count."""
        return [*self.runs.values(), *self.repeated]

    @property
    def ended(self) -> list[ComparedRun]:
        """Its runs that are finished."""
        return [run for run in self.runs.values() if run.results.ended]

    def accuracies(self, protocol: str) -> dict[int, float]:
        """Accuracy in percent by seed."""
        rows = {seed: run.final(protocol) for seed, run in self.runs.items()}
        return {seed: row.top1 for seed, row in rows.items() if row is not None}

    def ways(self, protocol: str) -> dict[str, set[str]]:
        """How its accuracies were measured: for each setting of a row its values, as text."""
        rows = [row for run in self.runs.values() if (row := run.final(protocol)) is not None]
        known = [way_of(row) for row in rows]
        return {
            word: {str(way.get(word)) for way in known if word in way or word not in _COUNTS}
            for word in dict.fromkeys(word for way in known for word in way)
        }


def way_of(row: Evaluation) -> dict[str, Any]:
    """How a row was measured, as far as it is known."""
    counts = {word: row.details[word] for word in _COUNTS if word in row.details}
    return {**settings_of(row.details), **counts}


@dataclass(frozen=True)
class GroupedRuns:
    """Runs as conditions.

    Attributes:
        groups: By name; method by method, those without a mixture first.
        repeated: A sentence for each run of the same settings and seed as another one.
        protocols: By which runs were evaluated.
        cost_of: The forward-equivalents of a condition's run.
        reference: The condition that all others are compared with; None chooses.
    """

    groups: Mapping[str, RunGroup]
    repeated: Sequence[str] = ()
    protocols: Sequence[str] = field(default=())
    cost_of: CostOf = lambda run: None
    reference: str | None = None

    @cached_property
    def families(self) -> dict[str, list[tuple[str, str]]]:
        """What is compared with what: mixtures with their method without one, then methods."""
        if self.reference is not None:
            return {"": [(name, self.reference) for name in self.groups if name != self.reference]}
        # Conditions on other images are compared with the first alone, which says why they cannot.
        by_data: dict[tuple[str, ...], list[RunGroup]] = {}
        for group in self.groups.values():
            by_data.setdefault(tuple(str(_shared(group, s)) for s in _SHARED), []).append(group)
        found: dict[str, list[tuple[str, str]]] = {}
        firsts = []
        for members in by_data.values():
            by_method: dict[str, list[RunGroup]] = {}
            for group in members:
                by_method.setdefault(group.first.results.method, []).append(group)
            for method, groups in by_method.items():
                plain = [g for g in groups if g.first.results.baseline] or groups[:1]
                found.setdefault(method, []).extend(
                    (group.name, (plain[0] if group in plain else _nearest(group, plain)).name)
                    for group in groups
                    if group is not plain[0]
                )
            first, *others = [groups[0].name for groups in by_method.values()]
            found.setdefault("methods", []).extend((other, first) for other in others)
            firsts.append(first)
        return {**found, "data": [(other, firsts[0]) for other in firsts[1:]]}

    @property
    def measured(self) -> bool:
        """Whether any accuracy can be compared."""
        return any(g.accuracies(p) for g in self.groups.values() for p in self.protocols)

    @cached_property
    def findings(self) -> Findings:
        """The conditions with what was measured, and their comparisons."""
        return Findings(
            {name: self._measured(group) for name, group in self.groups.items()},
            self.protocols,
            self.families,
            self.why_not,
        )

    def _measured(self, group: RunGroup) -> Measured:
        ended, first = group.ended, group.first
        seconds = [run.results.training.get("seconds") for run in ended]
        steps = next((s for r in ended if (s := r.results.training.get("steps"))), None)
        batch = first.settings.get("batch_size")
        return Measured(
            group.name,
            {protocol: group.accuracies(protocol) for protocol in self.protocols},
            seeds=[run.results.seed for run in ended],
            epochs=[run.results.epochs for run in group.runs.values()],
            seconds=[float(s) for s in seconds if isinstance(s, int | float)],
            busy=sum(run.results.busy is not None for run in ended),
            machines=frozenset(run.results.machine for run in ended),
            forward_equivalents=self.cost_of(first),
            images=steps * batch if steps and batch else None,
            running=len(group.runs) - len(ended),
            computed=computed_in(
                (run.results.seed, run.settings, run.results.hardware) for run in ended
            ),
        )

    def why_not(self, a: str, b: str, protocol: str) -> str | None:
        """Why two groups cannot be compared, in a clause; "" where one was not measured."""
        one, other = self.groups[a], self.groups[b]
        # On other data it does not matter what an encoder was trained on.
        for setting in ("size",) if is_transfer(protocol) else _SHARED:
            both = [_shared(group, setting) for group in (one, other)]
            if both[0] != both[1]:
                return f"{setting} is {_text(both[0])} and {_text(both[1])}"
        if not one.accuracies(protocol) or not other.accuracies(protocol):
            return ""
        ours, theirs = one.ways(protocol), other.ways(protocol)
        for word in dict.fromkeys((*ours, *theirs)):
            for group, ways in ((one, ours), (other, theirs)):
                if len(had := sorted(ways.get(word, ()))) > 1:
                    return f"{_word(word)} is {' and '.join(had)} in runs of {group.name}"
            pair = [ways.get(word) or {"None"} for ways in (ours, theirs)]
            if pair[0] != pair[1] and not (word in _COUNTS and {"None"} in pair):
                return f"{_word(word)} is {next(iter(pair[0]))} and {next(iter(pair[1]))}"
        if is_transfer(protocol) and other_images(one.first, other.first, protocol):
            return "their test images differ"
        return None

    def words(self) -> list[str]:
        """All comparisons in words, and those that are not possible."""
        lines = []
        for comparison in self.findings.comparisons:
            lines.append(comparison.words())
            a, b = self.groups[comparison.candidate], self.groups[comparison.reference]
            if len(a.runs) == len(b.runs) == 1:
                by = comparison.protocol
                lines.append(
                    f"  single runs, {measure_name(by)}: {single_runs(a.first, b.first, by)}"
                )
        return [*lines, *self.findings.refusals(), *self.findings.no_pairs()]

    def differing(self) -> dict[str, dict[str, Any]]:
        """For each setting that differs between the groups, each group's value."""
        return differing({name: group.first.own for name, group in self.groups.items()})

    def common(self) -> dict[str, Any]:
        """The settings that no two groups have differently."""
        own: dict[str, Any] = {}
        for settings in by_augmentation([group.first.own for group in self.groups.values()]):
            own |= settings
        return {name: value for name, value in own.items() if name not in self.differing()}

    def as_dict(self) -> dict[str, Any]:
        """Conditions, and every number of the comparisons."""
        return {
            "answer": asdict(self.findings.answer()),
            "conditions": {
                name: {
                    "runs": {str(seed): run.name for seed, run in group.runs.items()},
                    "accuracies": {p: group.accuracies(p) for p in self.protocols},
                    "forward_equivalents": self.findings.conditions[name].forward_equivalents,
                    "seconds": self.findings.conditions[name].time,
                    "settings": group.first.own,
                }
                for name, group in self.groups.items()
            },
            "differing": self.differing(),
            "common": self.common(),
            "comparisons": [c.as_dict() for c in self.findings.comparisons],
            "verdicts": self.words(),
        }


def group_runs(
    runs: Sequence[ComparedRun],
    cost_of: CostOf = lambda run: None,
    reference: str | None = None,
) -> GroupedRuns:
    """Group runs that differ in the seed alone; each group is named by what differs.

    Args:
        runs: At least one.
        cost_of: The forward-equivalents of a step of a run, if they are known.
        reference: Name of the condition that all others are compared with.

    Raises:
        UserError: if there is no such condition.
    """
    found: dict[tuple[Any, ...], dict[int, ComparedRun]] = {}
    again: dict[tuple[Any, ...], list[ComparedRun]] = {}
    notes = []
    # Of a finished run and an unfinished one with the same seed the finished one counts.
    ordered = sorted(runs, key=lambda run: (not run.results.baseline, not run.results.ended))
    # A mixture stands below what it is compared with.
    methods = list(dict.fromkeys(run.results.method for run in ordered))
    for run in sorted(ordered, key=lambda run: methods.index(run.results.method)):
        members = found.setdefault(run.key, {})
        first = members.setdefault(run.results.seed, run)
        if first is not run:
            again.setdefault(run.key, []).append(run)
            notes.append(f"{run.name} has the settings and the seed of {first.name}; counted once.")
    firsts = [next(iter(members.values())) for members in found.values()]
    names = names_of([Named(r.label, r.results.method, r.results.mixture, r.own) for r in firsts])
    if reference is not None and reference not in names:
        raise UserError(
            f"{reference!r} is none of the conditions: {'; '.join(names)}.", parameter="reference"
        )
    groups = {
        name: RunGroup(name, dict(sorted(members.items())), again.get(key, ()))
        for name, (key, members) in zip(names, found.items(), strict=True)
    }
    protocols = protocols_of([run.results for run in runs])
    return GroupedRuns(groups, tuple(notes), tuple(protocols), cost_of, reference)


def _weights(init: Any, sha256: Any) -> str | None:
    """Weights by the name of their file and the first digits of its SHA-256."""
    if init is None:
        return None
    return Path(str(init)).name + (f" ({str(sha256)[:8]})" if sha256 else "")


def _shared(group: RunGroup, setting: str) -> Any:
    first = group.first
    return getattr(first.results, setting, first.settings.get(setting))


def _nearest(group: RunGroup, others: Sequence[RunGroup]) -> RunGroup:
    """The one with the fewest other settings; a mixture's own do not count."""
    skipped = set(field_names("mixture"))

    def own(one: RunGroup) -> Counter[tuple[str, str]]:
        return Counter((k, v) for k, v in one.first.key if k not in skipped)

    return min(others, key=lambda other: sum((own(group) - own(other)).values()))


def _word(name: str) -> str:
    return measure_name(name) if name in _COUNTS else name


def _text(value: Any) -> str:
    return "none" if value is None else value_text(value)
