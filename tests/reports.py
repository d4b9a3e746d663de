"""Reports for tests of the page: conditions with seeds, curves, tables, and names of every kind."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from unmix.display import Answer
from unmix.figures.report_content import (
    Command,
    Condition,
    Curve,
    CurveSet,
    Difference,
    Entry,
    Picture,
    Report,
    RunDetails,
    Running,
    Table,
)

__all__ = ["NAMES", "SVG", "report"]

# What would be markup, end a script or a cell, turn the line around, or be a formula.
NAMES = (
    "</script><script>alert('x')</script>",
    '=HYPERLINK("x"), "a"\nb',
    "μάθηση 漢字 \u2028\u202e<!--",
)
SVG = (
    '<svg viewBox="0 0 600 200" role="img" aria-label="x"><path d="M0 190L600 10" '
    'stroke="currentColor" fill="none"/></svg>'
)


def curve(name: str, seed: int, epochs: int, height: float, noise: random.Random) -> Curve:
    return Curve(
        name, seed, range(1, epochs + 1),
        [height * (1 - math.exp(-e / 6)) + noise.gauss(0, 0.3) for e in range(1, epochs + 1)],
        [(2.5 + seed / 10) * e for e in range(1, epochs + 1)],
    )  # fmt: skip


def report(
    names: Sequence[str] = NAMES,
    *,
    seeds: int = 3,
    epochs: int = 20,
    runs: int = 4,
    running: Running | None = None,
) -> Report:
    """A report with every part.

    Args:
        names: Of the conditions.
        seeds: Of each.
        epochs: Points of each curve.
        runs: Runs whose details are shown.
        running: Whether it is still trained.
    """
    noise = random.Random(0)
    conditions = [
        Condition(
            name,
            {
                "kNN": {s: 60 + 3 * i + noise.gauss(0, 0.8) for s in range(seeds)},
                "Linear": {s: 66 + 2 * i + noise.gauss(0, 0.8) for s in range(seeds)},
            },
            "moco",
            "none" if i == 0 else f"mixture {i}",
        )
        for i, name in enumerate(names)
    ]
    heights = {name: 60.0 + 3 * i for i, name in enumerate(names)}
    rows = [
        [Entry("raw pixels"), Entry("–"), Entry("39.5")],
        *(
            [Entry(name), Entry(f"{9 - i}", 9.0 - i), Entry(f"{60 + 3 * i}.0 ± 0.8", best=i == 1)]
            for i, name in enumerate(names)
        ),
    ]
    return Report(
        title="Mixtures on photos",
        answer=Answer(
            f"{names[-1]} is better than {names[0]} by 6.0 points (kNN).",
            sure="95% interval +5.1 to +7.0.",
            cost="It costs 1.76x to train.",
            others=["Another comparison."],
        ),
        running=running,
        summary="9 runs of MoCo.",
        notes=["A note."],
        conditions=conditions,
        differences=[Difference(c.name, names[0], "kNN", "+6.0") for c in conditions[1:]],
        baselines={"raw pixels": {"kNN": 58.0}},
        tables=[Table("Conditions", ("condition", "cost", "kNN"), (False, True, True), rows)],
        curves=[
            CurveSet(
                "Accuracy", "kNN top-1 (%)",
                [curve(n, s, epochs, heights[n], noise) for n in names for s in range(seeds)],
                references={"raw pixels": 39.5},
            ),
            CurveSet(
                "Course of training", "loss",
                [curve(n, s, epochs, 3.0, noise) for n in names for s in range(seeds)],
            ),
        ],
        pictures=[Picture("Prediction curves", SVG, "Of six images.")],
        samples=[Picture(names[-1], SVG, "IM.")],
        differing=[("mixture", [c.mixture for c in conditions])],
        common=[(f"setting {i}", str(i)) for i in range(30)],
        environment=[("torch", "2.14.1")],
        commands=[
            Command(name, f"unmix pretrain --name {i} --lr 0.03") for i, name in enumerate(names)
        ],
        runs=[RunDetails(f"run {i}", {"Training": [("images/s", "1,234")]}) for i in range(runs)],
    )  # fmt: skip
