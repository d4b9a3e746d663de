"""The evidence that ships: sentences, figure and tables are what the committed JSON files give."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from tools import studies, tables  # noqa: E402

from unmix.figures.saving import render  # noqa: E402

EVIDENCE = ROOT / "docs" / "evidence"
STUDIES = sorted(path.stem for path in EVIDENCE.glob("*.yaml"))
MEASURED = sorted(path.parent.name for path in EVIDENCE.glob("*/study.yaml"))


def cells(study: str) -> dict[str, dict[int, dict[str, float]]]:
    """Read without the code that makes the tables: condition, seed, protocol."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for path in (EVIDENCE / study / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        found.setdefault(cell["condition"], {})[cell["seed"]] = cell["accuracies"]
    return found


def precisions(study: str) -> dict[tuple[str, int], str]:
    """What each cell was computed in."""
    found = {}
    for path in (EVIDENCE / study / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        found[cell["condition"], cell["seed"]] = cell["hardware"]["precision"]
    return found


@pytest.mark.parametrize("study", MEASURED)
def test_a_table_of_the_docs_is_what_the_shipped_json_gives(study: str):
    text = tables.fill_tables(f"<!-- table: study {study} -->")
    assert "forward-equivalents" in text
    for condition, by_seed in cells(study).items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {condition} |"))
        head = next(line for line in text.splitlines() if line.startswith("| condition |"))
        columns, entries = ([w.strip() for w in line.strip("|").split("|")] for line in (head, row))
        assert entries[columns.index("seeds")] == str(len(by_seed))
        for place, protocol in ((-2, "knn"), (-1, "linear")):
            values = [accuracies[protocol] for accuracies in by_seed.values()]
            expected = [np.mean(values), *([np.std(values, ddof=1)] if len(values) > 1 else [])]
            for shown, value in zip(entries[place].split(" ± "), expected, strict=True):
                # A mean of 37.95 is rounded to either, by the order of its sum.
                assert shown in {f"{value - 1e-9:.1f}", f"{value + 1e-9:.1f}"}


@pytest.mark.parametrize("study", [name for name in studies.ANSWER if name in MEASURED])
def test_the_answer_is_the_difference_of_the_shipped_pairs(study: str):
    found = cells(study)
    seeds = sorted(set(found.get("plain", {})) & set(found.get("Un-Mix", {})))
    line = next(x for x in studies.answer().splitlines() if f"**{studies.ANSWER[study]}**" in x)
    if not seeds:
        assert line.endswith("not measured yet.")
        return
    for protocol in ("knn", "linear"):
        pairs = [found["Un-Mix"][s][protocol] - found["plain"][s][protocol] for s in seeds]
        assert f"{abs(np.mean(pairs)):.1f}" in line
    if len(seeds) < 6:
        assert "6 are needed" in line
        assert "better by" not in line.partition("At equal compute")[0]


def test_the_readme_has_the_differences_of_the_shipped_pairs():
    """Read from the cells, without the code that makes the tables."""
    rows = [
        [word.strip(" *") for word in line.strip("|").split("|")]
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith(("| none |", "| crops and flips |", "| full |"))
    ]
    studies_of = {"none": "none", "crops and flips": "crop-flip", "full": "full"}
    asked = [
        (augmentation, mixture)
        for augmentation in studies_of
        for mixture in (
            "Un-Mix, equal epochs", "Un-Mix, equal compute", "i-Mix, equal epochs and compute"
        )
    ]  # fmt: skip
    shown_of = {(row[0], row[1]): row[2:] for row in rows}
    assert len(rows) == len(shown_of)
    assert set(shown_of) <= set(asked)
    for augmentation, mixture in asked:
        study = f"augmentation-{studies_of[augmentation]}"
        found, computed = cells(study), precisions(study)
        name, _, how = mixture.partition(", ")
        reference = "plain at Un-Mix's compute" if how == "equal compute" else "plain"
        if name == "i-Mix" and augmentation != "none":
            reference = "plain, 32 bits"
        plain = found.get(reference, {})
        both = [
            seed for seed in sorted(set(found[name]) & set(plain))
            if computed[name, seed] == computed[reference, seed]
        ]  # fmt: skip
        if not both:
            assert (augmentation, mixture) not in shown_of
            continue
        seeds, *shown = shown_of[augmentation, mixture]
        assert seeds == str(len(both))
        for protocol, text in zip(("knn", "linear"), shown, strict=True):
            mean = np.mean([found[name][s][protocol] - plain[s][protocol] for s in both])
            assert text.startswith(f"{mean:+.1f} (")


def test_the_readme_has_what_unmix_adds_to_each_method():
    """Likewise: on photographs, then on CIFAR-10, where MoCo is of the study of augmentation."""
    rows = [
        [word.strip(" *") for word in line.strip("|").split("|")]
        for line in (ROOT / "README.md").read_text().splitlines()
    ]
    head = next(n for n, row in enumerate(rows) if row[:2] == ["method", "photographs: kNN"])
    shown_of = {row[0]: row[1:] for row in rows[head + 2 : rows.index([""], head)]}
    assert len(shown_of) == 6
    for method, shown in shown_of.items():
        pairs = [f"{method}, unmix", f"{method}, none"]
        means = []
        for study in ("methods-photos", "methods-cifar"):
            if (method, study) == ("MoCo", "methods-cifar"):
                study, pairs = "augmentation-none", ["Un-Mix", "plain"]
            candidate, reference = (cells(study)[name] for name in pairs)
            means += [
                np.mean([candidate[s][p] - reference[s][p] for s in candidate if s in reference])
                for p in ("knn", "linear")
            ]
        assert len(shown) == len(means)
        for text, mean in zip(shown, means, strict=True):
            assert text.startswith((f"{mean - 1e-9:+.1f} (", f"{mean + 1e-9:+.1f} ("))


def test_results_open_with_the_answer_and_have_every_study():
    page = (ROOT / "docs" / "results.md").read_text()
    markers = re.findall(r"^<!-- table: (.+) -->$", page, re.MULTILINE)
    assert markers[:2] == ["answer", "answer-figure"]
    assert page.index("<!-- table: answer -->") < page.index("\n## ")
    assert {f"study {name}" for name in STUDIES} <= set(markers)
    # Every table says what a step costs; nothing of a single seed is bold.
    filled = tables.fill_tables(page)
    heads = re.findall(r"^(\|.+\|)\n\| ?---", filled, re.MULTILINE)
    assert len(heads) > len(MEASURED)
    assert all(
        "forward-equivalents" in head or "| cost |" in head or head.startswith("| epoch |")
        for head in heads
    )
    assert not re.search(r"\*\*[\d.]+\*\*", filled)


def made(condition: str, seed: int, knn: float) -> dict[str, Any]:
    return {
        "schema": 1, "condition": condition, "seed": seed, "settings": {"seed": seed},
        "accuracies": {"knn": knn, "linear": knn}, "epochs": 40, "seconds": 60.0,
        "cost": {"forward_equivalents": 4.0, "images_per_epoch": 5000}, "code": {"sources": "a"},
    }  # fmt: skip


def test_new_cells_change_sentence_figure_and_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "augmentation-none"
    (folder / "cells").mkdir(parents=True)
    content = yaml.safe_load((EVIDENCE / "augmentation-none.yaml").read_text())
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setattr(studies, "EVIDENCE", tmp_path)
    assert "**Without augmentation**: not measured yet." in studies.answer()
    assert "**With full augmentation**: not measured yet." in studies.answer()
    assert studies.answer().startswith("**Nothing was measured yet.**")
    figures = set()
    for seed in range(6):
        for condition, knn in (("plain", 28.0 + seed / 10), ("Un-Mix", 35.0 + seed / 5)):
            file = folder / "cells" / f"{condition}-{seed}.json"
            file.write_text(json.dumps(made(condition, seed, knn)))
        figures.add(render(studies.answer_picture(), "svg"))
        told = studies.answer()
        assert ("kNN better by" in told) == (seed == 5)
        assert ("undecided, with too few seeds, without" in told) == (seed < 5)
    assert "kNN better by 7.2 points (95% interval 7.1 to 7.4, 6 paired seeds)" in told
    assert told.startswith(
        "**MoCo with Un-Mix, compared with MoCo alone, is better without augmentation "
        "(kNN and linear probe).**"
    )
    assert len(figures) == 6
    assert "| Un-Mix | 40 | 4.0 | 1.00x |" in studies.study("augmentation-none")
