"""The loggers beside CSV."""

from __future__ import annotations

import importlib.util
import netrc
import os
import sys
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from unmix.config import Settings
from unmix.errors import UserError
from unmix.training.run_folder import RunFolder

__all__ = ["check_logger", "extra_loggers"]


def check_logger(name: str) -> None:
    """Check that a logger can be used, before anything is written.

    Raises:
        UserError: if its package is not installed, or it would ask for an account where nobody can
            answer.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--logger: {name} is not installed; pip install {name}.")
    if name == "wandb" and not _wandb_can_log():
        raise UserError(
            "--logger: wandb is not logged in, and without a terminal it cannot ask; run `wandb "
            "login`, or set WANDB_API_KEY, or WANDB_MODE=offline to keep the logs here."
        )


def extra_loggers(settings: Settings, folder: RunFolder) -> list[Logger]:
    """The logger beside CSV.

    Raises:
        UserError: if it cannot begin.
    """
    name = settings.machine.logger
    if name == "none":
        return []
    if name == "tensorboard":
        return [TensorBoardLogger(folder.path, name="", version="tensorboard")]
    try:
        return [_OPTIONAL[name](folder)]
    # Each fails in its own words, about a server or an account.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"--logger: {name} cannot begin: {reason}") from error


def _wandb(folder: RunFolder) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(project="unmix", name=folder.path.name, save_dir=folder.path)
    _ = logger.experiment  # now, not in the middle of the first epoch
    return logger


def _mlflow(folder: RunFolder) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    # MLflow 3.13 and later refuse a folder of files; a server that the user has set is used.
    store = folder.path.absolute()
    server = os.environ.get("MLFLOW_TRACKING_URI")
    logger = MLFlowLogger(
        "unmix",
        run_name=folder.path.name,
        tracking_uri=server or f"sqlite:///{store / 'mlflow.db'}",
        artifact_location=None if server else (store / "mlartifacts").as_uri(),
    )
    _ = logger.run_id
    return logger


def _trackio(folder: RunFolder) -> Logger:
    from unmix.training.trackio import TrackioLogger

    logger = TrackioLogger("unmix", folder.path.name)
    logger.begin()
    return logger


_OPTIONAL = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}


def _wandb_can_log() -> bool:
    """Whether wandb knows an account, needs none, or can ask for one."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_DISABLED"):
        return True
    if os.environ.get("WANDB_API_KEY") or sys.stdin.isatty():
        return True
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        places = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return places.authenticators(urlsplit(url).hostname or "") is not None
