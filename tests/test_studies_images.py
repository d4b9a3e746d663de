"""Studies whose images change: what was measured on others is not reused or paired unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmix.config import Settings
from unmix.errors import UserError
from unmix.results import write_results
from unmix.studies import Study, StudyResults, baselines, images, read_study, run_study, running
from unmix.studies.cost import Cost
from unmix.studies.images import ImagesNow
from unmix.training.run.data_record import DataRecord
from unmix.training.run.parts import fingerprints
from unmix.training.run.pretrain import settings_for


class Here:
    """Stands in for the process that runs `pretrain`: what it measures is the number of images."""

    def __init__(self, *_: object) -> None: ...

    def give(self, task: dict[str, Any], log: Path) -> None:
        words = dict(task["settings"])
        run: Path = words.pop("run")
        if run.exists():
            return  # it is complete
        seen = fingerprints(settings_for(words, task["config"])[0].run)
        run.mkdir(parents=True)
        DataRecord.of(words["data"], seen).write(run)
        row = {"protocol": "knn", "epoch": 2, "top1": float(seen["train"].images)}
        content = {
            "schema": 1, "name": run.name, "method": "moco", "mixture": "none", "data": "photos",
            "backbone": "resnet18", "width": 1, "size": 32, "epochs": 2, "seed": words["seed"],
            "command": "", "evaluations": [row], "training": {"seconds": 1.0},
        }  # fmt: skip
        write_results(run / "results.json", content)

    def status(self) -> int:
        return 0

    def ask_to_end(self) -> None: ...

    def wait(self) -> None: ...


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "Worker", Here)
    monkeypatch.setattr(running, "_POLL", 0)
    monkeypatch.setattr(running, "measure_cost", lambda _: Cost(4.0, 0.1, 3, 2, 32))


def draw(folder: Path, split: str, count: int) -> None:
    for i in range(count):
        file = folder / split / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draw(tmp_path / "imgs", "train", 4)
    draw(tmp_path / "imgs", "val", 2)
    return tmp_path / "imgs"


def study(data: Path | str, seeds: str = "0-0", **base: Any) -> Study:
    content = {
        "base": {"method": "moco", "epochs": 2, "data": str(data), **base},
        "conditions": {"low": {"lr": 0.1}, "high": {"lr": 0.2}},
        "seeds": seeds,
        "evaluations": ["knn"],
        "exploratory": True,
    }
    return Study.of(content, "tried")


def test_cells_of_images_that_have_changed_are_refused_kept_with_a_note_or_trained_again(
    tmp_path: Path, pictures: Path
) -> None:
    folder, said = tmp_path / "s", []
    run_study(study(pictures), folder)
    assert set(json.loads((folder / "cells" / "low-0.json").read_text())["data"]) == {
        "train", "test"
    }  # fmt: skip
    run_study(study(pictures), folder, say=said.append)
    assert said[-1].endswith("0 to train: it is done")
    draw(pictures, "train", 6)
    with pytest.raises(
        UserError, match=r"low-0\.json: was measured with other data: the train images of .*imgs"
    ):
        run_study(study(pictures, "0-1"), folder, say=said.append)
    # Steps of an epoch are others too.
    assert "measuring a few steps of 'low'" in said
    run_study(study(pictures, "0-1"), folder, stale="keep")
    kept = read_study(folder)
    assert kept.accuracies("low", "knn") == {0: 4.0, 1: 6.0}
    assert "- note: the seeds of low are of different train images" in kept.markdown()
    run_study(study(pictures, "0-1"), folder, stale="rerun")
    again = read_study(folder)
    assert again.accuracies("low", "knn") == {0: 6.0, 1: 6.0}
    assert again.marks() == []


def test_other_images_under_the_same_name_in_another_working_directory_are_refused(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    run_study(study("imgs"), tmp_path / "s")
    draw(tmp_path / "elsewhere" / "imgs", "train", 4)
    draw(tmp_path / "elsewhere" / "imgs", "val", 4)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="other data: the test images of imgs have changed"):
        run_study(study("imgs"), tmp_path / "s")


def cell(condition: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "condition": condition, "seed": seed, "settings": {"seed": seed},
        "accuracies": {"knn": 50.0}, "epochs": 2, "cost": {}, "code": {"sources": "a"}, **more,
    }  # fmt: skip


def test_pairs_of_other_images_are_noted_and_cells_without_digests_are_not() -> None:
    known = {"train": "1", "test": "2"}
    planned = study("photos")
    alike = [cell("low", 0, data=known), cell("high", 0, data={"train": "1"})]
    assert StudyResults(planned, alike).marks() == []
    assert StudyResults(planned, [cell("low", 0, data=known), cell("high", 0)]).marks() == []
    other = [cell("low", 0, data=known), cell("high", 0, data={**known, "test": "3"})]
    assert StudyResults(planned, other).marks() == [
        "seeds of high are paired with those of low, which has other test images"
    ]


def test_a_run_that_was_resumed_on_other_images_is_noted(tmp_path: Path) -> None:
    before = {"until": "", "then": "the data has 25 images, the run had 17", "splits": {}}
    DataRecord("imgs", {}, (before,)).write(tmp_path)
    kept = images.data_of_run(tmp_path)
    assert kept == {"data": {}, "data_changes": ["the data has 25 images, the run had 17"]}
    assert StudyResults(study("photos"), [cell("low", 0, **kept)]).marks() == [
        "the data of 1 cell changed while it was trained: low, seed 0"
    ]


def test_data_is_listed_once_and_only_where_that_is_cheap(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []

    def counted(run: Any) -> Any:
        listed.append(run.data)
        return fingerprints(run)

    monkeypatch.setattr(images, "fingerprints", counted)
    now = ImagesNow()

    def of(data: str, **more: Any) -> Any:
        return now.of(Settings.of({"method": "moco", "data": data, **more}).run)

    assert set(of(str(pictures))) == set(of(str(pictures), seed=1)) == {"train", "test"}
    assert of("photos") is None
    assert of("hf:somewhere/else") is None
    assert of(str(pictures / "gone")) is None
    assert listed == [str(pictures), str(pictures / "gone")]


def test_baselines_of_other_images_or_without_an_evaluation_are_measured_again(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, ...]] = []

    def measure(name: str, settings: Settings, protocols: Any) -> dict[str, float]:
        measured.append((name, *protocols))
        return dict.fromkeys(protocols, 50.0)

    monkeypatch.setattr(baselines, "_measure", measure)
    both = [("raw pixels", "knn"), ("untrained encoder", "knn")]

    def again(**changed: Any) -> list[tuple[str, ...]]:
        measured.clear()
        planned = Study.of({**study(pictures).content(), "baselines": True, **changed}, "tried")
        baselines.measure_baselines(planned, tmp_path, ImagesNow(), lambda _: None)
        return measured

    assert again() == both
    assert again() == []
    draw(pictures, "val", 4)
    assert again() == both
    assert [len(each) for each in again(evaluations=["knn", "linear"])] == [3, 3]
    assert again() == []


@pytest.mark.parametrize(
    ("varied", "names"),
    [
        (
            {"data": ["photos", "digits"]},
            ["raw pixels (photos)", "raw pixels (digits)", "untrained encoder (MoCo, photos)",
             "untrained encoder (MoCo, digits)"],
        ),
        (
            {"size": [16, 32]},
            ["raw pixels (size 16)", "raw pixels (size 32)", "untrained encoder (MoCo, size 16)",
             "untrained encoder (MoCo, size 32)"],
        ),
        (
            {"test_folder": {"usual": {}, "other": {"test_folder": "b"}}},
            ["raw pixels (test_folder default)", "raw pixels (test_folder b)",
             "untrained encoder (MoCo, test_folder default)",
             "untrained encoder (MoCo, test_folder b)"],
        ),
        ({}, ["raw pixels", "untrained encoder"]),
    ],
    ids=["data", "size", "test_folder", "none"],
)  # fmt: skip
def test_baselines_are_of_each_data_set_and_say_which(
    varied: dict[str, Any], names: list[str], pictures: Path
) -> None:
    planned = Study.of(
        {
            "vary": {**varied, "mixture": ["none", "unmix"]},
            "base": {"method": "moco", **({"data": str(pictures)} if "data" not in varied else {})},
            "seeds": "0-5",
            "baselines": True,
        },
        "tried",
    )
    assert list(dict.fromkeys(name for name, *_ in baselines._planned(planned))) == names
