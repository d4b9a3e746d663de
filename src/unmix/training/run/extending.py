"""Going on with a finished run for more epochs: `--extend`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from unmix.config import Settings
from unmix.display import counted
from unmix.errors import UserError
from unmix.results import DamagedResultsError, RunResults, load_results
from unmix.training.console import is_leader
from unmix.training.run.folder import RunFolder
from unmix.training.run.notes import top_of_warmup

__all__ = [
    "Extending",
    "extended",
    "extensions",
    "how_it_goes_on",
    "is_extending",
    "notes_on_extensions",
]


class Extending(Callback):
    """Makes a finished run one of more epochs when it is trained on, then resumed like any other.

    Not before: a start that is refused, by whichever check of any process, leaves it as it was.

    Args:
        folder: Its folder, which the first process has locked for all.
        settings: As `extended` gives them.
    """

    def __init__(self, folder: RunFolder, settings: Settings) -> None:
        self.folder, self.settings = folder, settings

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the new epochs and restarts, in the first process."""
        epochs, restarts = self.settings.run.epochs, self.settings.optimizer.restarts
        if is_leader() and self.folder.settings().run.epochs != epochs:
            self.folder.change(epochs=epochs, restarts=list(restarts))


def extended(settings: Settings, epochs_given: bool) -> Settings:
    """The settings of a finished run of more epochs; nothing is written.

    The schedules start again at the epoch where the run has ended, over the added epochs; see
    `OptimizerSettings.restarts`. `config.yaml` says so from the first step, so a run that is
    stopped then is resumed as what it has become, and the same settings give the same run from the
    start.

    Args:
        settings: Those of the run with more epochs.
        epochs_given: Whether the number of epochs was given.

    Raises:
        UserError: if there is no run, it has not ended, the epochs are not more, it has no
            checkpoint, or another setting differs.
    """
    folder = RunFolder(settings.folder)
    if not folder.has_run():
        raise _error(f"{folder.path} holds no run to go on with; give the `run` that has ended.")
    theirs = folder.settings()
    if not epochs_given:
        raise _error(
            f"give `epochs` too: how many it shall have in all, more than the {theirs.run.epochs} "
            f"of {folder.path}."
        )
    known = theirs.optimizer.restarts
    if settings.run.epochs == theirs.run.epochs and known:
        if not is_leader() and settings.optimizer.restarts == known[:-1]:
            # The first process has written them since this one has read the settings.
            return settings.with_changes(restarts=list(known))
        return settings  # given again, to resume the extension or to see its results
    if not _has_ended(folder, theirs):
        raise _error(
            f"{folder.path} has not ended its {counted(theirs.run.epochs, 'epoch')}; "
            f"finish them first: unmix pretrain --run {shlex.quote(str(folder.path))}"
        )
    if settings.run.epochs <= theirs.run.epochs:
        raise UserError(
            f"{settings.run.epochs} is not more than the {theirs.run.epochs} that {folder.path} "
            "has; `extend` needs the number in all.",
            parameter="epochs",
        )
    folder.check_same({**settings.flat(), "epochs": theirs.run.epochs}, theirs)
    if not folder.has_checkpoint:
        raise _error(
            f"{folder.path} has no checkpoint any more, and its encoder alone cannot be trained on "
            "as the same run."
        )
    return settings.with_changes(restarts=[*known, theirs.run.epochs])


def how_it_goes_on(settings: Settings) -> str:
    """What happens to the schedules of a run that is extended, in a line."""
    chosen, epochs = settings.optimizer, settings.run.epochs
    ended = chosen.restarts[-1]
    added = f"goes on from epoch {ended} to {epochs}"
    if chosen.schedule != "cosine":
        return f"{added}; the learning rate goes on by its {chosen.schedule} schedule"
    rise = (
        f"over {chosen.warmup_epochs:g} epochs of warmup"
        if chosen.warmup_epochs
        else "at once, since the run has no warmup"
    )
    top = top_of_warmup(chosen, ended, epochs)
    if top is not None:
        return (
            f"{added}; the learning rate only rises, from {chosen.final_lr:g} to {top:.3g} of "
            f"{chosen.lr:g}, since a warmup of {chosen.warmup_epochs:g} epochs takes all of the "
            f"{counted(epochs - ended, 'added epoch')}; give more epochs"
        )
    return (
        f"{added}; the learning rate rises from {chosen.final_lr:g} to {chosen.lr:g} {rise}, then "
        f"falls by a cosine to the end of the {counted(epochs - ended, 'added epoch')}"
    )


def is_extending(settings: Settings, results: RunResults) -> bool:
    """Whether a run is being extended, and its results and its encoder are still the earlier."""
    restarts = settings.optimizer.restarts
    return bool(restarts) and results.epochs <= restarts[-1]


def extensions(folder: RunFolder, settings: Settings) -> dict[str, Any]:
    """What `results.json` says of a run's restarts, and of the commands that it was extended from.

    Args:
        folder: Its folder, with the results of before the last extension, if there was one.
        settings: Of the whole run.
    """
    if not settings.optimizer.restarts:
        return {}
    try:
        earlier = load_results(folder.path)
    except UserError:
        return {"restarts": list(settings.optimizer.restarts)}
    known = list(earlier.training.get("extended", ()))
    if is_extending(settings, earlier):
        known.append({"epochs": earlier.epochs, "command": earlier.command})
    return {"restarts": list(settings.optimizer.restarts), **({"extended": known} if known else {})}


def notes_on_extensions(runs: Mapping[str, Path]) -> list[str]:
    """A note for each run that was extended, or is being extended.

    Args:
        runs: Run folders by the names to show; those without results have no note.
    """
    notes = []
    for name, path in runs.items():
        if not RunFolder(path).results.exists():
            continue
        results = load_results(path)
        restarts, known = results.training.get("restarts"), results.training.get("extended")
        settings = RunFolder(path).settings() if RunFolder(path).config.exists() else None
        if settings is not None and is_extending(settings, results):
            notes.append(
                f"note: {name} is being extended to {counted(settings.run.epochs, 'epoch')}; "
                f"its results here are those of its first {counted(results.epochs, 'epoch')}"
            )
        elif restarts:
            at = ", ".join(map(str, restarts))
            how = "was extended, and " if known else ""
            notes.append(
                f"note: {name} {how}started its schedules again at epoch {at}; it is not the same "
                f"as a run with one schedule of {results.epochs} epochs"
            )
    return notes


def _has_ended(folder: RunFolder, settings: Settings) -> bool:
    if not folder.encoder.exists():
        return False
    try:
        return not is_extending(settings, load_results(folder.path))
    except DamagedResultsError:
        raise
    except UserError:
        return False


def _error(message: str) -> UserError:
    return UserError(message, parameter="extend")
