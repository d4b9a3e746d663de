"""What conditions over paired seeds show: comparisons, cost, and the answer in words.

Studies and `unmix compare` both make `Findings` of what they have, so that there is one grouping,
one statistics and one wording.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from unmix.display import (
    DASH,
    Answer,
    counted,
    duration,
    measure_name,
    number,
    percents,
    ratio,
)
from unmix.names import in_words
from unmix.statistics import fewest_pairs
from unmix.studies.comparisons import Comparison, compare_conditions

__all__ = [
    "BUSY",
    "Comparison",
    "Findings",
    "Measured",
    "TableCell",
    "compare_conditions",
]

BUSY = " (busy)"
"""Behind a time that was measured while other processes took cores from the training."""
_CLOSE = 0.01  # costs that differ by less are called the same


@dataclass(frozen=True)
class Measured:
    """A condition, and what its runs measured.

    Attributes:
        name: Of the condition.
        accuracies: In percent, by measure and seed.
        seeds: Of the runs that have ended.
        epochs: Of these runs, usually one number.
        seconds: Of training, of each run where it is known.
        machines: What the runs were trained on; times on different ones are not compared.
        busy: In how many runs other processes took cores that the training could have used.
        forward_equivalents: Of a step; None if unknown. See `unmix.studies.cost`.
        images: That a run trains on in all: images of a step times steps.
        running: How many of its runs are still trained.
        computed: By seed the precision that was set, and the one that was computed in.
    """

    name: str
    accuracies: Mapping[str, Mapping[int, float]]
    seeds: Sequence[int] = ()
    epochs: Sequence[int] = ()
    seconds: Sequence[float] = ()
    machines: frozenset[str] = frozenset()
    busy: int = 0
    forward_equivalents: float | None = None
    images: float | None = None
    running: int = 0
    computed: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def time(self) -> float | None:
        """Median seconds of training."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def spent(self) -> float | None:
        """Cost of a run: forward-equivalents of all its images."""
        known = self.forward_equivalents is not None and self.images is not None
        return self.forward_equivalents * self.images if known else None  # type: ignore[operator]


class TableCell(NamedTuple):
    """A cell of the table of conditions: its text, and the numbers behind it."""

    text: str
    value: float | None = None
    spread: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Findings:
    """Conditions, what is compared with what, and the results.

    Attributes:
        conditions: By name, references before what is compared with them.
        measures: Evaluation protocols, as "knn", or on other data, as "knn on digits".
        families: Pairs (candidate, reference) that a correction is over, by name.
        why_not: From two conditions and a measure to why they are not compared, in a clause; ""
            where one was not measured, None where they are.
        exploratory: Whether there is no verdict, whatever the runs show.
    """

    conditions: Mapping[str, Measured]
    measures: Sequence[str]
    families: Mapping[str, Sequence[tuple[str, str]]]
    why_not: Callable[[str, str, str], str | None] = field(default=lambda a, b, measure: None)
    exploratory: bool = False

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Those that can be made, each family corrected per measure."""
        found = []
        for measure in self.measures:
            families = {
                family: [pair for pair in pairs if self.why_not(*pair, measure) is None]
                for family, pairs in self.families.items()
            }
            found += compare_conditions(
                families,
                [measure],
                lambda name, m: self.conditions[name].accuracies.get(m, {}),
                self.apart,
            )
        return found

    def apart(self, a: str, b: str) -> dict[int, tuple[str, str]]:
        """The seeds of two conditions that are no pairs, with the precisions of both.

        With `precision: auto` machines compute in what they are fast at, so that a difference may
        be that of two machines. Where other precisions are set, they are what is compared.
        """
        ours, theirs = (self.conditions[name].computed for name in (a, b))
        return {
            seed: (ours[seed][1], theirs[seed][1])
            for seed in sorted(set(ours) & set(theirs))
            if ours[seed][0] == theirs[seed][0] and ours[seed][1] != theirs[seed][1]
        }

    def no_pairs(self) -> list[str]:
        """A sentence for each comparison with seeds that are no pairs."""
        lines = []
        for a, b in self.compared:
            if found := self.apart(a, b):
                kinds = in_words(list(dict.fromkeys(f"{x} and {y}" for x, y in found.values())))
                seeds = in_words([str(seed) for seed in found])
                lines.append(
                    f"{a} against {b}: seed{'s' * (len(found) > 1)} {seeds} of both are no pairs, "
                    f"as they were computed in different precision ({kinds})"
                )
        return lines

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Everything that is compared with something, once."""
        return list(dict.fromkeys(pair for pairs in self.families.values() for pair in pairs))

    @property
    def compared(self) -> list[tuple[str, str]]:
        """Those of `pairs` that are compared by some measure, or will be."""
        return [
            (a, b)
            for a, b in self.pairs
            if not self.measures or any(not self.why_not(a, b, m) for m in self.measures)
        ]

    def refusals(self) -> list[str]:
        """The comparisons that are not possible, in sentences."""
        lines = []
        for a, b in self.pairs:
            reasons = {self.why_not(a, b, measure): None for measure in self.measures}
            lines += [
                f"{a} against {b}: different settings: no comparison ({why})"
                for why in reasons
                if why
            ]
        return lines

    def words(self) -> list[str]:
        """All comparisons in words, then those that are not possible or not yet."""
        made = [c.words(self.exploratory) for c in self.comparisons if c.result is not None]
        return [*made, *self.refusals(), *self.unpaired(), *self.no_pairs()]

    def unpaired(self) -> list[str]:
        """The comparisons without a seed that both conditions have, in one sentence or none."""
        measures: dict[str, list[str]] = {}
        for c in self.comparisons:
            if c.result is None:
                pair = f"{c.candidate} against {c.reference}"
                measures.setdefault(pair, []).append(measure_name(c.protocol))
        pairs = [
            pair if len(by) == len(self.measures) else f"{pair} ({', '.join(by)})"
            for pair, by in measures.items()
        ]
        return [f"{'; '.join(pairs)}: no seed in common: no comparison"] if pairs else []

    @cached_property
    def leading(self) -> Comparison | None:
        """The comparison that the answer opens with: by the first measure, of the best condition.

        Of those that show a better condition, the one whose winner has the highest mean; otherwise
        the one with the highest mean of either condition.
        """
        measured = [c for c in self.comparisons if c.result is not None]
        if not measured:
            return next(iter(self.comparisons), None)
        first = [c for c in measured if c.protocol == measured[0].protocol]
        shown = [c for c in first if c.winner is not None and not self.exploratory]

        def height(c: Comparison) -> tuple[float, float]:
            names = [c.winner] if c.winner is not None else [c.candidate, c.reference]
            return max(self._mean(name, c.protocol) for name in names), abs(c.result.mean)  # type: ignore[union-attr]

        return max(shown or first, key=height)

    def _mean(self, name: str, measure: str) -> float:
        return statistics.fmean(self.conditions[name].accuracies.get(measure, {0: 0.0}).values())

    def answer(self) -> Answer:
        """Which condition is better, by how much, how sure, at what cost; then the others."""
        one = self.leading
        if one is None:
            return Answer(self._without_comparison(), others=self.refusals())
        others = [
            c.words(self.exploratory)
            for c in self.comparisons
            if c is not one and c.result is not None
        ]
        pairs = [(one.candidate, one.reference)]
        pairs += [pair for pair in self.compared if pair not in pairs]
        first, *more = [self.cost(*pair) for pair in pairs]
        others += [*(line for line in more if line), *self.refusals()]
        others += self.unpaired() if one.result is not None else []
        others += self.no_pairs()
        return Answer(self._headline(one), _sure(one, self.exploratory), first, others)

    def _headline(self, c: Comparison) -> str:
        """A comparison as the first sentence."""
        by = measure_name(c.protocol)
        if c.result is None:
            return f"{c.candidate} and {c.reference} have no seed in common: no comparison."
        amount = f"{abs(c.result.mean):.1f} points"
        side = "above" if c.result.mean >= 0 else "below"
        place = f"{c.candidate} is {amount} {side} {c.reference} ({by})"
        if self.exploratory:
            return f"{place}, without a verdict."
        if c.outcome in ("better", "worse"):
            return f"{c.candidate} is {c.outcome} than {c.reference} by {amount} ({by})."
        if c.outcome == "too few":
            return f"No verdict yet: {place}."
        if c.outcome == "undecided":
            return f"Undecided: {place}."
        return f"No difference that these runs can show: {place}."

    def _without_comparison(self) -> str:
        """What there is to say where nothing is compared."""
        if not any(c.accuracies.get(m) for c in self.conditions.values() for m in self.measures):
            return "There is no accuracy to compare yet."
        if len(self.conditions) > 1:
            return "These conditions cannot be compared."
        ((name, one),) = self.conditions.items()
        parts = [
            f"{measure_name(m)} {percents(list(one.accuracies[m].values()))}%"
            for m in self.measures
            if one.accuracies.get(m)
        ]
        seeds = counted(len(one.seeds), "seed")
        return f"{name}: {', '.join(parts)} ({seeds}); one condition, so nothing to compare."

    def cost(self, candidate: str, reference: str) -> str:
        """What a condition costs, compared with another, in a sentence; "" if nothing is known."""
        a, b = self.conditions[candidate], self.conditions[reference]
        parts = [part for part in (_compute(a, b), _time(a, b)) if part]
        words = ", and ".join(parts)
        return f"Cost of {candidate} against {reference}: {words}." if parts else ""

    def columns(self) -> list[str]:
        """Headings of the table of conditions."""
        head = ["condition", "epochs", "forward-equivalents", "cost", "time per run", "seeds"]
        return [*head, *map(measure_name, self.measures)]

    def rows(self) -> list[list[TableCell]]:
        """A row for each condition: what it cost, and mean and deviation of its accuracies.

        An accuracy is marked if a test shows that it is better than the reference's.
        """
        best = set() if self.exploratory else {(c.winner, c.protocol) for c in self.comparisons}
        spent = [c.spent for c in self.conditions.values()]
        cheapest = min([s for s in spent if s], default=0.0)
        rows = []
        for name, one in self.conditions.items():
            cells = [TableCell(name), *_cost_cells(one, cheapest), _seeds(one)]
            for measure in self.measures:
                values = list(one.accuracies.get(measure, {}).values())
                cells.append(
                    TableCell(
                        percents(values),
                        statistics.fmean(values) if values else None,
                        statistics.stdev(values) if len(values) > 1 else None,
                        (name, measure) in best,
                    )
                )
            rows.append(cells)
        return rows


def _cost_cells(one: Measured, cheapest: float) -> list[TableCell]:
    """Epochs, forward-equivalents, cost and time of a condition."""
    epochs = sorted(set(one.epochs))
    each, spent, time = one.forward_equivalents, one.spent, one.time
    share = spent / cheapest if spent and cheapest else None
    return [
        TableCell(", ".join(map(str, epochs)) or DASH, epochs[0] if len(epochs) == 1 else None),
        TableCell(DASH if each is None else f"{each:.1f}", each),
        TableCell(DASH if share is None else ratio(share), share),
        TableCell(DASH if time is None else duration(time) + _marks(one), time),
    ]


def _marks(one: Measured) -> str:
    """Behind the median of times that do not compare."""
    machines = len(one.machines - {""})
    return (f" ({machines} machines)" if machines > 1 else "") + BUSY * (one.busy > 0)


def _seeds(one: Measured) -> TableCell:
    running = f", {one.running} running" if one.running else ""
    if not one.seeds and not one.running:
        return TableCell(DASH, 0)
    return TableCell(f"{len(one.seeds)}{running}", len(one.seeds))


def _sure(c: Comparison, exploratory: bool) -> str:
    """How sure a comparison is, in a sentence."""
    if c.result is None:
        return ""
    n, many = c.result.pairs, c.result.comparisons
    seeds = counted(n, "paired seed")
    if exploratory:
        return f"{seeds[0].upper()}{seeds[1:]}; this study is exploratory."
    if c.outcome == "too few":
        over = "" if many == 1 else f" for {many} comparisons"
        return f"{seeds} cannot show a difference; {fewest_pairs(many)} are needed{over}."
    low, high = c.result.interval or (c.result.mean, c.result.mean)
    p = f"p = {number(c.result.p, 2)} by the exact sign-flip test"
    if many > 1:
        corrected = number(c.result.p_adjusted, 2)
        p += f", {corrected} after the correction for {many} comparisons"
    return f"95% interval {low:+.1f} to {high:+.1f} over {seeds}; {p}."


def _compute(a: Measured, b: Measured) -> str:
    """Forward-equivalents of one condition, compared with those of another."""
    if not a.spent or not b.spent:
        return ""
    each = (a.forward_equivalents, b.forward_equivalents)
    texts = [f"{x:.1f}" for x in each]
    same = texts[0] == texts[1]
    details = [f"{texts[0]} a step" if same else f"{texts[0]} instead of {texts[1]} a step"]
    if set(a.epochs) != set(b.epochs):
        of_a, of_b = (" or ".join(map(str, sorted(set(c.epochs)))) for c in (a, b))
        details.append(f"{of_a} instead of {of_b} epochs")
    times = a.spent / b.spent
    if abs(times - 1) < _CLOSE:
        return f"as many forward-equivalents ({each[0]:.1f} a step)"
    return f"{ratio(times)} the forward-equivalents ({', '.join(details)})"


def _time(a: Measured, b: Measured) -> str:
    """Measured time of one condition, compared with that of another."""
    # Of several machines the median is the time of none.
    if not a.time or not b.time or max(len(a.machines), len(b.machines)) > 1:
        return ""
    if a.machines != b.machines:
        elsewhere = f"instead of {duration(b.time)} on other hardware"
        return f"{duration(a.time)} of training ({elsewhere}{_busy(a, b)})"
    times, both = a.time / b.time, (duration(a.time), duration(b.time))
    # A ratio of two times that read the same would say more than was measured.
    if both[0] == both[1] or abs(times - 1) < _CLOSE:
        return f"as much training time ({' and '.join(dict.fromkeys(both))}{_busy(a, b)})"
    return f"{ratio(times)} the training time ({both[0]} instead of {both[1]}{_busy(a, b)})"


def _busy(a: Measured, b: Measured) -> str:
    return ", on a busy machine" if a.busy or b.busy else ""
