"""Sizes that no machine has are refused in one line, before memory is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unmix.config import Settings
from unmix.errors import UserError
from unmix.training.run.folder import RunFolder


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("width", 1e9, "greater than 0 and at most 64"), ("size", 10**6, "at most 16384"),
        ("batch_size", 10**9, "at most 16777216"), ("queue_size", 10**12, "at most 268435456"),
        ("workers", 10**6, "at most 4096"), ("dim", 10**9, "at most 1048576"),
    ],
)  # fmt: skip
def test_a_size_that_no_machine_has_is_refused(name: str, value: float, most: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings.of({"method": "moco", name: value})
    assert caught.value.parameter == name
    assert most.rpartition("and ")[2] in str(caught.value)


def test_so_is_a_batch_of_terabytes() -> None:
    with pytest.raises(UserError, match="take 48 TiB for one view of a batch"):
        Settings.of({"method": "moco", "batch_size": 2**14, "size": 2**14})
    Settings.of({"method": "moco", "batch_size": 65_536, "size": 224})


def test_the_line_of_a_file_and_of_a_flag(tmp_path: Path, refuse: Callable[..., str]) -> None:
    (tmp_path / "c.yaml").write_text("method: moco\nqueue_size: 1000000000000\n")
    line = refuse("pretrain", "--config", tmp_path / "c.yaml", "--data", "digits")
    assert line.startswith("--queue_size: 1000000000000 is out of range; it must be at most")
    line = refuse("pretrain", "--data", "digits", "--width", "1e9")
    assert line.startswith("--width: 1e+09 is out of range; it must be")


@pytest.mark.parametrize("text", ["method: moco\n?", "method: moco\n~: 1\ndata: digits\n"])
def test_a_key_that_is_nothing_is_one_line(tmp_path: Path, text: str) -> None:
    """Found by `make fuzz`: it was taken for a setting that has another name too."""
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: None: unknown setting"):
        RunFolder(tmp_path).settings()
