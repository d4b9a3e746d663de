"""The demo: a study that ships; its first line is the verdict, and nothing is done twice."""

from __future__ import annotations

import copy
import html
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from docsite import ROOT
from unmix.cli import main
from unmix.commands import demo
from unmix.errors import UserError
from unmix.studies import Study, read_study
from unmix.studies.worker import train

# The package's `demo` is the function, which hides the module of the same name.
MODULE = import_module("unmix.commands.demo")
SHIPPED = MODULE._STUDY
PLAIN, MIXED, AUGMENTED = MODULE.PLAIN, MODULE.MIXED, MODULE.AUGMENTED
CMC = ["CMC, crop and flip", "CMC + IM, crop and flip"]
SMALL = {"limit": 60, "size": 8, "batch_size": 30, "precision": "32"}
WORDS: dict[str, Any] = {"data": "digits", "epochs": 1, "device": "cpu"}


def small_study() -> dict[str, Any]:
    found = copy.deepcopy(MODULE._STUDY)
    found["base"] |= SMALL
    for settings in found["conditions"].values():
        if "queue_size" in settings:
            settings["queue_size"] = 60
        else:
            settings |= {"negatives": 32, "seeds": "0-0"}
    return found


class Here:
    """A worker that trains in this process, at once; the last test has real ones."""

    def __init__(self, *_: object) -> None: ...

    def give(self, task: dict[str, Any], log: Path) -> None:
        train(task)

    def status(self) -> int:
        return 0

    def ask_to_end(self) -> None: ...

    def wait(self) -> None: ...


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """The demo at a size for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "_STUDY", small_study())
        patch.setattr("unmix.studies.running.Worker", Here)
        patch.setattr("unmix.studies.running._POLL", 0)
        yield


@pytest.fixture(scope="module")
def shown(small: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a demo, and the lines of its result."""
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("demo") / "demo"
    found = demo(run=str(folder), **WORDS, say=lines.append)
    assert found == folder
    return folder, lines


def test_its_plan_can_give_the_verdict_and_gives_none_of_fewer_seeds() -> None:
    planned = MODULE.demo_study()
    assert not planned.exploratory
    assert {name: len(planned.seeds_of(name)) for name in planned.conditions} == {
        PLAIN: 6, MIXED: 6, AUGMENTED: 6, CMC[0]: 3, CMC[1]: 3
    }  # fmt: skip
    pairs = [pair for family in planned.comparisons.values() for pair in family]
    assert pairs == [(MIXED, PLAIN), (MIXED, AUGMENTED)]
    moved = MODULE.demo_study(seed=10)
    assert moved.seeds == (10, 11, 12, 13, 14, 15)
    assert moved.seeds_of(CMC[0]) == (10, 11, 12)


def test_the_conditions_differ_in_what_their_names_say() -> None:
    planned = MODULE.demo_study()
    flat = {name: planned.resolved(name, 0).flat() for name in planned.conditions}

    def differs(a: str, b: str) -> set[str]:
        return {
            key for key in flat[a].keys() | flat[b].keys() if flat[a].get(key) != flat[b].get(key)
        }

    assert differs(PLAIN, MIXED) == {"unmix"}
    views = {"crop_scale_min", "crop_ratio", "flip_p", "jitter_p", "gray_p"}
    assert differs(PLAIN, AUGMENTED) == views
    assert differs(*CMC) == {"IM"}


def test_the_first_line_is_the_verdict(shown: tuple[Path, list[str]]) -> None:
    folder, lines = shown
    assert lines[0] == read_study(folder).comparisons()[0].words()
    assert lines[0].startswith(f"{MIXED} against {PLAIN}, kNN: ")
    assert "6 paired seeds" in lines[0]
    assert not any(name in line for line in lines[:4] for name in CMC)


def test_the_table_has_every_condition_its_cost_and_what_needs_no_training(
    shown: tuple[Path, list[str]],
) -> None:
    folder, lines = shown
    (table,) = (text for text in lines if "raw pixels" in text)
    head = table.splitlines()[0]
    for column in ("forward-equivalents", "time per run", "seeds", "kNN", "linear"):
        assert column in head
    rows = {re.split(r" {2,}", row)[0]: re.split(r" {2,}", row) for row in table.splitlines()[2:]}
    found = read_study(folder)
    assert list(rows) == [
        "raw pixels", "untrained encoder (MoCo)", "untrained encoder (CMC)",
        PLAIN, MIXED, AUGMENTED, *CMC,
    ]  # fmt: skip
    assert rows["raw pixels"][-2].strip() == f"{found.baselines['raw pixels']['knn'][0]:.1f}"
    knn = list(found.accuracies(PLAIN, "knn").values())
    assert rows[PLAIN][-2].strip().startswith(f"{sum(knn) / 6:.1f} ±")
    forwards = {name: float(rows[name][2]) for name in (PLAIN, MIXED)}
    assert 6 < forwards[MIXED] < 8.5 > 4.5 > forwards[PLAIN] > 3


def test_it_writes_a_figure_and_a_report_that_opens_with_the_verdict(
    shown: tuple[Path, list[str]],
) -> None:
    folder, lines = shown
    assert (folder / "seeds.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "seeds.svg").read_text()
    report = html.unescape((folder / "report.html").read_text())
    (answer,) = re.findall("<h1>(.*?)</h1>", report)
    # The same comparison as in one of the lines, in words of its own; all others follow it.
    told = [line for line in lines if " against " in line]
    (first,) = [line for line in told if f"<li>{line}</li>" not in report]
    assert first.partition(" against ")[0] in answer or "comparisons" in answer
    assert report.index("<h1>") < report.index("<figure") < report.index("<table")
    for text in ("untrained encoder (MoCo)", *CMC, "unmix pretrain"):
        assert text in report
    assert 'src="http' not in report
    assert 'href="http' not in report


def test_a_second_call_trains_nothing_and_shows_the_same(
    shown: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, lines = shown
    before = {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}

    def no_worker(*_: object) -> None:
        raise AssertionError("a run that is complete was trained again")

    monkeypatch.setattr("unmix.studies.running.Worker", no_worker)
    again: list[str] = []
    demo(run=str(folder), **WORDS, say=again.append)
    assert {path.name: path.read_bytes() for path in (folder / "cells").iterdir()} == before
    assert again[:-1] == lines[:-1]  # but how long it took
    assert "0 to train: it is done" in capsys.readouterr().err


def test_other_settings_do_not_go_on_in_the_same_folder(
    shown: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = shown
    with pytest.raises(UserError, match=r"other settings: epochs 1 -> 2.*--stale rerun"):
        demo(run=str(folder), **{**WORDS, "epochs": 2}, say=lambda _: None)
    with pytest.raises(UserError, match="epochs"):
        demo(run=str(tmp_path), data="digits", epochs=0)
    with pytest.raises(UserError, match="stale"):
        demo(run=str(tmp_path), data="digits", stale="renew")


def test_its_help_says_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in ("Train 24 small encoders", "six paired seeds",
                  "Three to thirteen minutes on two cores", "goes on where it was stopped",
                  "--jobs"):  # fmt: skip
        assert words in told


PROGRAM = """
import sys
from importlib import import_module
sys.path.insert(0, {tests!r})
import test_training_demo as tested
tested.MODULE._STUDY = tested.small_study()
from unmix.cli import main
sys.exit(main(["demo", "--data", "digits", "--epochs", "30", "--device", "cpu", "--run", "d"]))
"""


def test_after_ctrl_c_the_same_command_goes_on(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parent)))
    process = subprocess.Popen(
        [sys.executable, str(program)], cwd=tmp_path, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    cells = tmp_path / "d" / "cells"
    while not list(cells.glob("*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "unmix: interrupted; give the same command again to continue." in err
    assert "Traceback" not in err
    assert out == ""
    kept = sorted(cells.glob("*.json"))
    assert json.loads(kept[0].read_text())["epochs"] == 30


EVIDENCE = ROOT / "docs" / "evidence"


def test_the_committed_result_is_complete_and_of_this_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODULE, "_STUDY", SHIPPED)  # tests before this one have a smaller study
    planned = MODULE.demo_study()
    assert Study.load(EVIDENCE / "demo.yaml") == planned
    found = read_study(EVIDENCE / "demo")
    assert found.study == planned
    assert found.missing() == []
    assert set(found.baselines) == {
        "raw pixels", "untrained encoder (MoCo)", "untrained encoder (CMC)"
    }  # fmt: skip


def test_the_pictures_of_the_docs_are_drawn_from_the_committed_result() -> None:
    """If this fails: python docs/tools/demo.py."""
    from tools.demo import pictures  # docsite makes it importable

    for name, content in pictures().items():
        new, old = (
            np.asarray(Image.open(file).convert("L"), float)
            for file in (io.BytesIO(content), EVIDENCE.parent / "images" / name)
        )
        assert new.shape == old.shape
        # Versions of Matplotlib and FreeType differ in single pixels.
        assert np.abs(new - old).mean() < 2
