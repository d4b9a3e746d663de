"""What the committed cells of the studies show: the answer, verdicts, tables and the figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tools.markdown import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unmix.studies import StudyResults

__all__ = [
    "ANSWER",
    "ANSWER_PICTURE",
    "answer",
    "answer_figure",
    "answer_picture",
    "shipped",
    "study",
    "verdicts",
]

DOCS = Path(__file__).resolve().parents[1]
EVIDENCE = DOCS / "evidence"
ANSWER_PICTURE = DOCS / "images" / "answer.png"
# The question of docs/evidence/plan.md, from the least augmentation to the most.
ANSWER = {
    "augmentation-none": "Without augmentation",
    "augmentation-crop-flip": "With crops and flips alone",
    "augmentation-full": "With full augmentation",
}
PROTOCOL_TITLES = {"knn": "kNN", "linear": "linear probe"}
_OUTCOMES = {
    "better": "better", "worse": "worse", "no difference": "not distinguishable",
    "undecided": "undecided", "too few": "undecided, with too few seeds,",
}  # fmt: skip


def study(name: str) -> str:
    """What the shipped cells of a study of the evidence show so far."""
    from unmix.studies.comparisons import measure_name
    from unmix.studies.summary import over_rows

    found = shipped(name)
    if found is None:
        return "Not measured yet."
    made = {c.words(found.study.exploratory) for c in found.comparisons()}
    others = [line for line in found.findings.words() if line not in made]
    others += [
        f"{line} (exploratory: not in the plan)"
        for over in over_rows(found)
        for line in over.words(measure_name(over.protocol))
    ]
    notes = [note.removeprefix("note: ") for note in found.notes()]
    lines = "\n".join(f"- {line}" for line in (*others, *notes))
    return "\n\n".join(filter(None, [_compared(found), found.table(), found.course(), lines]))


def _compared(found: StudyResults) -> str:
    """The comparisons that have a pair as a table: verdicts by measure, and the cost."""
    from unmix.studies.comparisons import measure_name

    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for c in found.comparisons():
        if c.result is not None:
            words = c.verdict(found.study.exploratory)
            pairs.setdefault((c.candidate, c.reference), {})[c.protocol] = words
    if not pairs:
        return ""
    measures = list(dict.fromkeys(measure for by in pairs.values() for measure in by))
    rows = []
    for pair, by in pairs.items():
        what = " against ".join(pair)
        cost = found.findings.cost(*pair).removeprefix(f"Cost of {what}: ").removesuffix(".")
        rows.append((what, *(by.get(measure, "") for measure in measures), cost))
    return table(("comparison", *map(measure_name, measures), "cost"), rows)


def verdicts(name: str) -> str:
    """The verdicts of a study of the evidence."""
    found = shipped(name)
    return "Not measured yet." if found is None else "\n".join(f"- {v}" for v in found.verdicts())


def answer() -> str:
    """What Un-Mix adds to MoCo under each augmentation, in the words of the studies' verdicts."""
    lines = []
    for name, title in ANSWER.items():
        found = shipped(name)
        primary = [] if found is None else [c for c in found.comparisons() if c.family == "primary"]
        if found is None or all(c.result is None for c in primary):
            lines.append(f"- **{title}**: not measured yet.")
            continue
        verdicts = [f"{PROTOCOL_TITLES[c.protocol]} {c.verdict()}" for c in primary]
        equal = [
            f"{PROTOCOL_TITLES[c.protocol]} {c.verdict()}"
            for c in found.comparisons()
            if c.family == "equal compute" and c.result is not None
        ]
        more = f" At equal compute: {'; '.join(equal)}." if equal else ""
        cheap = [
            f"{PROTOCOL_TITLES[c.protocol]} {c.verdict()}"
            for c in found.comparisons()
            if c.candidate == "i-Mix" and c.result is not None
        ]
        more += f" i-Mix, which costs as much as no mixture: {'; '.join(cheap)}." if cheap else ""
        lines.append(f"- **{title}**, Un-Mix against plain MoCo: {'; '.join(verdicts)}.{more}")
    return f"{_lead()}\n\n" + "\n".join(lines)


def _lead() -> str:
    """In which cases Un-Mix is better, worse, or neither, in one sentence."""
    outcomes: dict[str, dict[str, list[str]]] = {}
    for name, title in ANSWER.items():
        found = shipped(name)
        for c in [] if found is None else found.comparisons():
            if c.family == "primary" and c.result is not None:
                cases = outcomes.setdefault(_OUTCOMES[c.outcome], {})
                case = f"{title[0].lower()}{title[1:]}"
                cases.setdefault(case, []).append(PROTOCOL_TITLES[c.protocol])
    if not outcomes:
        return "**Nothing was measured yet.**"
    parts = []
    for outcome, cases in outcomes.items():
        each = [f"{case} ({' and '.join(by)})" for case, by in cases.items()]
        parts.append(f"{outcome} {', '.join(each)}")
    return f"**MoCo with Un-Mix, compared with MoCo alone, is {'; '.join(parts)}.**"


def answer_figure() -> str:
    """The picture of the cells behind `answer`."""
    alt = "Accuracy of MoCo, plain and with Un-Mix, by augmentation; one dot per seed, and means."
    return f"![{alt}](images/{ANSWER_PICTURE.name})"


def answer_picture() -> Figure:
    """The cells behind `answer`, a dot for each seed."""
    from unmix.figures.paired import Panel, paired_dots
    from unmix.figures.report_content import Difference

    found = {title: study for name, title in ANSWER.items() if (study := shipped(name)) is not None}
    shown = ("plain", "Un-Mix", "plain at Un-Mix's compute")
    rows = {
        f"{title} top-1 (%)": {
            augmentation: Panel(
                {
                    condition: values
                    for condition in shown
                    if (values := study.accuracies(condition, protocol))
                },
                comparisons=[
                    Difference(a, b, title, "", tuple(study.findings.apart(a, b)))
                    for a, b in (("Un-Mix", "plain"), ("Un-Mix", "plain at Un-Mix's compute"))
                ],
            )
            for augmentation, study in found.items()
            if study.cells
        }
        for protocol, title in PROTOCOL_TITLES.items()
    }
    return paired_dots(rows)


def shipped(name: str) -> StudyResults | None:
    """A study of the evidence with its committed cells; None if it was not begun."""
    from unmix.studies import read_study

    folder = EVIDENCE / name
    return read_study(folder) if (folder / "study.yaml").is_file() else None
