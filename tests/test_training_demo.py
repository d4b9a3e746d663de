"""The demonstration: four runs, one table, figures and a report; nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from unmix.commands import demo
from unmix.config import Settings
from unmix.errors import UserError
from unmix.results import RunResults, load_results
from unmix.training.loop.module import Pretraining
from unmix.training.run.pretrain import pretrain, settings_for

SMALL: dict[str, Any] = {
    "limit": 100,
    "backbone": "resnet10",
    "width": 0.25,
    "size": 8,
    "batch_size": 50,
    "precision": "32",
    "logger": "none",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "moco": {"queue_size": 64, "bn_splits": 1},
    "cmc": {"negatives": 32},
}
NAMES = ["moco", "moco-im", "cmc", "cmc-im"]


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """The demonstration at a size for tests."""

    def train(**words: Any) -> RunResults:
        return pretrain(**{**SMALL, **OPTIONS[words["method"]], **words})

    def settings(words: dict[str, Any]) -> tuple[Settings, list[str]]:
        return settings_for({**SMALL, **OPTIONS[words["method"]], **words})

    # The package's `demo` is the function, which hides the module of the same name.
    module = import_module("unmix.commands.demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "pretrain", train)
        patch.setattr(module, "settings_for", settings)
        yield


@pytest.fixture(scope="module")
def shown(small: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a demonstration, and the lines that it said itself."""
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("demo") / "demo"
    found = demo(run=str(folder), data="digits", epochs=1, device="cpu", say=lines.append)
    assert found == folder
    return folder, lines


def test_it_trains_moco_and_cmc_with_and_without_mixtures(shown: tuple[Path, list[str]]) -> None:
    folder, _ = shown
    runs = [load_results(folder / name) for name in NAMES]
    assert [(run.method, run.mixture) for run in runs] == [
        ("moco", "none"), ("moco", "IM"), ("cmc", "none"), ("cmc", "IM")
    ]  # fmt: skip
    for run in runs:
        assert (run.data, run.epochs, run.seed) == ("digits", 1, 0)
        assert {row.protocol for row in run.evaluations} == {"knn", "linear"}


def test_one_table_has_a_row_for_each_and_for_what_needs_no_training(
    shown: tuple[Path, list[str]],
) -> None:
    folder, lines = shown
    (table,) = (text for text in lines if "raw pixels" in text)
    rows = table.splitlines()
    for name in ["raw pixels", "untrained encoder", *NAMES]:
        (row,) = (row for row in rows if row.strip().startswith(f"{name} "))
        assert (
            len([word for word in row.split() if word.strip("*").replace(".", "").isdigit()]) >= 2
        )
    final = load_results(folder / "cmc-im").final("knn")
    assert final is not None
    (row,) = (row for row in rows if row.strip().startswith("cmc-im "))
    assert f"{final.top1:.1f}" in row


def test_it_writes_figures_and_a_report_that_stands_alone(shown: tuple[Path, list[str]]) -> None:
    folder, _ = shown
    for stem in ("accuracy", "curves", "predictions"):
        assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{stem}.svg").read_text()
    report = (folder / "report.html").read_text()
    for text in ("untrained encoder", *NAMES):
        assert text in report
    assert 'src="http' not in report
    assert 'href="http' not in report


def test_a_second_call_repeats_no_step_and_says_the_same_table(
    shown: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lines = shown
    before = {name: (folder / name / "results.json").read_bytes() for name in NAMES}

    def no_step(self: Pretraining, *_: Any) -> None:
        raise AssertionError("a run that is complete was trained again")

    monkeypatch.setattr(Pretraining, "training_step", no_step)
    again: list[str] = []
    demo(run=str(folder), data="digits", epochs=1, device="cpu", say=again.append)
    assert {name: (folder / name / "results.json").read_bytes() for name in NAMES} == before
    assert [t for t in again if "raw pixels" in t] == [t for t in lines if "raw pixels" in t]


def test_other_settings_do_not_go_on_in_the_same_folder(
    shown: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = shown
    with pytest.raises(UserError, match=r"moco.*epochs"):
        demo(run=str(folder), data="digits", epochs=2, device="cpu", say=lambda _: None)
    with pytest.raises(UserError, match=r"^epochs must be"):
        demo(run=str(tmp_path), data="digits", epochs=0)
