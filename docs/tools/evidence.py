"""What the README says of the evidence, from the committed cells of a study.

A README is read at any commit, and cells are added over time, so its block names the seeds that it
was made from; the same seeds give the same text again.

python docs/tools/evidence.py     rewrites the block and the picture with all paired seeds
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(DOCS), str(DOCS.parent / "src")]

from matplotlib.figure import Figure  # noqa: E402

from tools.markdown import table  # noqa: E402
from unmix.figures.paired import paired_dots  # noqa: E402
from unmix.studies import read_study  # noqa: E402
from unmix.studies.analysis import StudyResults  # noqa: E402
from unmix.studies.comparisons import Comparison  # noqa: E402

__all__ = ["block_of", "evidence", "paired_seeds"]

README = DOCS.parent / "README.md"
PICTURE = DOCS / "images" / "evidence.png"
STUDY = DOCS / "evidence" / "augmentation-none"
AUGMENTATIONS = {
    "none": STUDY,
    "crops and flips": DOCS / "evidence" / "augmentation-crop-flip",
    "full": DOCS / "evidence" / "augmentation-full",
}
METHODS = DOCS / "evidence" / "methods-photos"
CANDIDATE, REFERENCE = "Un-Mix", "plain"
# As many as decide one of three comparisons; a later seed does not change the text by itself.
CHEAP, CHEAP_SEEDS = "i-Mix", range(7)
EQUAL = "plain at Un-Mix's compute"
BLOCK = re.compile(
    r"<!-- evidence: seeds ([\d ]*) -->\n\n(.*?)\n\n<!-- end of evidence -->", re.DOTALL
)
TITLES = {"knn": "kNN", "linear": "linear probe"}


def _results(seeds: Sequence[int], folder: Path = STUDY) -> StudyResults:
    """A study with the cells of these seeds alone."""
    study = read_study(folder)
    return StudyResults(study.study, [cell for cell in study.cells if cell["seed"] in seeds])


def _between(results: StudyResults, candidate: str, reference: str) -> list[Comparison]:
    """The comparisons of two conditions, one a protocol."""
    pair = (candidate, reference)
    return [each for each in results.comparisons() if (each.candidate, each.reference) == pair]


def paired_seeds() -> list[int]:
    """The seeds for which all three conditions were measured."""
    found = read_study(STUDY)
    measured = [set(found.accuracies(name, "linear")) for name in (CANDIDATE, REFERENCE, EQUAL)]
    return sorted(set.intersection(*measured))


def evidence(seeds: Sequence[int], base: str = "docs/") -> str:
    """The comparison in words, with its picture.

    Args:
        seeds: The paired seeds that it is made from.
        base: Where links start.
    """
    results = _results(seeds)
    cost = {row[0]: row[results.columns().index("cost")] for row in results.rows()}
    epochs = {name: results.of(name)[0]["epochs"] for name in (CANDIDATE, EQUAL)}
    settings = results.of(CANDIDATE)[0]["settings"]
    where = (
        f"CIFAR-10, {settings['limit']:,} training images, all 10,000 test images,\n"
        f"ResNet-10 of width 0.25, {epochs[CANDIDATE]} epochs"
    )
    return "\n\n".join(
        [
            f"![Accuracy of each seed with and without Un-Mix]({base}images/evidence.png)",
            f"**Points that a mixture adds to MoCo** ({where}):",
            of_augmentations(seeds),
            f"In parentheses the 95% interval over paired seeds ({_counts(seeds)}); bold: "
            "significant, for i-Mix after Holm's\ncorrection for three mixtures. A step with "
            f"{CANDIDATE} costs {cost[CANDIDATE].removesuffix('x')} times as much, so "
            f"{epochs[CANDIDATE]} epochs of it cost as much as\n{epochs[EQUAL]} of plain MoCo; "
            f"i-Mix (`--unmix_rule imix`) costs as much as\nno mixture.",
            f"**Points that {CANDIDATE} adds to each of six methods without augmentation** "
            f"(photographs, {len(seeds)} paired\nseeds, equal epochs; bold: significant, each "
            "method a comparison of its own):",
            of_methods(seeds),
            f"All conditions: [Results]({base}results.md), or "
            "`unmix study show docs/evidence/augmentation-none`.\n"
            f"The [plan]({base}evidence/plan.md) was written before the runs.",
        ]
    )


def _counts(seeds: Sequence[int]) -> str:
    """How many paired seeds each mixture has."""
    cheap = [
        max((c.result.pairs for c in _between(_results(CHEAP_SEEDS, folder), CHEAP, REFERENCE)
             if c.result), default=0)
        for folder in AUGMENTATIONS.values()
    ]  # fmt: skip
    fewest, most = min(cheap), max(cheap)
    own = (
        f"{fewest} to {most}, of which {len(CHEAP_SEEDS)} can decide"
        if fewest < most
        else f"{most}"
    )
    return f"{CANDIDATE} {len(seeds)}, {CHEAP} {own}"


def _shown(comparison: Comparison) -> str:
    """The mean difference and its interval, bold if it decides; a dash if there is no interval."""
    if comparison.result is None or comparison.result.interval is None:
        return "-"
    low, high = comparison.result.interval
    shown = f"{comparison.result.mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{shown}**" if comparison.outcome in ("better", "worse") else shown


def of_augmentations(seeds: Sequence[int]) -> str:
    """What Un-Mix and i-Mix add to MoCo under each augmentation, at equal epochs and compute.

    Args:
        seeds: The paired seeds of Un-Mix.
    """
    kinds = (
        (CANDIDATE, REFERENCE, "equal epochs", seeds),
        (CANDIDATE, EQUAL, "equal compute", seeds),
        (CHEAP, REFERENCE, "equal epochs and compute", CHEAP_SEEDS),
    )
    rows = []
    for augmentation, folder in AUGMENTATIONS.items():
        for name, reference, how, own in kinds:
            by = {c.protocol: c for c in _between(_results(own, folder), name, reference)}
            rows.append((augmentation, f"{name}, {how}", *(_shown(by[p]) for p in TITLES)))
    return table(("augmentation", "mixture", *TITLES.values()), rows)


def of_methods(seeds: Sequence[int]) -> str:
    """What Un-Mix adds to each method without augmentation, on photographs."""
    results = _results(seeds, METHODS)
    rows: dict[str, dict[str, str]] = {}
    for c in results.comparisons():
        name = c.candidate.partition(",")[0]
        rows.setdefault(name, {})[c.protocol] = _shown(c)
    head = ("method", *TITLES.values())
    return table(head, [(name, *(by[p] for p in TITLES)) for name, by in rows.items()])


def block_of(text: str) -> tuple[list[int], str]:
    """The seeds that a README's block names, and its text.

    Raises:
        ValueError: if there is no block.
    """
    match = BLOCK.search(text)
    if match is None:
        raise ValueError("README.md has no block of the evidence")
    return [int(seed) for seed in match[1].split()], match[2]


def picture(seeds: Sequence[int]) -> Figure:
    """A line per seed through the conditions, for each protocol."""
    results = _results(seeds)
    longer = f"MoCo, {results.of(EQUAL)[0]['epochs']} epochs"
    names = {"MoCo": REFERENCE, longer: EQUAL, "MoCo + Un-Mix": CANDIDATE}
    panels = {
        title: {name: results.accuracies(condition, protocol) for name, condition in names.items()}
        for protocol, title in TITLES.items()
    }
    return paired_dots({"top-1 accuracy (%)": panels})


if __name__ == "__main__":
    from unmix.figures.saving import render

    chosen = paired_seeds()
    PICTURE.write_bytes(render(picture(chosen), "png"))
    shown = " ".join(map(str, chosen))
    block = f"<!-- evidence: seeds {shown} -->\n\n{evidence(chosen)}\n\n<!-- end of evidence -->"
    text = README.read_text(encoding="utf-8")
    README.write_text(BLOCK.sub(lambda _: block, text), encoding="utf-8")
