"""The loggers beside CSV."""

from __future__ import annotations

import importlib.util

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from unmix.config import Settings
from unmix.errors import UserError
from unmix.training.run_folder import RunFolder

__all__ = ["check_logger", "extra_loggers"]


def check_logger(name: str) -> None:
    """Check that a logger's package is installed.

    Raises:
        UserError: if it is not.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--logger: {name} is not installed; pip install {name}.")


def extra_loggers(settings: Settings, folder: RunFolder) -> list[Logger]:
    """The logger beside CSV."""
    name = settings.machine.logger
    if name == "none":
        return []
    if name == "tensorboard":
        return [TensorBoardLogger(folder.path, name="", version="tensorboard")]
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return [WandbLogger(project="unmix", name=folder.path.name, save_dir=folder.path)]
    from lightning.pytorch.loggers import MLFlowLogger

    return [MLFlowLogger("unmix", run_name=folder.path.name, save_dir=str(folder.path / "mlruns"))]
