"""What the first pages say of the evidence, from the committed cells of the studies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tools.markdown import table
from tools.studies import shipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unmix.studies import StudyResults
    from unmix.studies.comparisons import Comparison

__all__ = ["PICTURE", "evidence", "lead", "picture"]

DOCS = Path(__file__).resolve().parents[1]

PICTURE = DOCS / "images" / "evidence.png"
AUGMENTATIONS = {
    "none": "augmentation-none",
    "crops and flips": "augmentation-crop-flip",
    "full": "augmentation-full",
}
# By data set: studies of methods without augmentation, and what their comparisons are called there.
METHODS = {
    "photographs": {"methods-photos": "{}, unmix"},
    "CIFAR-10": {AUGMENTATIONS["none"]: "Un-Mix", "methods-cifar": "{}, unmix"},
}
PLAIN, EQUAL = "plain", "plain at Un-Mix's compute"
# What i-Mix is compared with where its machine computed in 32 bits.
PLAIN_32 = "plain, 32 bits"
ROWS = (
    ("Un-Mix", PLAIN, "equal epochs"),
    ("Un-Mix", EQUAL, "equal compute"),
    ("i-Mix", PLAIN, "equal epochs and compute"),
)
TITLES = {"knn": "kNN", "linear": "linear probe"}


@cache
def _study(name: str) -> StudyResults:
    found = shipped(name)
    assert found is not None
    return found


def _between(study: str, candidate: str, reference: str) -> Mapping[str, Comparison]:
    """The comparison of two conditions of a study by each protocol."""
    pair = (candidate, reference)
    found = [c for c in _study(study).comparisons() if (c.candidate, c.reference) == pair]
    return {c.protocol: c for c in found}


def lead(base: str = "docs/") -> str:
    """The picture, and in a sentence what mixtures do without augmentation and with all of it.

    Args:
        base: Where links start.
    """
    none, full = AUGMENTATIONS["none"], AUGMENTATIONS["full"]
    first = _between(none, "Un-Mix", PLAIN)["linear"]
    equal = _between(none, "Un-Mix", EQUAL)["linear"]
    other = _between(full, "Un-Mix", EQUAL)["linear"]
    imix = _between(AUGMENTATIONS["crops and flips"], "i-Mix", PLAIN_32)["linear"]
    lines = (
        f"![Accuracy of each seed with and without Un-Mix]({base}images/evidence.png)",
        "",
        f"**MoCo with Un-Mix against MoCo, without augmentation: {first.verdict()}**",
        "(linear probe, CIFAR-10).",
        f"At equal compute: {equal.verdict()}.",
        f"With crops and flips alone, i-Mix, which costs as much as no mixture: {imix.verdict()}.",
        f"With full augmentation, Un-Mix, 40 epochs and equal compute: {other.verdict()}.",
        "[All comparisons](#evidence)",
    )
    return "\n".join(lines)


def evidence(base: str = "docs/") -> str:
    """What mixtures add to MoCo by augmentation, and Un-Mix to each of six methods.

    Args:
        base: Where links start.
    """
    results = _study(AUGMENTATIONS["none"])
    cost = {row[0]: row[results.columns().index("cost")] for row in results.rows()}
    epochs = {name: results.of(name)[0]["epochs"] for name in ("Un-Mix", EQUAL)}
    settings = results.of("Un-Mix")[0]["settings"]
    return "\n\n".join(
        [
            f"**Points that a mixture adds to MoCo** (CIFAR-10, {settings['limit']:,} training "
            "images, all 10,000 test images,\n"
            f"ResNet-10 of width 0.25, {epochs['Un-Mix']} epochs):",
            _of_augmentations(),
            "In parentheses the 95% interval over paired seeds; bold: significant, for i-Mix after "
            "Holm's correction for\nthree mixtures, which needs seven seeds. A step with Un-Mix "
            f"costs {cost['Un-Mix'].removesuffix('x')} times as much, so\n"
            f"{epochs['Un-Mix']} epochs of it cost as much as {epochs[EQUAL]} of plain MoCo; i-Mix "
            "(`--unmix_rule imix`) costs as much\nas no mixture.",
            "**Points that Un-Mix adds to each of six methods without augmentation** (equal "
            f"epochs; paired seeds:\n{_pairs_of_methods()}; bold: significant, each method a "
            "comparison of its own):",
            _of_methods(),
            f"All conditions: [Results]({base}results.md), or "
            "`unmix study show docs/evidence/augmentation-none`.\n"
            f"The [plan]({base}evidence/plan.md) was written before the runs.",
        ]
    )


def _shown(comparison: Comparison | None) -> str:
    """The mean difference and its interval, bold if it decides."""
    if comparison is None or comparison.result is None:
        return "-"
    if comparison.result.interval is None or comparison.outcome == "too few":
        return f"{comparison.result.mean:+.1f} ({comparison.result.pairs} seeds: no verdict)"
    low, high = comparison.result.interval
    shown = f"{comparison.result.mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{shown}**" if comparison.outcome in ("better", "worse") else shown


def _of_augmentations() -> str:
    """What Un-Mix and i-Mix add to MoCo under each augmentation, as far as there are pairs."""
    rows = []
    for augmentation, study in AUGMENTATIONS.items():
        for name, reference, how in ROWS:
            by = _between(study, name, reference) or _between(study, name, PLAIN_32)
            pairs = max((c.result.pairs for c in by.values() if c.result is not None), default=0)
            if pairs:
                shown = [_shown(by.get(protocol)) for protocol in TITLES]
                rows.append((augmentation, f"{name}, {how}", str(pairs), *shown))
    return table(("augmentation", "mixture", "seeds", *TITLES.values()), rows)


@cache
def _by_method() -> dict[str, dict[str, dict[str, Comparison]]]:
    """What Un-Mix adds to each method without augmentation, by data set and protocol."""
    found: dict[str, dict[str, dict[str, Comparison]]] = {}
    for data, studies in METHODS.items():
        for study, candidate in studies.items():
            for c in _study(study).comparisons():
                name = c.candidate.partition(",")[0] if "{}" in candidate else "MoCo"
                if c.candidate == candidate.format(name) and c.reference != EQUAL:
                    found.setdefault(name, {}).setdefault(data, {})[c.protocol] = c
    return found


def _of_methods() -> str:
    """The table of what Un-Mix adds to each method."""
    head = ("method", *(f"{data}: {title}" for data in METHODS for title in TITLES.values()))
    return table(
        head,
        [
            (name, *(_shown(by[data].get(p)) for data in METHODS for p in TITLES))
            for name, by in _by_method().items()
        ],
    )


def _pairs_of_methods() -> str:
    """The numbers of paired seeds, such as "photographs 6, CIFAR-10 6 to 7"."""
    words = []
    for data in METHODS:
        pairs = {
            c.result.pairs
            for by in _by_method().values()
            for c in by[data].values()
            if c.result is not None
        }
        words.append(f"{data} {' to '.join(map(str, sorted({min(pairs), max(pairs)})))}")
    return ", ".join(words)


def picture() -> Figure:
    """A line per seed through the conditions, for each protocol."""
    from unmix.figures.paired import paired_dots

    results = _study(AUGMENTATIONS["none"])
    longer = f"MoCo, {results.of(EQUAL)[0]['epochs']} epochs"
    names = {"MoCo": PLAIN, longer: EQUAL, "MoCo + Un-Mix": "Un-Mix"}
    panels = {
        title: {name: results.accuracies(condition, protocol) for name, condition in names.items()}
        for protocol, title in TITLES.items()
    }
    return paired_dots({"top-1 accuracy (%)": panels})
