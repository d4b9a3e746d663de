"""The settings of a run folder, in its `config.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmix.config.earlier import upgraded
from unmix.config.nested import flattened
from unmix.config.settings import Settings
from unmix.config.yaml_files import read_yaml, why_not
from unmix.errors import UserError
from unmix.files import as_path
from unmix.schema import excerpt

__all__ = ["check_method", "checked_settings", "is_run", "saved_settings"]


def is_run(folder: Path | str) -> bool:
    """Whether a folder holds a run's settings."""
    return (as_path(folder) / "config.yaml").exists()


def saved_settings(folder: Path | str) -> dict[str, Any]:
    """The flat settings in a run folder's `config.yaml`.

    Raises:
        UserError: if it does not exist or cannot be read.
    """
    path = as_path(folder)
    config = path / "config.yaml"
    if not path.is_dir():
        wrong = "this is a file" if path.exists() else "there is no such run folder"
        raise UserError(f"{path}: {wrong}.")
    try:
        settings = read_yaml(config)
    except FileNotFoundError:
        raise UserError(f"{path}: is not a run folder; it has no config.yaml.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{config}: cannot be read ({why_not(error)}).") from None
    if not isinstance(settings, dict):
        raise UserError(f"{config}: must hold lines of the form `setting: value`.")
    if not isinstance(settings.get("method"), str):
        found = f"is {excerpt(settings['method'])}" if "method" in settings else "is missing"
        raise UserError(f"{config}: method {found}; it must be the name of a method.")
    try:
        return upgraded(flattened(settings))
    except UserError as error:
        raise UserError(f"{config}: {error}") from None


def checked_settings(folder: Path | str) -> Settings:
    """The settings of a run folder.

    Raises:
        UserError: if it holds no run, or a setting is wrong; it names `config.yaml`.
    """
    words = saved_settings(folder)
    try:
        return Settings.of(words)
    except UserError as error:
        own = " One of your own: set UNMIX_PLUGINS to its file."
        more = own if error.parameter in ("method", "unmix_mixture") else ""
        raise UserError(f"{as_path(folder) / 'config.yaml'}: {error}{more}") from None


def check_method(folder: Path | str, method: str) -> None:
    """Check that this is the method of a run folder; another one has other options.

    Raises:
        UserError: if it is not.
    """
    theirs = saved_settings(folder).get("method", method)
    if theirs != method:
        raise UserError(
            f"{folder} holds another run: its method is {theirs}, not {method}. Give another "
            "`run`, or the same settings to resume.",
            parameter="run",
        )
