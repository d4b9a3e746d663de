"""The answer that a report opens with: what is better, how sure that is, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unmix.display import counted, duration, measure_name, points, ratio
from unmix.figures.report_content import Answer
from unmix.names import shown
from unmix.studies.analysis import Comparison

__all__ = ["Spent", "answer_of", "cost_words"]


@dataclass(frozen=True)
class Spent:
    """What training a condition took.

    Attributes:
        forwards: Forward-equivalents of a step.
        images: Images of the whole training.
        seconds: Median over the seeds.
    """

    forwards: float | None = None
    images: float | None = None
    seconds: float | None = None


def answer_of(
    comparisons: Sequence[Comparison],
    spent: Mapping[str, Spent],
    *,
    exploratory: bool = False,
    others: Sequence[str] = (),
    nothing: str = "Nothing is measured yet.",
) -> Answer:
    """Which condition is better, by how much, how sure, at what extra cost.

    The first protocol by which anything is decided decides; of several comparisons the largest
    gain is the headline, and all others follow.

    Args:
        comparisons: In the order in which they were planned.
        spent: Of each condition.
        exploratory: Whether there is no verdict by design.
        others: Further sentences.
        nothing: The headline without comparisons.
    """
    made = [c for c in comparisons if c.result is not None]
    if not made:
        return Answer(nothing, others=[*(c.words() for c in comparisons), *others])
    first = _most_telling(made, exploratory)
    rest = [*(c.words(exploratory) for c in comparisons if c is not first), *others]
    return Answer(
        _headline(first, made, exploratory),
        _sure(first, exploratory),
        cost_words(first.candidate, first.reference, spent),
        rest,
    )


def _most_telling(made: Sequence[Comparison], exploratory: bool) -> Comparison:
    decided = [c for c in made if c.outcome in ("better", "worse")]
    if exploratory or not decided:
        return made[0]
    same = [c for c in decided if c.protocol == decided[0].protocol]
    better = [c for c in same if c.outcome == "better"] or same
    return max(better, key=lambda c: abs(c.result.mean) if c.result else 0.0)


def _headline(first: Comparison, made: Sequence[Comparison], exploratory: bool) -> str:
    assert first.result is not None
    pair = f"{shown(first.candidate)} {{}} {shown(first.reference)}"
    title, mean = measure_name(first.protocol), first.result.mean
    if first.outcome in ("better", "worse") and not exploratory:
        words = f"is {first.outcome} than"
        return f"{pair.format(words)} by {abs(mean):.1f} points ({title})."
    few = exploratory or first.outcome in ("too few", "none")
    if len(made) > 1 and not few:
        return f"None of {len(made)} comparisons shows a difference."
    if few:
        return f"No verdict: {pair.format('against')}, {points(mean)} points ({title})."
    return f"No difference is shown: {pair.format('against')}, {points(mean)} points ({title})."


def _sure(first: Comparison, exploratory: bool) -> str:
    found = first.result
    assert found is not None
    seeds = f"over {counted(found.pairs, 'paired seed')}"
    if exploratory:
        return f"{seeds.capitalize()}; the study is exploratory, and gives no verdict by design."
    if first.outcome == "too few" or found.interval is None:
        return f"{first.verdict().capitalize()}."
    low, high = found.interval
    text = (
        f"95% interval {points(low)} to {points(high)} points {seeds}, exact test p = {found.p:.2g}"
    )
    if found.comparisons > 1:
        text += f", {found.p_adjusted:.2g} corrected for {found.comparisons} comparisons"
    return f"{text}."


def cost_words(candidate: str, reference: str, spent: Mapping[str, Spent]) -> str:
    """What a condition costs beside another, in a sentence; empty if it is not known."""
    ours, theirs = spent.get(candidate, Spent()), spent.get(reference, Spent())
    parts = []
    if ours.forwards and theirs.forwards:
        total = [s.forwards * (s.images or 1.0) for s in (ours, theirs) if s.forwards]
        times = total[0] / total[1]
        each = f"{ours.forwards:.1f} and {theirs.forwards:.1f} forward-equivalents a step"
        if 0.98 < times < 1.02:
            parts.append(f"both cost the same to train ({each})")
        else:
            parts.append(f"it costs {ratio(times)} to train ({each})")
    if ours.seconds and theirs.seconds:
        took = f"{duration(ours.seconds)} and {duration(theirs.seconds)}"
        parts.append(f"a run took {took} here")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
