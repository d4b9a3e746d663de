"""Every number of a published evaluation is the one in the source that `published_protocols.json`
names: its file and line at a commit, or a section of the paper."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from unmix.commands import detect
from unmix.config import Settings
from unmix.detection.training import DetectionSchedule
from unmix.evaluation import PROTOCOLS, euclidean_knn_predict
from unmix.evaluation.finetuning import FINE_TUNING, FineTuneSettings
from unmix.evaluation.published import SGDSettings

TABLES = json.loads((Path(__file__).parent / "published_protocols.json").read_text("utf-8"))
ENTRIES = [
    (table["source"], entry, name)
    for table in TABLES
    for entry in table["entries"]
    for name in entry["protocols"]
]
NAMES = sorted({name for _, _, name in ENTRIES})
BY: dict[str, Callable[[float, dict[str, Any]], float]] = {
    "x batch / 256": lambda p, w: p * w["batch_size"] / 256,
    "x 8 devices": lambda p, w: p * 8,
}

# What the settings have besides, and why no line of a source says it.
OURS = {
    "source": "where it is from, in words",
    "augmentation": "crops and flips, a preset by name",
    "crop_scale_min": "0.08, the default of RandomResizedCrop, where no table has another",
    "start": "the usual N(0, 0.01), where the source has no line for it",
    "head_std": "as the probes start",
    "scaled": "only where the source states a rate for a batch of 256",
}
# Of fields that a schedule does not use.
UNUSED = {"milestones": (), "gamma": (1.0, 0.1), "final_lr": 0.0, "warmup_epochs": 0.0}


def settings_of(name: str) -> dict[str, Any]:
    """The settings here of an evaluation of the table."""
    if name == "detect":
        given = {k: p.default for k, p in inspect.signature(detect).parameters.items()}
        schedule = DetectionSchedule()
        falls = [s for s in range(1, schedule.steps) if schedule.rate(s) < schedule.rate(s - 1)]
        return {**given, "warmup": schedule.warmup, "milestones": falls}
    if name == "knn":
        defaults = Settings().flat()
        return {"k": defaults["knn_k"], "temperature": defaults["knn_temperature"]}
    if name == "knn-euclidean":
        return {"k": inspect.signature(euclidean_knn_predict).parameters["k"].default}
    first, *rest = name.split()
    if first == "finetune":
        settings, share = rest
        return asdict(FINE_TUNING[settings](float(share[:-1]) / 100))
    data, color_space, width = (*rest, *("imagenet", "RGB", "1")[len(rest) :])
    return asdict(PROTOCOLS[first].published(data, color_space, float(width)))


def differences(name: str, ours: dict[str, Any]) -> list[str]:
    """What of an evaluation is not as published, in words."""
    found = []
    for source, entry, one in ENTRIES:
        if one != name:
            continue
        wanted, value = entry["value"], ours[entry["key"]]
        if "published" in entry:
            assert wanted == pytest.approx(BY[entry["by"]](entry["published"], ours))
        if wanted is None or isinstance(wanted, (str, bool)):
            same = value == wanted
        else:
            value = list(value) if isinstance(value, (list, tuple)) else value
            same = value == pytest.approx(wanted, rel=1e-9, abs=1e-15)
        if not same:
            where = f"{source}/{entry['file']}:{entry['line']}"
            found.append(f"{name}: {entry['key']} is {value}, published {wanted} ({where})")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_the_published_one(name: str) -> None:
    assert differences(name, settings_of(name)) == []


@pytest.mark.parametrize(
    ("name", "key", "slip"),
    [
        ("finetune simclr 1%", "lr", 0.05),
        ("finetune simclr 10%", "epochs", 60),
        ("finetune swav 1%", "head_lr", 0.2),
        ("whitening", "epochs", 1000),
        ("whitening", "weight_decay", 1e-6),
        ("knn-euclidean", "k", 20),
        ("cmc imagenet Lab 2", "lr", 30.0),
        ("detect", "milestones", [16000, 22000]),
    ],
)
def test_a_slip_is_found(name: str, key: str, slip: Any) -> None:
    (found,) = differences(name, {**settings_of(name), key: slip})
    assert found.startswith(f"{name}: {key} is {slip}, published ")


def test_every_evaluation_and_every_field_is_in_the_table_or_said_to_be_ours() -> None:
    words = {name.split()[0] for name in NAMES}
    assert words == {*PROTOCOLS, "finetune", "detect"} - {"linear"}  # `linear` is this project's
    assert {name.split()[1] for name in NAMES if name.startswith("finetune")} == set(FINE_TUNING)
    for name in NAMES:
        if name.startswith(("knn", "detect")):
            continue
        kind = FineTuneSettings if name.startswith("finetune") else SGDSettings
        published = {entry["key"] for _, entry, one in ENTRIES if one == name}
        ours = settings_of(name)
        for field in fields(kind):
            if field.name in published | OURS.keys():
                continue
            default = ours[field.name] == field.default
            assert default or ours[field.name] in (UNUSED.get(field.name), 1.0), (name, field.name)


def test_the_table_is_whole() -> None:
    for table in TABLES:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", table["source"])
        assert re.fullmatch(r"[0-9a-f]{40}", table["commit"])
        for entry in table["entries"]:
            paper = entry["file"].startswith("arXiv ")
            assert entry["line"] is None if paper else entry["line"] >= 1
            assert set(entry) - {"protocols", "key", "value", "file", "line"} <= {"published", "by"}
