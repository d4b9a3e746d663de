"""What a report says, as plain data: filled by `compare`, `study` and `watch`, drawn by `report`.

Nothing here needs PyTorch or Matplotlib. All texts are plain, and escaped by the page; names of
conditions are unique, and their order in `Report.conditions` gives each its color, dash and marker
in every figure of the page. Empty parts are left out of the page, so fill what is known:

    report = Report(
        title="MoCo with and without Un-Mix on CIFAR-10",
        answer=Answer(
            "MoCo + Un-Mix is better than MoCo by 3.1 points (kNN).",
            sure="95% interval +2.0 to +4.2 over 6 paired seeds, p = 0.003.",
            cost="It costs 1.38 times as much: 7.1 forward-equivalents instead of 5.1.",
        ),
        conditions=[Condition("MoCo", {"kNN": {0: 70.1, 1: 70.4}}), ...],
        differences=[Difference("MoCo + Un-Mix", "MoCo", "kNN", "+3.1 (95% interval ...)")],
        curves=[
            CurveSet("Accuracy", "kNN top-1 (%)", [
                Curve("MoCo", 0, epochs=(4, 8), values=(61.0, 70.1), seconds=(30.2, 60.0)), ...
            ]),
            CurveSet("Training loss", "loss", [...]),
        ],
        tables=[Table("Conditions", ("condition", "kNN"), (False, True), rows)],
        ...
    )
    write_page(folder / "report.html", report)   # of figures.report; `page(report)` is its text
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unmix.display import Answer

__all__ = [
    "Command",
    "Condition",
    "Curve",
    "CurveSet",
    "Difference",
    "Entry",
    "Picture",
    "Report",
    "RunDetails",
    "Running",
    "Table",
]


@dataclass(frozen=True)
class Condition:
    """Runs that differ in the seed alone.

    Attributes:
        name: Unique; named by what differs, the same in every figure and table.
        accuracies: For each protocol's title (`kNN`, `Linear`), top-1 in percent by seed.
        method: Name of its method; methods have their colors.
        mixture: Name of its mixture, or `none`; such conditions have hollow markers.
    """

    name: str
    accuracies: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    method: str = ""
    mixture: str = ""


@dataclass(frozen=True)
class Difference:
    """A comparison that the paired dots show: their seeds are joined.

    Attributes:
        candidate: Name of a condition.
        reference: Name of another.
        protocol: Title of the protocol, as in `Condition.accuracies`.
        text: Such as "+3.1 (95% interval +2.0 to +4.2)"; empty if it is not written.
        unpaired: Seeds that both have and that are no pairs; they are not joined.
    """

    candidate: str
    reference: str
    protocol: str
    text: str
    unpaired: Sequence[int] = ()


@dataclass(frozen=True)
class Entry:
    """A cell of a table.

    Attributes:
        text: What is written.
        value: The number by which a column is sorted and that its CSV has; by default the first
            number of the text, where the column is numeric.
        spread: Standard deviation, a column of its own in the CSV.
        best: Whether it is marked as better than its reference, by a test.
    """

    text: str
    value: float | None = None
    spread: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table that sorts and that can be downloaded as CSV.

    Attributes:
        title: Heading; also the name of the CSV file.
        columns: Headings of the columns.
        numeric: For each column, whether it has numbers.
        rows: An entry per column.
        caption: What the columns mean.
    """

    title: str
    columns: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[Entry]]
    caption: str = ""


@dataclass(frozen=True)
class Curve:
    """A value of one run in the course of its training.

    Attributes:
        condition: Name of its condition.
        seed: Of the run.
        epochs: Complete epochs, increasing.
        values: At these epochs; None or NaN where there is none.
        seconds: Seconds since the training began, at these epochs; None if they are not known.
    """

    condition: str
    seed: int
    epochs: Sequence[float]
    values: Sequence[float | None]
    seconds: Sequence[float | None] | None = None


@dataclass(frozen=True)
class CurveSet:
    """A figure of curves: the mean of each condition with a band over its seeds.

    Against epochs, and against time if all curves have `seconds`.

    Attributes:
        title: Heading.
        label: Of the vertical axis, with its unit.
        curves: Of all runs.
        caption: What a reader must know.
        references: Horizontal lines by name, such as raw pixels.
    """

    title: str
    label: str
    curves: Sequence[Curve]
    caption: str = ""
    references: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A figure that does not change, such as prediction curves or samples of mixtures.

    Attributes:
        title: Heading.
        svg: An `<svg>` element, made by `figures.saving.inline`, which gives it the page's colors.
        caption: What it shows.
        alt: The same for those who do not see it; by default title and caption.
    """

    title: str
    svg: str
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Command:
    """A command that repeats something, exactly.

    Attributes:
        name: What it repeats, such as "MoCo + Un-Mix, seed 0".
        text: To be pasted into a terminal.
    """

    name: str
    text: str


@dataclass(frozen=True)
class RunDetails:
    """All that is known of one run; folded.

    Attributes:
        name: Of the run.
        groups: For each heading, (name, value) pairs.
    """

    name: str
    groups: Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Running:
    """That runs are still being trained.

    Attributes:
        text: Such as "3 of 12 runs are complete; MoCo, seed 3 is at epoch 17 of 40".
        done: Fraction that is complete, in [0, 1]; None if unknown.
        refresh: Seconds after which a page that is served asks for itself again; None for a file.
        heading: Before the text; empty if nothing is trained any more.
        tag: Of this state: a page that is served asks only for another one (`If-None-Match`).
    """

    text: str
    done: float | None = None
    refresh: float | None = None
    tag: str = ""
    heading: str = "Still training."


@dataclass(frozen=True)
class Report:
    """A page, in the order in which it is shown.

    Attributes:
        title: Of the page; the answer is its first heading.
        answer: The verdict.
        running: Set while something is still trained.
        summary: What was run, in a sentence or two.
        notes: What a reader must know: what is missing, what does not compare.
        conditions: In the order of their colors; references before what is compared with them.
        differences: Comparisons between them.
        baselines: Accuracy of what needs no training: name, protocol's title, percent.
        tables: Conditions first, then runs.
        curves: Accuracy first, then the loss and others.
        pictures: Prediction curves and other figures.
        samples: Mixtures of these very runs.
        differing: Settings that differ: (setting, value of each condition in their order).
        common: Settings that all share; folded.
        environment: Hardware and versions.
        commands: That repeat the runs and this report.
        runs: Details of each run; folded.
    """

    title: str
    answer: Answer
    running: Running | None = None
    summary: str = ""
    notes: Sequence[str] = ()
    conditions: Sequence[Condition] = ()
    differences: Sequence[Difference] = ()
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    curves: Sequence[CurveSet] = ()
    pictures: Sequence[Picture] = ()
    samples: Sequence[Picture] = ()
    differing: Sequence[tuple[str, Sequence[str]]] = ()
    common: Sequence[tuple[str, str]] = ()
    environment: Sequence[tuple[str, str]] = ()
    commands: Sequence[Command] = ()
    runs: Sequence[RunDetails] = ()
