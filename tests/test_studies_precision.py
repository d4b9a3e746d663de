"""Seeds that were computed in different precision are no pairs, where nobody asked for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from test_studies import METHODS, TWO, cell, study
from test_studies_running import program as program
from test_studies_running import starts
from test_studies_running import study as fake_study
from unmix.commands.compare_report import differences_of
from unmix.errors import UserError
from unmix.figures.paired import Panel, paired_dots
from unmix.figures.seed_dots import pairs_of
from unmix.hardware.devices import choose_machine
from unmix.studies import StudyResults, read_study, run_study
from unmix.studies.summary import over_rows


def measured(condition: str, seed: int, knn: float, computed: str, was: str = "auto") -> Any:
    found = cell(condition, seed, knn, hardware={"precision": computed, "cpu": "EPYC"})
    return {**found, "settings": {**found["settings"], "precision": was}}


def test_a_difference_that_may_be_the_precisions_counts_in_no_verdict() -> None:
    """Six pairs of which one side was computed in 32 bits, and the other in bfloat16."""
    plain = [measured("plain", s, 50.0, "bf16-mixed") for s in range(6)]
    mixed = [measured("Un-Mix", s, 55.0 + s, "32-true") for s in range(6)]
    found = StudyResults(study(TWO), [*plain, *mixed])
    assert [c.result for c in found.comparisons()] == [None, None]
    assert found.verdicts()[-1] == (
        "Un-Mix against plain: seeds 0, 1, 2, 3, 4 and 5 of both are no pairs, as they were "
        "computed in different precision (32-true and bf16-mixed)"
    )
    # The accuracies themselves stay in the table.
    assert "| Un-Mix | 40 | 7.0 | 1.75x | 3:02 min | 6 | 57.5 ± 1.9 |" in found.markdown()


def test_means_over_methods_are_of_pairs_too() -> None:
    """Seeds 0 and 1 of SimCLR with Un-Mix, in other precision, are 30 points better."""
    cells = [
        measured(
            f"{method}, {mixture}", seed, 50.0 + 2 * mixed + 30 * other,
            "bf16-mixed" if other else "32-true",
        )
        for method in ("moco", "simclr", "byol")
        for mixed, mixture in enumerate(("none", "unmix")) for seed in range(6)
        for other in [method == "simclr" and mixed == 1 and seed < 2]
    ]  # fmt: skip
    (over,) = [o for o in over_rows(StudyResults(study(METHODS), cells)) if o.protocol == "knn"]
    assert over.ranks["unmix"].mean_difference == pytest.approx(2.0)
    assert over.ranks["unmix"].rows == 3


def test_pairs_of_one_precision_count() -> None:
    kinds = ["bf16-mixed"] * 3 + ["32-true"] * 4
    plain = [measured("plain", s, 50.0 + s / 9, kind) for s, kind in enumerate(kinds)]
    mixed = [measured("Un-Mix", s, 55.0 + s, kind) for s, kind in enumerate(kinds)]
    mixed[2] = measured("Un-Mix", 2, 90.0, "32-true")
    first = StudyResults(study(TWO.replace("0-5", "0-6")), [*plain, *mixed]).comparisons()[0]
    assert first.result is not None
    assert first.result.pairs == 6
    assert max(first.result.differences) < 20


def test_precision_may_be_what_is_compared() -> None:
    text = TWO.replace("plain: {}", 'plain: {precision: "32"}')
    plain = [measured("plain", s, 50.0, "32-true", "32") for s in range(6)]
    mixed = [measured("Un-Mix", s, 55.0 + s, "bf16-mixed") for s in range(6)]
    first = StudyResults(study(text), [*plain, *mixed]).comparisons()[0]
    assert first.result is not None
    assert first.result.pairs == 6


def test_a_study_is_not_gone_on_with_in_another_precision_without_a_word(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run_study(fake_study(seeds="0"), folder)
    file = folder / "cells" / "low-0.json"
    content = json.loads(file.read_text())
    now = choose_machine(fake_study().resolved("low", 0).machine).precision
    other = "bf16-mixed" if now == "32-true" else "32-true"
    file.write_text(json.dumps({**content, "hardware": {"precision": other}}))
    with pytest.raises(UserError, match=rf"low-0\.json: was computed in {other}, and this machine"):
        run_study(fake_study(), folder)
    assert len(starts(folder)) == 2
    run_study(fake_study(), folder, stale="keep")
    assert len(starts(folder)) == 4
    assert len(read_study(folder).cells) == 4


def test_figures_join_pairs_alone() -> None:
    """Seed 2 was computed in other precision, and seed 3 is of one condition alone."""
    kinds = ["32-true"] * 2 + ["bf16-mixed"] + ["32-true"]
    plain = [measured("plain", s, 50.0 + s, kind) for s, kind in enumerate(kinds)]
    mixed = [measured("Un-Mix", s, 55.0 + s, "32-true") for s in range(3)]
    found = StudyResults(study(TWO), [*plain, *mixed])
    differences = differences_of(found.findings)
    one, other = (("Un-Mix", {0: 1.0, 1: 2.0, 2: 3.0}), ("plain", dict.fromkeys(range(4), 1.0)))
    assert pairs_of(one, other, differences) == pairs_of(other, one, differences) == [0, 1]
    assert pairs_of(one, ("another", other[1]), differences) == [0, 1, 2]
    conditions = {name: found.accuracies(name, "knn") for name in ("plain", "Un-Mix")}
    (axes,) = paired_dots({"kNN": {"": Panel(conditions, comparisons=differences)}}).axes[:1]
    assert sum(line.get_linestyle() == "-" for line in axes.lines) == 2
