"""Metrics for trackio, which keeps them on this machine and needs no account."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["TrackioLogger"]


class TrackioLogger(Logger):
    """A run of trackio; `trackio show --project unmix` draws it.

    Args:
        project: Its name.
        name: Of the run, unlike any other run's: trackio tells runs apart by it.
    """

    def __init__(self, project: str, name: str) -> None:
        super().__init__()
        self._project, self._name = project, name
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project's name."""
        return self._project

    @property
    def version(self) -> str:
        """The run's name."""
        return self._name

    @rank_zero_only
    def begin(self) -> None:
        """Begin the run, or go on with the one of this name."""
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
        """Nothing: the run folder has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        if self._run is not None:
            import trackio

            trackio.finish()  # the run's own would be ended once more at exit
            self._run = None
