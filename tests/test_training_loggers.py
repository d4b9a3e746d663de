"""Loggers are checked before a run begins; what one needs is said in one line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from unmix.config import Settings
from unmix.errors import UserError
from unmix.training import RunFolder, loggers
from unmix.training.loggers import check_logger, extra_loggers


@pytest.fixture
def wandb_without_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "wandb" or find(name))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)


def test_wandb_without_an_account_and_a_terminal_is_told_before(
    wandb_without_account: None,
) -> None:
    with pytest.raises(UserError, match=r"^--logger: wandb is not logged in.*WANDB_MODE=offline"):
        check_logger("wandb")


@pytest.mark.parametrize("how", ["mode", "key", "netrc", "terminal"])
def test_wandb_with_an_account_or_without_need_of_one_is_taken(
    wandb_without_account: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    if how == "mode":
        monkeypatch.setenv("WANDB_MODE", "offline")
    elif how == "key":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    elif how == "netrc":
        path = tmp_path / "netrc"
        path.write_text("machine api.wandb.ai login user password 0\n")
        path.chmod(0o600)
    else:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    check_logger("wandb")


def test_a_logger_that_cannot_begin_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(folder: Any) -> Any:
        raise RuntimeError("no server\nat all")

    monkeypatch.setitem(loggers._OPTIONAL, "mlflow", fail)
    with pytest.raises(UserError, match=r"^--logger: mlflow cannot begin: no server$"):
        extra_loggers(Settings.of({"logger": "mlflow"}), RunFolder(tmp_path))
