"""Which test images were predicted correctly: kept with their measurement, or why they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmix.data import load
from unmix.data.fingerprint import digest_of
from unmix.errors import UserError
from unmix.per_image import FILE, PerImage, keep_per_image, per_image
from unmix.results import Evaluation


def measured(correct: list[bool], **details: Any) -> PerImage:
    found = np.array(correct)
    row = {"protocol": "knn", "epoch": 2, "k": 9, "top1": 100 * float(found.mean()), **details}
    return PerImage(row, "digest", found)


def row_of(found: PerImage) -> Evaluation:
    details = {k: v for k, v in found.row.items() if k not in ("protocol", "epoch", "top1")}
    return Evaluation(found.row["protocol"], found.row["epoch"], found.row["top1"], None, details)


@given(correct=st.lists(st.booleans(), min_size=1, max_size=40))
def test_what_is_kept_is_what_was_measured(tmp_path_factory, correct):
    folder = tmp_path_factory.mktemp("run")
    before = measured(correct)
    keep_per_image(folder, [before])
    found = per_image(folder, row_of(before))
    assert found.correct.tolist() == correct
    assert found.images == "digest"


def test_another_setting_is_another_measurement_and_the_same_replaces(tmp_path: Path):
    first, other = measured([True, False]), measured([False, False], k=20, seconds=3.0)
    keep_per_image(tmp_path, [first, other])
    again = measured([True, True], seconds=1.0)
    keep_per_image(tmp_path, [again])
    assert per_image(tmp_path, row_of(again)).correct.tolist() == [True, True]
    assert per_image(tmp_path, row_of(other)).correct.tolist() == [False, False]
    assert len(json.loads((tmp_path / FILE).read_text())["rows"]) == 2


def test_what_is_missing_damaged_or_of_another_measurement_says_so(tmp_path: Path):
    first = measured([True, False])
    with pytest.raises(UserError, match="it kept no predictions of single images"):
        per_image(tmp_path, row_of(first))
    keep_per_image(tmp_path, [first])
    with pytest.raises(UserError, match="it kept no predictions"):
        per_image(tmp_path, row_of(measured([True, False], k=10)))
    with pytest.raises(UserError, match="is of another measurement"):
        per_image(tmp_path, row_of(measured([True, True])))
    for damaged in (
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 2, "rows": []}',
        '{"schema": 1, "rows": [1]}',
    ):
        (tmp_path / FILE).write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            per_image(tmp_path, row_of(first))
        keep_per_image(tmp_path, [first])
        assert per_image(tmp_path, row_of(first)).correct.tolist() == [True, False]


def test_other_images_and_another_order_have_another_digest():
    test = load("digits", "test")
    index = torch.arange(len(test))
    same = digest_of(test, index)
    assert same == digest_of(load("digits", "test"), index.clone())
    assert len({same, digest_of(test, index.flip(0)), digest_of(test, index[1:])}) == 3
    assert digest_of(load("digits", "train"), index) != same
