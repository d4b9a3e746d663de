"""results.json: what is read, what is refused, and that files are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unmix.errors import UserError
from unmix.files import atomic_write
from unmix.results import load_results, write_results


def content(**changes: Any) -> dict[str, Any]:
    data = {
        "schema": 1,
        "name": "a",
        "method": "moco",
        "mixture": "IM",
        "data": "photos",
        "backbone": "resnet18",
        "width": 0.5,
        "size": 32,
        "epochs": 12,
        "seed": 0,
        "command": "unmix pretrain --method moco",
        "evaluations": [
            {"protocol": "knn", "epoch": 12, "top1": 74.2, "top5": 90.1, "k": 200},
            {"protocol": "linear", "epoch": 12, "top1": 78.0},
            {"protocol": "knn", "epoch": 4, "top1": 60, "top5": None},
        ],
        "training": {"seconds": 60.1, "images_per_second": 800.0, "loss": 5.1},
        "hardware": {"cores": 2},
        "versions": {"torch": "2.6"},
    }
    return {**data, **changes}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", content())
    run = load_results(tmp_path)
    assert (run.name, run.method, run.mixture, run.width, run.epochs) == (
        "a",
        "moco",
        "IM",
        0.5,
        12,
    )
    assert run.training["seconds"] == 60.1
    assert run.versions == {"torch": "2.6"}
    assert not run.baseline
    knn = run.final("knn")
    assert knn is not None
    assert (knn.top1, knn.top5, knn.details) == (74.2, 90.1, {"k": 200})


def test_the_last_epoch_is_final_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", content())
    run = load_results(tmp_path)
    assert [row.epoch for row in run.of("knn")] == [4, 12]
    assert run.final("knn") == run.of("knn")[-1]
    assert run.final("cmc") is None


def test_a_run_without_labels_has_no_evaluations(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", content(evaluations=[]))
    assert load_results(tmp_path).evaluations == ()


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", content(training={"loss": float("nan")}))
    assert "NaN" not in (tmp_path / "results.json").read_text()
    assert load_results(tmp_path).training["loss"] is None


def _evaluated(**row: Any) -> dict[str, Any]:
    return content(evaluations=[{"protocol": "knn", "epoch": 1, "top1": 50.0, **row}])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[]", "must be a JSON object"),
        (json.dumps({}), "schema None"),
        (json.dumps(content(schema=2)), "schema 2"),
        (json.dumps(content(method=None)), "method is None"),
        (json.dumps(content(epochs="12")), "epochs is '12'"),
        (json.dumps(content(epochs=True)), "epochs is True"),
        (json.dumps(content(width=float("inf"))), "width is inf"),
        (json.dumps(content(training=[1])), r"training is \[1\]"),
        (json.dumps(content(evaluations={"knn": 1})), "must be a list"),
        (json.dumps(content(evaluations=[3])), r"evaluations\[0\] is 3"),
        (json.dumps(_evaluated(top1=101)), "top1 is 101"),
        (json.dumps(_evaluated(top5=-1)), "top5 is -1"),
        (json.dumps(_evaluated(protocol=None)), "protocol is None"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_results(tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_results(tmp_path)


@pytest.mark.parametrize("folder", ["empty", "missing", "file"])
def test_a_folder_without_results_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{folder}.*no such file"):
        load_results(tmp_path / folder)


def test_refused_content_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, content())
    before = path.read_bytes()
    with pytest.raises(UserError, match="schema 9"):
        write_results(path, content(schema=9))
    assert path.read_bytes() == before


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"file: cannot be written \(No space left on device\)"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        atomic_write(tmp_path / "a" / "b", b"")
