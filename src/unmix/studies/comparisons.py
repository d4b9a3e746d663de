"""Two conditions by one measure: the paired comparison, and its words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unmix.display import counted, measure_name
from unmix.statistics import Outcome, PairedComparison, compare_paired, holm, outcome, verdict

__all__ = ["Comparison", "command_of", "compare_conditions", "computed_in"]


@dataclass(frozen=True)
class Comparison:
    """Two conditions by one measure.

    Attributes:
        family: Comparisons that Holm's correction is over.
        protocol: The measure: an evaluation protocol, or one on other data, as "knn on digits".
        result: None if the two have no seed in common.
    """

    family: str
    candidate: str
    reference: str
    protocol: str
    result: PairedComparison | None

    @property
    def outcome(self) -> Outcome:
        """What it shows, in a word."""
        return outcome(self.result)

    @property
    def winner(self) -> str | None:
        """The condition that is shown to be better, if one is."""
        return {"better": self.candidate, "worse": self.reference}.get(self.outcome)

    def short(self) -> str:
        """The mean difference with its interval, for a figure."""
        if self.result is None:
            return "no seed in common"
        if self.result.interval is None or self.outcome == "too few":
            return f"{self.result.mean:+.1f} (too few seeds to tell)"
        low, high = self.result.interval
        return f"{self.result.mean:+.1f} (95% interval {low:+.1f} to {high:+.1f})"

    def verdict(self, exploratory: bool = False) -> str:
        """The result in words, without the names of the conditions."""
        if exploratory and self.result is not None:
            seeds = counted(self.result.pairs, "paired seed")
            return (
                f"{self.result.mean:+.1f} points over {seeds}; this study is exploratory and gives "
                "no verdict"
            )
        return verdict(self.result)

    def words(self, exploratory: bool = False) -> str:
        """The comparison as a sentence."""
        pair = f"{self.candidate} against {self.reference}"
        return f"{pair}, {measure_name(self.protocol)}: {self.verdict(exploratory)}"

    def as_dict(self, exploratory: bool = False) -> dict[str, Any]:
        """Every number of it."""
        return {
            "family": self.family,
            "candidate": self.candidate,
            "reference": self.reference,
            "protocol": self.protocol,
            **({} if self.result is None else asdict(self.result)),
            "outcome": self.outcome,
            "words": self.words(exploratory),
        }


def compare_conditions(
    families: Mapping[str, Sequence[tuple[str, str]]],
    protocols: Sequence[str],
    accuracies: Callable[[str, str], Mapping[int, float]],
    apart: Callable[[str, str], Collection[int]] = lambda a, b: (),
) -> list[Comparison]:
    """Compare conditions seed by seed, each family corrected per protocol.

    Args:
        families: For each family its pairs (candidate, reference).
        protocols: To compare by.
        accuracies: From a condition and a protocol to its accuracy by seed.
        apart: From two conditions to the seeds that are no pairs.
    """

    def paired(a: str, b: str, protocol: str) -> PairedComparison | None:
        left_out = apart(a, b)
        ours = {s: x for s, x in accuracies(a, protocol).items() if s not in left_out}
        return compare_paired(ours, accuracies(b, protocol))

    found = []
    for protocol in protocols:
        for family, pairs in families.items():
            results = [paired(a, b, protocol) for a, b in pairs]
            # The planned comparisons count, also those whose runs are still missing.
            corrected = iter(holm([r for r in results if r is not None], len(pairs)))
            for (a, b), result in zip(pairs, results, strict=True):
                shown = None if result is None else next(corrected)
                found.append(Comparison(family, a, b, protocol, shown))
    return found


def computed_in(
    runs: Iterable[tuple[int, Mapping[str, Any], Mapping[str, Any]]],
) -> dict[int, tuple[str, str]]:
    """By seed the precision that was set and the one that was computed in, where that is known.

    Args:
        runs: Seed, settings and hardware of each.
    """
    return {
        seed: (str(settings.get("precision")), str(computed))
        for seed, settings, hardware in runs
        if (computed := hardware.get("precision"))
    }


def command_of(protocol: str) -> list[str]:
    """The command that measures by a protocol of frozen features."""
    if protocol == "knn":
        return ["unmix", "knn"]
    if protocol == "knn-euclidean":
        return ["unmix", "knn", "--metric", "euclidean"]
    return ["unmix", "probe", "--protocol", protocol]
