"""What a run, a fine-tuning, features and shards keep for themselves is checked when read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mutations import WRONG_JSON, json_variants
from streams import write_shards
from unmix.commands.finished import line_of
from unmix.commands.fitting import WorkFolder
from unmix.data import load
from unmix.data.streams import ShardImages, loading
from unmix.data.streams.tar import _label
from unmix.embedding import Chunk, Chunks, NamedSet
from unmix.errors import UserError
from unmix.files import read_rows
from unmix.studies.watching import run_state
from unmix.training.loop.records import Records

ROW = {
    "protocol": "finetune", "settings": "a", "epoch": 2, "top1": 50.0, "top5": None,
    "chosen": {"lr": 0.1},
}  # fmt: skip


def line_of_error(call: Callable[[], object]) -> str:
    """The line of the UserError that a call ends with, or nothing; it may end in no other."""
    try:
        call()
    except UserError as error:
        line = str(error)
    else:
        return ""
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch,step\n0,x\n", "line 2: step is 'x'; it must be a whole number"),
        ("epoch,step\n0,5\n1,-5\n", "line 3: step is -5.0; it must be a whole number"),
        ("epoch,step\n1e300,5\n", "line 2: epoch is 1e+300; it must be a whole number"),
        ("epoch,step\n0,inf\n", "line 2: step is inf"),
        ("epoch,step,epoch\n0,1,2\n", "has the column 'epoch' twice"),
        ("epoch\n" + "a" * 200_000, "is not valid CSV"),
        ("\xff", "byte 0 is not UTF-8"),
    ],
    ids=lambda text: text[:20],
)
def test_damaged_metrics_of_a_run_that_goes_on_are_one_line(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode("latin-1"))
    line = line_of_error(Records(path).read)
    assert line.startswith(f"{path}: ")
    assert says in line
    assert line.endswith(" Remove it to go on without the rows of earlier epochs.")
    assert path.exists()


def test_metrics_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = Records(tmp_path / "metrics.csv")
    records.add({"epoch": 0, "step": 5, "loss": 1.5})
    records.add({"epoch": 1, "step": 10, "knn": 40.0})
    records.write()
    read = Records(records.path)
    read.rows = read.read()
    read.drop_after(5)
    assert read.rows == [{"epoch": "0", "step": "5", "loss": "1.5"}]
    assert [number for number, _ in read_rows(records.path)] == [2, 3]


@pytest.mark.parametrize(
    "row", ["²,1,1", "9" * 400 + ",1,1", "1", "1,inf,5", "1,5,nan", "1,x,5", "1,5,1e-320", ",,,,"]
)
def test_damaged_metrics_do_not_stop_what_watches(tmp_path: Path, row: str) -> None:
    (tmp_path / "config.yaml").write_text("method: moco\nepochs: 4\nbatch_size: 8\n")
    owner = {"host": "another", "process": 5, "since": "today", "job": None, "lock": 7}
    (tmp_path / ".owner.json").write_text(json.dumps(owner))
    (tmp_path / "metrics.csv").write_text(f"epoch,step,images_per_second\n0,5,10\n{row}\n")
    state = run_state(tmp_path)
    assert state.what.startswith("running, epoch ")
    assert "\n" not in state.text


def test_every_wrong_result_of_a_fine_tuning_is_one_line(tmp_path: Path) -> None:
    work, path = WorkFolder(tmp_path), tmp_path / "result.json"
    settings = {"prepares": ""}
    (tmp_path / "settings.json").write_text(json.dumps(settings))

    def read() -> None:
        found = work.result(settings, overwrite=False)
        assert found is not None
        line_of(found)

    wrong = 0
    for _, content in json_variants(json.dumps(ROW).encode()):
        path.write_bytes(content)
        if line := line_of_error(read):
            assert line.startswith(f"{path}: ")
            assert line.endswith("Give --overwrite to train again.")
            wrong += 1
        assert work.result(settings, overwrite=True) is None
    assert wrong > 50


@pytest.mark.parametrize("content", WRONG_JSON, ids=lambda content: repr(content[:12]))
def test_damaged_records_of_a_fine_tuning_are_one_line(tmp_path: Path, content: bytes) -> None:
    work = WorkFolder(tmp_path)
    (tmp_path / "select.json").write_bytes(content)
    line = line_of_error(work.tried)
    assert line.startswith(str(tmp_path / "select.json"))
    assert line.endswith("Remove it to try all rates again.")
    (tmp_path / "settings.json").write_bytes(content)
    assert line_of_error(lambda: work.result({}, overwrite=True))


@pytest.fixture
def chunks(tmp_path: Path) -> Chunks:
    images = load("digits", "test")
    few = NamedSet(dataclasses.replace(images, images=images.images[:8], labels=None, classes=None))  # type: ignore[attr-defined]
    return Chunks(tmp_path / "f.npy", [few], {}, dim=3, batch_size=4)


def test_a_damaged_chunk_is_made_anew(chunks: Chunks) -> None:
    good = Chunk(np.zeros((7, 3), np.float32), np.arange(7), (("a", "b"),))
    chunks.folder.mkdir()
    chunks.save(0, good)
    assert chunks.done() == 1
    with np.load(chunks.path(0)) as file:
        arrays: dict[str, Any] = dict(file)
    wrong: list[tuple[str, Any]] = [
        *(("broken", np.array(content.decode("latin-1"))) for content in WRONG_JSON),
        ("broken", np.array('[["a", 5]]')), ("broken", np.array(5)), ("broken", np.zeros(2)),
        ("features", np.zeros((7, 4), np.float32)), ("features", np.zeros((6, 3), np.float32)),
        ("features", np.zeros((7, 3))), ("index", np.arange(7.0)), ("index", np.arange(7) - 1),
        ("index", np.arange(7) + 2), ("index", np.int64(5)), ("digest", np.zeros(3)),
    ]  # fmt: skip
    for name, value in wrong:
        if name == "broken" and str(value) == "[]":
            continue
        np.savez(chunks.path(0), **{**arrays, name: value})
        assert chunks.done() == 0, (name, value)
        assert "is gone or damaged; give the command again." in line_of_error(lambda: list(chunks))
    for name in arrays:
        np.savez(chunks.path(0), **{k: v for k, v in arrays.items() if k != name})
        assert chunks.done() == 0, name


def test_damaged_colors_of_shards_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shards(tmp_path / "data", [6])

    def colors() -> tuple[Any, Any]:
        found = load(str(tmp_path / "data"), "train")
        assert isinstance(found, ShardImages)
        return found.mean, found.std

    good = colors()
    (path,) = (tmp_path / "cache").rglob("index/*.json")
    content = path.read_bytes()
    measured: list[int] = []
    monkeypatch.setattr(loading, "estimate_mean_std", lambda *_: measured.append(1) or good)
    for number, (_, wrong) in enumerate(json_variants(content)):
        if number % 4:
            continue
        path.write_bytes(wrong)
        found = colors()
        assert np.all((np.array(found) >= 0) & (np.array(found) <= 1))
    assert len(measured) > 15


@pytest.mark.parametrize("content", WRONG_JSON, ids=lambda content: repr(content[:12]))
def test_a_damaged_list_of_shards_is_one_line(tmp_path: Path, content: bytes) -> None:
    write_shards(tmp_path, [3])
    path = tmp_path / "list.json"
    path.write_bytes(content)
    line = line_of_error(lambda: load(f"wds:{path}", "train"))
    assert str(path) in line


@pytest.mark.parametrize("content", WRONG_JSON, ids=lambda content: repr(content[:12]))
def test_a_damaged_label_of_a_shard_is_none(content: bytes) -> None:
    assert _label("json", content) == ""
    assert _label("json", b'{"label": 5}') == "5"
