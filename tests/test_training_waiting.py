"""A run says if it spends its time waiting for images, or evaluating."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unmix.training import pretrain
from unmix.training.loading.loaders import FileCrops
from unmix.training.loop import waiting
from unmix.training.loop.waiting import Waiting, share_of_evaluation


def epoch(callback: Waiting, now: list[float], steps: list[tuple[float, float]]) -> None:
    """An epoch with a start of 100 s, and for each step the wait before it and its own time."""
    callback.on_train_epoch_start()
    now[0] += 100.0
    for number, (wait, step) in enumerate(steps):
        now[0] += wait if number else 0.0
        callback.on_train_batch_start()
        now[0] += step
        callback.on_train_batch_end()
    trainer: Any = SimpleNamespace(is_global_zero=True)
    callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.01, 5)), min_size=2, max_size=30),
)
def test_the_share_is_that_of_the_waits_after_the_first_batch(steps):
    now, lines = [0.0], []
    epoch(Waiting("do this", lines.append, lambda: now[0]), now, steps)
    waited = sum(wait for wait, _ in steps[1:])
    whole = waited + sum(step for _, step in steps)
    share = waited / whole
    if abs(share - 0.2) < 1e-6 or abs(whole - 10) < 1e-6:
        return
    if share > 0.2 and whole > 10:
        assert lines == [f"note: {share:.0%} of this epoch was spent waiting for images; do this"]
    else:
        assert lines == []


def test_it_is_said_once_and_of_the_epoch_that_waits():
    now, lines = [0.0], []
    callback = Waiting("do this", lines.append, lambda: now[0])
    epoch(callback, now, [(0.0, 1.0)] * 20)
    assert lines == []
    epoch(callback, now, [(1.0, 1.0)] * 20)
    epoch(callback, now, [(1.0, 1.0)] * 20)
    assert len(lines) == 1
    assert lines[0].startswith("note: 49% of this epoch")


def test_a_run_on_slow_files_says_it(tmp_path, monkeypatch, capsys):
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    get = FileCrops.__getitems__

    def slow(self: FileCrops, key: Any) -> Any:
        time.sleep(0.05)
        return get(self, key)

    monkeypatch.setattr(FileCrops, "__getitems__", slow)
    monkeypatch.setattr(waiting, "_SHORT", 0.1)
    pretrain(
        data=str(tmp_path), method="simclr", backbone="resnet10", width=0.125, size=16,
        resident="no", workers=0, batch_size=8, epochs=1, evaluate=False, knn_every=0,
        logger="none", device="cpu", run=str(tmp_path / "run"),
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "of this epoch was spent waiting for images; give more than --workers 0 if" in said


@given(st.floats(300, 1e5), st.floats(1, 1e6), st.integers(1, 50))
def test_evaluations_as_rare_as_is_said_take_a_twentieth(evaluating, training, every):
    line = share_of_evaluation(evaluating, training, {"knn_every": every, "linear_every": 0}, False)
    share = evaluating / (evaluating + training)
    assert (line is None) == (share <= 0.2)
    if line is not None:
        words = line.split()
        assert words[words.index("instead") + 2] == str(every)
        rarer = int(words[words.index("--knn_every") + 1])
        assert evaluating * every / rarer <= training / 19 * (1 + 1e-9)
        assert evaluating * every / (rarer - 1) > training / 19 * (1 - 1e-9)


def test_short_evaluations_are_not_worth_a_word():
    assert share_of_evaluation(299.0, 1.0, {"knn_every": 1}, False) is None


def test_a_run_that_mostly_evaluates_says_it_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(waiting, "_BRIEF", 0.0)
    monkeypatch.setattr(waiting, "_SHARE", 0.0)
    pretrain(
        data="digits", method="simclr", backbone="resnet10", width=0.125, size=16, limit=64,
        batch_size=32, epochs=4, knn_every=1, linear_every=2, logger="none", device="cpu",
        run=str(tmp_path / "run"),
    )  # fmt: skip
    said = capsys.readouterr().out
    assert said.count("of the time so far was spent evaluating; --knn_every ") == 1
    assert " instead of 1 and --linear_every " in said
