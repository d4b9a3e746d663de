"""Studies that run: what is measured once, what a stop and a failure leave, what is stale.

A small program stands in for `unmix pretrain`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from unmix.commands.study import study as command
from unmix.errors import UserError
from unmix.studies import Study, elsewhere, read_study, run_study, running, stale
from unmix.studies.cost import Cost
from unmix.studies.watching import watch_study
from unmix.workers import Worker

FAKE = """
import os, sys, time
from pathlib import Path
from unmix.results import write_results
from unmix.workers import serve

def run(task):
    words = task["settings"]
    run, seed, lr = Path(words["run"]), words["seed"], words["lr"]
    if (run / "results.json").exists():
        return  # as `pretrain`: it is complete
    run.mkdir(parents=True, exist_ok=True)
    with open(run.parent / "starts.txt", "a") as file:
        file.write(f"{run.name} {os.getpid()}\\n")
    print("training", run.name)
    if lr == 7:
        os._exit(9)
    if lr > 1:
        sys.exit("unmix: error: the loss is nan")
    time.sleep(float({sleep!r}))
    (run / "metrics.csv").write_text("epoch,loss\\n0,1\\n1,1\\n")
    rows = [dict(protocol=p, epoch=2, top1=50 + 100 * lr + seed) for p in ("knn", "linear")]
    rows.append(dict(protocol="knn", epoch=1, top1=40))
    write_results(run / "results.json", dict(
        schema=1, name=run.name, method="moco", mixture="none", data="photos", backbone="resnet18",
        width=1, size=32, epochs=2, seed=seed, command="", evaluations=rows,
        training=dict(seconds=1.0, loss=2.0)))

serve(run)
"""


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, 0.0)
    monkeypatch.setattr(running, "measure_cost", lambda _: Cost(4.0, 0.1, 3, 2, 32))


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sleep: float) -> None:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(FAKE.replace("{sleep!r}", str(sleep))))
    monkeypatch.setattr(running, "PROGRAM", (sys.executable, str(path)))
    monkeypatch.setattr(running, "_POLL", 0.02)


def study(lr: float = 0.2, seeds: str = "0-1") -> Study:
    content = {
        "base": {"method": "moco", "epochs": 2},
        "conditions": {"low": {"lr": 0.1}, "high": {"lr": lr}},
        "seeds": seeds,
        "exploratory": True,
    }
    return Study.of(content, "tried")


def starts(folder: Path) -> list[str]:
    return (folder / "runs" / "starts.txt").read_text().splitlines()


@pytest.mark.parametrize(("asked", "jobs", "threads"), [(None, 1, 4), (None, 3, 1), ("2", 4, 2)])
def test_steps_are_timed_on_the_threads_that_a_cell_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, jobs: int, threads: int
) -> None:
    """On all cores an estimate for several jobs at a time would count them several times."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(running, "usable_cores", lambda: 4)
    seen, before = [], torch.get_num_threads()

    def timed(_: object) -> Cost:
        seen.append(torch.get_num_threads())
        return Cost(4.0, 0.1, 3, 2, 32)

    monkeypatch.setattr(running, "measure_cost", timed)
    run_study(study(), tmp_path / "s", jobs=jobs, say=lambda _: None)
    assert seen == [threads] * 2
    assert torch.get_num_threads() == before


def test_cells_are_trained_once_and_more_seeds_are_added(tmp_path: Path) -> None:
    folder, said = tmp_path / "s", []
    assert run_study(study(), folder, jobs=2, say=said.append) == []
    assert len(starts(folder)) == 4
    assert "study tried: 2 conditions x 2 seeds, 4 cells, 4 to train" in "\n".join(said)
    assert run_study(study(), folder, say=said.append) == []
    assert len(starts(folder)) == 4
    assert "0 to train" in said[-1]
    assert run_study(study(seeds="0-2"), folder) == []
    assert len(starts(folder)) == 6
    results = read_study(folder)
    assert results.accuracies("high", "knn") == {0: 70.0, 1: 71.0, 2: 72.0}
    found = json.loads((folder / "cells" / "high-1.json").read_text())
    assert found["command"].startswith("unmix pretrain --method moco --epochs 2 --lr 0.2 --seed 1")
    assert str(tmp_path) not in json.dumps(found)
    assert found["code"]["sources"]
    # Of what was measured during training all values, of what was not none.
    assert found["course"] == {"knn": {"1": 40.0, "2": 71.0}}


def test_a_cell_that_another_study_has_measured_is_taken_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_study(study(), tmp_path / "first")
    said: list[str] = []
    read: list[Path] = []
    read_cell = elsewhere.read_cell
    monkeypatch.setattr(elsewhere, "read_cell", lambda path: read.append(path) or read_cell(path))
    other = Study.of(
        {
            "base": {"method": "moco", "epochs": 2},
            "conditions": {"baseline": {"lr": 0.1}, "higher": {"lr": 0.4}},
            "seeds": "0-2",
            "exploratory": True,
        },
        "second",
    )
    assert run_study(other, tmp_path / "second", say=said.append) == []
    assert "baseline, seed 1: taken from study first (same settings, seed and code)" in said
    assert len(read) == len(set(read)) == 4  # for two conditions that miss each of them
    # Seed 2 of the baseline was not in the first study; no other condition has its settings.
    assert len(starts(tmp_path / "second")) == 4
    found = json.loads((tmp_path / "second" / "cells" / "baseline-1.json").read_text())
    assert (found["condition"], found["from_study"]) == ("baseline", "first")
    assert read_study(tmp_path / "second").accuracies("baseline", "knn") == {0: 60, 1: 61, 2: 62}
    notes = read_study(tmp_path / "second").marks()
    assert "2 cells measured by study first, with the same settings, seed and code" in notes
    # A third study names the one that measured it.
    run_study(other, tmp_path / "b")
    assert json.loads((tmp_path / "b/cells/baseline-1.json").read_text())["from_study"] == "first"


@pytest.mark.parametrize("of", ["a folder", "other code", "a missing protocol", "a damaged file"])
def test_no_cell_is_taken_that_may_be_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    base: dict[str, object] = {"method": "moco", "epochs": 2}
    if of == "a folder":
        (tmp_path / "pictures").mkdir()
        base["data"] = str(tmp_path / "pictures")
    conditions = {"low": {"lr": 0.1}, "high": {"lr": 0.2}}
    content = {"base": base, "conditions": conditions, "seeds": "0-0", "exploratory": True}
    run_study(Study.of(content, "one"), tmp_path / "one")
    cell = tmp_path / "one" / "cells" / "low-0.json"
    found = json.loads(cell.read_text())
    if of == "other code":
        found["code"]["sources"] = "0" * 12
    elif of == "a missing protocol":
        del found["accuracies"]["knn"]
    cell.write_text("{" if of == "a damaged file" else json.dumps(found))
    said: list[str] = []
    assert run_study(Study.of(content, "two"), tmp_path / "two", say=said.append) == []
    taken = {"a folder": 0}.get(of, 1)  # the other condition's, which is as it was
    assert len(starts(tmp_path / "two")) == 2 - taken
    assert sum("taken from" in line for line in said) == taken


def test_a_failing_condition_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    folder, said = tmp_path / "s", []
    failed = run_study(study(lr=5.0), folder, say=said.append)
    assert sorted(failed) == ["high, seed 0", "high, seed 1"]  # whichever ends first
    line = next(line for line in said if "FAILED" in line)
    assert "the loss is nan" in line
    assert "log:" in line
    assert sorted(p.name for p in (folder / "cells").iterdir()) == ["low-0.json", "low-1.json"]
    assert run_study(study(lr=0.3), folder) == []


def test_a_process_takes_cell_after_cell_and_a_failure_is_its_last(tmp_path: Path) -> None:
    folder = tmp_path / "good"
    assert run_study(study(seeds="0-3"), folder) == []
    assert len({line.split()[1] for line in starts(folder)}) == 1
    logs = sorted(path for path in (folder / "runs").glob("*.log"))
    assert len(logs) == 8
    assert all(path.read_text() == f"training {path.stem}\n" for path in logs)
    # low, high (fails), low, high (fails): each failure ends its process.
    run_study(study(lr=5.0), tmp_path / "apart" / "bad")
    pids = [line.split()[1] for line in starts(tmp_path / "apart" / "bad")]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_a_process_that_dies_is_a_cell_that_failed(tmp_path: Path) -> None:
    folder, said = tmp_path / "s", []
    failed = run_study(study(lr=7), folder, jobs=2, say=said.append)
    assert sorted(failed) == ["high, seed 0", "high, seed 1"]  # whichever ends first
    assert sorted(p.name for p in (folder / "cells").iterdir()) == ["low-0.json", "low-1.json"]


def test_cells_of_other_settings_are_refused_kept_or_measured_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    run_study(study(), folder)
    with pytest.raises(UserError, match=r"high-0\.json: was measured with other settings: lr 0\.2"):
        run_study(study(lr=0.4), folder)
    said: list[str] = []
    assert run_study(study(lr=0.4), folder, stale="keep", say=said.append) == []
    assert any("kept" in line for line in said)
    assert read_study(folder).accuracies("high", "knn")[0] == 70.0
    run_study(study(lr=0.4), folder, stale="rerun", say=said.append)
    assert read_study(folder).accuracies("high", "knn")[0] == 90.0
    assert (folder / "cells" / "high-0.json.old").exists()


def test_cells_of_other_code_are_refused_or_trained_again_and_nothing_before_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The complete run of the old code, in the same folder, was taken for the new result."""
    folder = tmp_path / "s"
    run_study(study(seeds="0-0"), folder)
    now = {"version": "9", "sources": "0" * 12}
    monkeypatch.setattr(stale, "code_of", lambda settings: now)
    with pytest.raises(UserError, match=r"other code: version .* not version 9"):
        run_study(study(seeds="0-0"), folder)
    assert len(starts(folder)) == 2
    for _ in range(2):
        assert run_study(study(seeds="0-0"), folder, stale="rerun") == []
    assert len(starts(folder)) == 6
    names = sorted(path.name for path in (folder / "cells").glob("low-*"))
    assert names == ["low-0.json", "low-0.json.old", "low-0.json.old-2"]
    runs = sorted(path.name[14:] for path in (folder / "runs").glob("low-0-*") if path.is_dir())
    assert runs == ["", ".old", ".old-2"]


def test_what_has_the_time_of_another_is_timed_on_the_machine_that_trains_it(
    tmp_path: Path,
) -> None:
    planned = Study.of(
        {
            "base": {"method": "moco", "epochs": 2},
            "conditions": {
                "low": {"lr": 0.1},
                "as long": {"lr": 0.2, "same_time_as": "low"},
                "other": {"lr": 0.3},
            },
            "seeds": "0-1",
            "exploratory": True,
        },
        "tried",
    )
    folder, said = tmp_path / "s", []
    # The stand-in says of no cost where it was measured: as of another machine.
    run_study(planned, folder, seeds=[0], say=said.append)
    assert sum(line.startswith("measuring a few steps") for line in said) == 3
    said.clear()
    run_study(planned, folder, say=said.append)
    assert [line for line in said if "measuring" in line] == [
        "measuring a few steps of 'low'", "measuring a few steps of 'as long'"
    ]  # fmt: skip
    assert "as measured before, and evaluations" in "".join(said)
    said.clear()
    run_study(planned, folder, say=said.append)  # with nothing to train
    assert not any("measuring" in line for line in said)


def test_how_long_a_study_takes_says_on_which_machine_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    cost = Cost(4.0, 0.1, 3, 2, 32, machine="an old laptop, 2 threads")
    monkeypatch.setattr(running, "measure_cost", lambda _: cost)
    run_study(study(), tmp_path, seeds=[0], say=said.append)
    assert "as measured on an old laptop, 2 threads, and" in said[-3]


def test_a_second_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    stand_in(monkeypatch, tmp_path, 1.0)
    refused: list[str] = []

    def second() -> None:
        while not (folder / "runs" / "starts.txt").exists():
            time.sleep(0.02)
        try:
            run_study(study(), folder)
        except UserError as error:
            refused.append(str(error))

    thread = threading.Thread(target=second)
    thread.start()
    assert run_study(study(), folder, jobs=4) == []
    thread.join()
    assert len(refused) == 1
    assert f"--out: {folder} is in use by process {os.getpid()}" in refused[0]
    assert len(starts(folder)) == 4


def test_a_stopped_study_ends_its_processes_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    stand_in(monkeypatch, tmp_path, 60.0)

    def stop() -> None:
        while not (folder / "runs" / "starts.txt").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_study(study(), folder, jobs=2)
    assert time.monotonic() - start < 30
    assert not list((folder / "cells").glob("*"))
    stand_in(monkeypatch, tmp_path, 0.0)
    assert run_study(study(), folder, jobs=2) == []
    assert len(read_study(folder).cells) == 4


def test_baselines_are_measured_once_and_stand_in_the_table(tmp_path: Path) -> None:
    """Raw pixels and untrained encoders, as `pretrain` would measure them."""
    content = {
        "base": {
            "data": "digits", "limit": 60, "backbone": "resnet10", "width": 0.25, "size": 8,
            "epochs": 2, "lr": 0.1, "device": "cpu", "precision": "32",
        },
        "conditions": {
            "MoCo": {"method": "moco"},
            "slower": {"method": "moco", "lr": 0.05},
            "SimCLR": {"method": "simclr", "width": 0.125, "seeds": [1]},
        },
        "comparisons": [],
        "seeds": [1, 2],
        "baselines": True,
    }  # fmt: skip
    folder, said = tmp_path / "s", []
    planned = Study.of(content, "tried")
    assert Study.of(planned.content(), "tried") == planned
    run_study(planned, folder, say=said.append)
    found = read_study(folder)
    assert {name: sorted(rows["knn"]) for name, rows in found.baselines.items()} == {
        "raw pixels": [1],
        "untrained encoder (MoCo)": [1, 2],
        "untrained encoder (SimCLR)": [1],
    }
    assert found.as_dict()["baselines"] == found.baselines
    first, *rows = found.rows()
    assert first[:6] == ["raw pixels", "–", "–", "–", "–", "1"]
    assert first[6] == f"{found.baselines['raw pixels']['knn'][1]:.1f}"
    assert [row[0] for row in rows[2:]] == ["MoCo", "slower", "SimCLR"]
    one, other = found.baselines["untrained encoder (MoCo)"]["linear"].values()
    assert one != other
    before = (folder / "baselines.json").read_bytes()
    again: list[str] = []
    run_study(planned, folder, say=again.append)
    assert (folder / "baselines.json").read_bytes() == before
    assert not any(line.startswith("measuring") for line in again)
    (folder / "baselines.json").write_text("{")
    with pytest.raises(UserError, match=r"baselines\.json: is damaged; remove it"):
        read_study(folder)


def test_what_a_process_trained_before_changes_no_bit_of_a_cell(tmp_path: Path) -> None:
    words = {
        "method": "moco", "data": "digits", "limit": 48, "backbone": "resnet10", "width": 0.25,
        "size": 8, "epochs": 1, "batch_size": 24, "queue_size": 48, "bn_splits": 1, "knn_every": 0,
        "logger": "none", "device": "cpu", "precision": "32", "unmix": True,
    }  # fmt: skip
    worker = Worker([sys.executable, "-m", "unmix.studies.worker"], {"OMP_NUM_THREADS": "1"})
    for seed, name in ((1, "fresh"), (0, "before"), (1, "second")):
        settings = {**words, "seed": seed, "run": tmp_path / name}
        worker.give({"config": None, "settings": settings}, tmp_path / f"{name}.log")
        while (status := worker.status()) is None:
            time.sleep(0.05)
        assert status == 0, (tmp_path / f"{name}.log").read_text()
    worker.ask_to_end()
    worker.wait()
    fresh, second = (
        load_file(tmp_path / name / "encoder.safetensors") for name in ("fresh", "second")
    )
    assert all(torch.equal(weight, second[name]) for name, weight in fresh.items())


def test_a_part_of_a_study_is_run_first_and_the_study_stays_as_planned(tmp_path: Path) -> None:
    folder, said = tmp_path / "s", []
    assert run_study(study(), folder, only=["low"], seeds=[1], say=said.append) == []
    assert [line.split("-")[:2] for line in starts(folder)] == [["low", "1"]]
    assert "part of the study: 1 of its 4 cells" in said
    assert read_study(folder).study == study()
    assert run_study(study(), folder) == []
    assert len(starts(folder)) == 4


def test_some_seeds_of_a_study_file_are_its_part_and_others_are_added(tmp_path: Path) -> None:
    file, out = tmp_path / "tried.yaml", str(tmp_path / "studies")
    file.write_text(yaml.safe_dump(study().content()))
    part = command(str(file), out=out, seeds=["1"], only=["low,high"], say=lambda _: None)
    assert [(c["condition"], c["seed"]) for c in part.cells] == [("high", 1), ("low", 1)]
    assert part.study == study()
    more = command(str(file), out=out, seeds=["0-2"], say=lambda _: None)
    assert more.study.seeds == (0, 1, 2)
    assert more.missing() == []
    # Those before are not replaced.
    other = command(str(file), out=out, seeds=["4"], only=["low"], say=lambda _: None)
    assert other.study.seeds == (0, 1, 4)
    assert set(other.accuracies("low", "knn")) == {0, 1, 4}
    assert other.beside == ["high, seed 2", "low, seed 2"]
    with pytest.raises(UserError, match=r"only: 'lwo' is unknown\. Did you mean 'low'"):
        command(str(file), out=out, only=["lwo"])


def test_a_study_is_watched_from_its_folder_until_it_is_complete(tmp_path: Path) -> None:
    folder, said = tmp_path / "s", []
    run_study(study(), folder, seeds=[0], say=lambda _: None)
    begun = folder / "runs" / "low-1-01234567"
    begun.mkdir()
    (begun / "config.yaml").write_text("method: moco\nepochs: 40\n")
    (begun / "metrics.csv").write_text("epoch,loss\n0,1\n1,1\n2,1\n")
    (folder / ".owner.json").write_text(
        json.dumps({"host": socket.gethostname(), "process": os.getpid()})
    )

    def train(_: float) -> None:
        for name in ("low", "high"):
            cell = json.loads((folder / "cells" / f"{name}-0.json").read_text())
            text = json.dumps({**cell, "seed": 1, "settings": {**cell["settings"], "seed": 1}})
            (folder / "cells" / f"{name}-1.json").write_text(text)

    found = watch_study(folder, read_study(folder), said.append, train)
    assert found.missing() == []
    assert said[0] == "2 of 4 cells measured; begun: low, seed 1 (epoch 3/40)"
    assert said[1].startswith("- high against low, kNN: +10.0 points over 2 paired seeds")
    assert said[2] == "4 of 4 cells measured"


def test_watching_a_study_that_nothing_trains_says_so_and_ends(tmp_path: Path) -> None:
    folder, said = tmp_path / "s", []
    run_study(study(), folder, seeds=[0], say=lambda _: None)
    for owner in (None, {"host": socket.gethostname(), "process": 2**22 + 1}):
        if owner is not None:
            (folder / ".owner.json").write_text(json.dumps(owner))
        watch_study(folder, read_study(folder), said.append)
        assert said[-1] == f"no process works on {folder}; unmix study goes on with it"
