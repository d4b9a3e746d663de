"""Loggers: TensorBoard, wandb, MLflow and trackio."""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
import sys
import uuid
from argparse import Namespace
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from unmix.config import Settings
from unmix.errors import UserError
from unmix.files import as_path, atomic_write, read_json
from unmix.names import shown
from unmix.training.console import is_leader, say
from unmix.training.run.folder import RunFolder

__all__ = ["TrackioLogger", "check_logger", "end_failed", "extra_loggers"]


def check_logger(name: str) -> None:
    """Check that a logger can be used, before anything is written.

    Raises:
        UserError: if its package is not installed, or it would ask for an account without a
            terminal.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--logger: {name} is not installed; pip install {name}.")
    if name == "wandb" and not _wandb_can_log():
        raise UserError(
            "--logger: wandb is not logged in, and without a terminal it cannot ask; run `wandb "
            "login`, or set WANDB_API_KEY, or WANDB_MODE=offline to keep the logs here, or use "
            "--logger tensorboard."
        )


def extra_loggers(settings: Settings, folder: RunFolder) -> list[Logger]:
    """The logger of the settings, started.

    Raises:
        UserError: if it cannot be started.
    """
    name = settings.machine.logger
    if name == "none":
        return []
    if name == "tensorboard":
        return [_TensorBoard(folder.path, name="", version="tensorboard")]
    try:
        return [_OPTIONAL[name](folder)]
    # Each raises its own exceptions, about a server or an account.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"--logger: {name} cannot be started: {reason}") from error


def end_failed(name: str) -> None:
    """Close the logger of a run that failed, so that its files can be removed."""
    if name == "wandb" and "wandb" in sys.modules:
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=1)  # its process would write into the folder again at exit


def _wandb(folder: RunFolder) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    # Offline too: parts with one id become one run when they are synchronized.
    logger = WandbLogger(
        project="unmix",
        name=folder.path.name,
        save_dir=folder.path,
        id=os.environ.get("WANDB_RUN_ID") or _known(folder, "wandb") or uuid.uuid4().hex[:8],
        resume="allow",
    )
    _ = logger.experiment  # now, not in the middle of the first epoch
    _remember(folder, "wandb", logger.version)
    return logger


def _mlflow(folder: RunFolder) -> Logger:
    from mlflow.exceptions import MlflowException

    try:
        logger = _mlflow_run(folder, _known(folder, "mlflow"))
    except MlflowException as error:
        # Another server than before, or the run was deleted there.
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        logger = _mlflow_run(folder, None)
    _remember(folder, "mlflow", logger.version)
    return logger


def _mlflow_run(folder: RunFolder, known: str | None) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    # MLflow 3.13 and later refuse a folder of files; a server set by the user is used.
    store = folder.path.absolute()
    server = os.environ.get("MLFLOW_TRACKING_URI")
    logger = MLFlowLogger(
        "unmix",
        run_name=folder.path.name,
        run_id=known,
        tracking_uri=server or f"sqlite:///{store / 'mlflow.db'}",
        artifact_location=None if server else (store / "mlartifacts").as_uri(),
    )
    run = logger.run_id
    if known is not None and run is not None:
        logger.experiment.update_run(run, status="RUNNING")
    return logger


def _trackio(folder: RunFolder) -> Logger:
    # trackio resumes by name, in one place for all folders, so the name must be unique.
    name = _known(folder, "trackio") or f"{folder.path.name}-{uuid.uuid4().hex[:8]}"
    logger = TrackioLogger("unmix", name)
    logger.begin()
    _remember(folder, "trackio", name)
    return logger


_OPTIONAL = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}


def _known(folder: RunFolder, name: str) -> str | None:
    """The id that the logger gave this run when it started; None if there is none."""
    try:
        run_id = read_json(folder.logged)[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return run_id if isinstance(run_id, str) else None


def _remember(folder: RunFolder, name: str, run: int | str | None) -> None:
    """Store the logger's id of this run, for resuming."""
    if is_leader() and run is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        atomic_write(folder.logged, json.dumps({name: str(run)}).encode())


def _wandb_can_log() -> bool:
    """Whether wandb has an account, needs none, or can ask for one.

    In doubt True: wandb itself reports what is missing when the run starts.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        return True
    import wandb

    try:
        settings = wandb.setup().settings  # from the environment and the files of `wandb offline`
        mode, server = settings.mode, settings.base_url
        known = settings.api_key or getattr(settings, "identity_token_file", None)
    except Exception:
        return True
    if known or mode in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_DISABLED"):
        return True
    return any(_has_password(urlsplit(url).netloc) for url in (server, "https://api.wandb.ai"))


def _has_password(host: str) -> bool:
    """Whether the user's netrc file, where `wandb login` writes, has a password for a host."""
    given = os.environ.get("NETRC")
    for path in [given] if given else ["~/.netrc", "~/_netrc"]:
        try:
            if netrc.netrc(as_path(path)).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


class _TensorBoard(TensorBoardLogger):
    """TensorBoard's events; where they cannot be written the run goes on without them."""

    _failed = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log numbers."""
        self._try(super().log_metrics, metrics, step)

    def save(self) -> None:
        """Flush the events."""
        self._try(super().save)

    def finalize(self, status: str) -> None:
        """Close the file."""
        self._try(super().finalize, status)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            call(*arguments)
        except OSError as error:
            self._failed = True
            say(
                f"warning: {shown(self.log_dir)}: cannot be written ({error.strerror}); the run "
                "goes on without TensorBoard"
            )


class TrackioLogger(Logger):
    """Logger of a trackio run; `trackio show --project unmix` shows it.

    Args:
        project: Name of the project.
        name: Name of the run; unique, since trackio identifies runs by it.
    """

    def __init__(self, project: str, name: str) -> None:
        super().__init__()
        self._project, self._name = project, name
        self._run: Any = None

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._project

    @property
    def version(self) -> str:
        """Name of the run."""
        return self._name

    @rank_zero_only
    def begin(self) -> None:
        """Start the run, or resume the one of this name."""
        import trackio

        self._run = trackio.init(
            project=self._project, name=self._name, resume="allow", embed=False
        )

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log numbers."""
        self._run.log(metrics, step=step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: the run folder has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        if self._run is not None:
            import trackio

            trackio.finish()  # the run's own finish() would be called again at exit
            self._run = None
