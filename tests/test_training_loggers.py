"""Loggers are checked before a run begins; what one needs is said in one line."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unmix.config import Settings
from unmix.errors import UserError
from unmix.training import RunFolder
from unmix.training.run import loggers
from unmix.training.run.loggers import check_logger, end_failed, extra_loggers


@pytest.fixture
def wandb_without_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "wandb" or find(name))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)

    def settings() -> SimpleNamespace:
        """What wandb 0.31 tells: its server is no longer api.wandb.ai."""
        return SimpleNamespace(
            mode=os.environ.get("WANDB_MODE", "online"),
            base_url="https://api.forge.coreweave.com",
            api_key=os.environ.get("WANDB_API_KEY"),
        )

    stand_in: Any = SimpleNamespace(setup=lambda: SimpleNamespace(settings=settings()))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)


def test_wandb_without_an_account_and_a_terminal_is_told_before(
    wandb_without_account: None,
) -> None:
    with pytest.raises(UserError, match=r"^--logger: wandb is not logged in.*WANDB_MODE=offline"):
        check_logger("wandb")


@pytest.mark.parametrize("how", ["mode", "key", "netrc", "earlier netrc", "terminal"])
def test_wandb_with_an_account_or_without_need_of_one_is_taken(
    wandb_without_account: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    with pytest.raises(UserError, match="not logged in"):  # before
        check_logger("wandb")
    if how == "mode":
        monkeypatch.setenv("WANDB_MODE", "offline")
    elif how == "key":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    elif "netrc" in how:
        path = tmp_path / "netrc"
        host = "api.wandb.ai" if how == "earlier netrc" else "api.forge.coreweave.com"
        path.write_text(f"machine {host} login user password 0\n")
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
    with pytest.raises(UserError, match=r"^--logger: mlflow cannot be started: no server$"):
        extra_loggers(Settings.of({"logger": "mlflow"}), RunFolder(tmp_path))


def test_wandb_that_was_set_offline_by_its_own_command_is_taken(
    wandb_without_account: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SimpleNamespace(mode="online", base_url="https://x.org", api_key=None)
    stand_in: Any = SimpleNamespace(setup=lambda: SimpleNamespace(settings=settings))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    with pytest.raises(UserError, match="not logged in"):
        check_logger("wandb")
    settings.mode = "offline"
    check_logger("wandb")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for trackio; the names of the runs that it began or went on with."""
    names: list[str] = []

    def init(project: str, name: str, resume: str, embed: bool) -> Any:
        names.append(name)
        return SimpleNamespace(log=lambda metrics, step: None)

    module: Any = SimpleNamespace(init=init, finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", module)
    return names


def test_a_resumed_run_is_the_same_run_of_its_logger_and_another_folder_of_its_name_is_not(
    begun: list[str], tmp_path: Path
) -> None:
    settings = Settings.of({"logger": "trackio"})
    for folder in ("a/same", "a/same", "b/same"):
        extra_loggers(settings, RunFolder(tmp_path / folder))
    assert begun[0] == begun[1] != begun[2]
    assert all(name.startswith("same-") for name in begun)
    (tmp_path / "a/same/logger.json").write_text("{")
    extra_loggers(settings, RunFolder(tmp_path / "a/same"))
    assert begun[3] not in begun[:3]


def test_what_a_logger_wrote_does_not_stand_in_the_way_of_the_next_try(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    for name in ("config.yaml", "logger.json", "mlflow.db", "wandb/a/b", "mlartifacts/c"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).touch()
    folder.discard()
    assert not folder.has_run()


def test_wandb_is_ended_before_the_files_of_a_failed_run_are_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []
    stand_in: Any = SimpleNamespace(run=object(), finish=lambda exit_code: codes.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    end_failed("tensorboard")  # a run of wandb that is the caller's own goes on
    assert codes == []
    end_failed("wandb")
    assert codes == [1]
    stand_in.run = None
    end_failed("wandb")
    assert codes == [1]
