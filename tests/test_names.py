"""Names are safe to print in a terminal, and are restored from files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unmix.cli import main
from unmix.errors import UserError
from unmix.names import in_words, json_bytes, restored, shown, shown_command, shown_lines, stored
from unmix.results import load_results

TEXTS = st.text(st.characters()) | st.text(st.sampled_from("\\uxd8cf0a\udcff\ud800\n"))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("Übung_图片_👩\u200d🔬.png", "Übung_图片_👩\u200d🔬.png"),
        (r"C:\data\new", r"C:\data\new"),
        ("a\nunmix: all is well", r"a\nunmix: all is well"),
        ("a\r\tb", r"a\r\tb"),
        ("\x1b[31mred\x07\x9b2J", r"\x1b[31mred\x07\x9b2J"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("a\u2028b\u2029\ufeff", r"a\u2028b\u2029\ufeff"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_name_is_shown_as_one_safe_line(name, line):
    assert shown(name) == line


def test_paths_and_other_objects_are_shown():
    assert shown(Path("a\nb")) == r"a\nb"
    assert shown(7) == "7"


@given(TEXTS)
def test_shown_names_are_one_encodable_line_and_idempotent(text):
    line = shown(text)
    line.encode()
    assert len(line.splitlines()) <= 1
    assert "\x1b" not in line
    assert shown(line) == line


def test_names_in_a_sentence():
    assert [in_words(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert in_words(("a", "b"), "or") == "a or b"


def test_newlines_of_a_text_are_kept():
    assert shown_lines("one\ntwo\x1b\n") == "one\ntwo\\x1b\n"


@given(TEXTS)
def test_every_name_can_be_restored(text):
    kept = stored(text)
    kept.encode()
    assert restored(kept) == text


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_plain_names_are_stored_unchanged(text):
    if "\\ud" not in text:
        assert stored(text) == text


# A file's name has no high surrogates, which JSON would join with the low one that follows.
@given(st.text(st.characters(max_codepoint=0xD7FF) | st.sampled_from("\udc80\udcff\\ud")))
def test_names_survive_json_csv_and_yaml(text):
    assert json.loads(json_bytes(json.dumps({"a": text}, ensure_ascii=False))) == {"a": text}
    assert yaml.safe_load(yaml.safe_dump({"a": text}).encode()) == {"a": text}
    file = io.StringIO(newline="")
    csv.writer(file).writerow([stored(text), "reason"])
    rows = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert restored(rows[0][0]) == text


def test_an_error_is_one_line_whatever_the_name():
    path = Path(os.fsdecode(b"a\xff"))
    error = UserError(f"{path}\x1b[2J\nunmix: error: forged")
    assert str(error) == r"a\xff\x1b[2J\nunmix: error: forged"


@pytest.mark.parametrize(
    "word", ["a\x1b[31m b", "\u202egnp", "it's\n\x07", "\udcff", "plain", "\x9b'"]
)
def test_a_command_that_is_shown_does_the_same(word: str) -> None:
    text = shown_command(shlex.join(["printf", "%s", word]))
    assert not re.search("[\x1b\u202e\x07\x9b\udcff]", text)
    done = subprocess.run(
        ["bash", "-c", text], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert os.fsdecode(done.stdout) == word


def test_a_run_with_hostile_names_completes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = os.fsdecode(b"caf\xe9\x1b[2J")
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for label in (os.fsdecode(b"a\xff"), "b\nunmix: error: forged"):
        (tmp_path / data / label).mkdir(parents=True)
        for i, pixels in enumerate(noise):
            Image.fromarray(pixels).save(tmp_path / data / label / f"{i}\x1b[31m.png")
        (tmp_path / data / label / "\x1b[31mbroken\n.png").write_bytes(b"")
    run = os.fsdecode(b"run\xff")
    words = ["--method", "simclr", "--data", data, "--epochs", "1", "--size", "8", "--backbone",
             "resnet10", "--width", "0.0625", "--batch_size", "4", "--workers", "0", "--device",
             "cpu", "--logger", "none", "--run", run]  # fmt: skip
    assert main(["pretrain", *words]) == 0
    assert main(["knn", run]) == 0
    assert main(["compare", run]) == 0
    with open(tmp_path / run / "skipped.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 3
    assert all(os.path.exists(restored(row[0])) for row in rows[1:])
    found = load_results(tmp_path / run)
    assert (found.name, found.data) == (run, data)
    assert found.final("knn") is not None
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert not [line for line in told.splitlines() if line.startswith("unmix: error")]
    assert r"caf\xe9\x1b[2J" in told
    report = (tmp_path / "compare" / "report.html").read_bytes()
    assert rb"caf\xe9\x1b[2J" in report
    assert b"\x1b" not in report
