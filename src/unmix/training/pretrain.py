"""Pretraining: from settings to a run folder."""

from __future__ import annotations

import errno
import importlib.util
import logging
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from unmix.data import FileImages, ImageSet, load
from unmix.errors import UserError
from unmix.methods import Method, method_class
from unmix.randomness import generator_for
from unmix.results import RunResults, load_results, write_results
from unmix.training.batches import EpochOrder, build_loader
from unmix.training.callbacks import Bar, Checkpoints, Evaluator, Health, Reporter, is_terminal
from unmix.training.machine import Machine, choose_machine, hardware, peak_memory, versions
from unmix.training.module import Pretraining
from unmix.training.recipes import resolve
from unmix.training.run_folder import AtomicCheckpoints, RunFolder
from unmix.training.settings import RunSettings, Settings
from unmix.views import Views

__all__ = ["Parts", "build", "pretrain", "settings_for"]

LARGE = 224

_NO_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
_PARTS = (
    "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step",
    "epoch_sums", "epoch_samples",
)  # fmt: skip


def pretrain(config: str | None = None, **words: Any) -> RunResults:
    """Pretrain an encoder and measure it; the Python form of `unmix pretrain`.

    Args:
        config: A recipe's name or a YAML file; its settings are the defaults.
        words: Settings, in the words of the command line: `method="moco", data="photos", IM=True`.

    Returns:
        The content of the run folder's `results.json`.

    Raises:
        UserError: for settings that cannot be, before anything is written.
    """
    settings, used = settings_for(words, config)
    return run(settings, used, command=_call(config, words))


def settings_for(words: dict[str, Any], config: str | None = None) -> tuple[Settings, list[str]]:
    """The settings of a run: of the folder that it goes on with, or of the recipes and the words.

    Returns:
        The settings, and the names of the recipes that they started from.

    Raises:
        UserError: if a setting is unknown or cannot be, or the folder holds a run of another
            method.
    """
    folder = RunFolder(str(words["run"])) if words.get("run") else None
    if folder is not None and folder.config.exists() and config is None:
        theirs = folder.words()
        # Another method has other options, and theirs would be taken for the mistake.
        if "method" in words:
            folder.check_same({"method": words["method"]})
        return Settings.of({**theirs, **words}), []
    merged, used = resolve(words, config)
    return Settings.of(merged), used


@dataclass
class Parts:
    """What a run is made of."""

    settings: Settings
    machine: Machine
    train: ImageSet
    labelled: ImageSet
    test: ImageSet | None
    module: Pretraining


def build(settings: Settings) -> Parts:
    """Make a run's parts from its settings; nothing is written.

    Raises:
        UserError: if the settings do not go together or the data cannot be read.
    """
    run_ = settings.run
    machine = choose_machine(settings.machine)
    check_logger(settings.machine.logger)
    train = load_split(run_, "pretrain")
    labelled = train if train.labels is not None else load_split(run_, "train")
    test = load_split(run_, "test") if labelled.labels is not None else None
    if len(train) < 2:
        raise UserError(
            f"--data: {run_.data} has {len(train)} training image; pretraining needs 2."
        )
    size = run_.size or native_size(train)
    settings = settings.with_words(
        size=size, precision=machine.precision.split("-")[0].removesuffix("-true")
    )
    order = EpochOrder(len(train), run_.batch_size, run_.seed, smallest=2)
    method = build_method(settings, len(train), size)
    method.check_batch(min(run_.batch_size, len(train)))
    views = Views(
        settings.views, size, train.mean, train.std, method.views, method.color_space,
        channels_last=machine.channels_last,
    )  # fmt: skip
    module = Pretraining(
        method, views, train, order, settings.optimizer, epochs=run_.epochs, seed=run_.seed,
        image_space=settings.mixture.image_space(), label_space=settings.mixture.label_space(),
        channels_last=machine.channels_last,
    )  # fmt: skip
    for operator in (module.image_space, module.label_space):
        if operator is not None:
            operator.draw((2, 3, size, size), generator_for(0))
    return Parts(settings, machine, train, labelled, test, module)


def load_split(run_: RunSettings, split: str) -> ImageSet:
    """A split of the run's data set; of the training splits as many images as the run may use."""
    images = load(
        run_.data, split, data_dir=run_.data_dir, strict=run_.strict, download=run_.download
    )
    return images if split == "test" or run_.limit is None else images.evenly(run_.limit)


def build_method(settings: Settings, n_data: int, size: int) -> Method:
    """The method with its backbone, initialised by the run's seed."""
    kind = method_class(settings.run.method)
    model = settings.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        backbone = kind.build_backbone(
            model.backbone, width=model.width, stem=model.stem, size=size
        )
        return kind(backbone, n_data, **settings.method)  # type: ignore[call-arg]


def native_size(images: ImageSet) -> int:
    """The side of images in memory; 224 for files."""
    if isinstance(images, FileImages):
        return LARGE
    return int(images.images.shape[-1])  # type: ignore[attr-defined]


def run(settings: Settings, recipes: list[str], command: str) -> RunResults:
    """Pretrain with these settings, or go on with the run that the folder holds."""
    quiet_libraries()
    folder = RunFolder(settings.folder)
    resume = folder.begun()
    if resume:
        folder.check_same(settings.flat())
        if folder.results.exists() and folder.encoder.exists():
            found = load_results(folder.path)
            say(f"{folder.path} is complete; nothing to do. Its results:")
            say_accuracies(found)
            return found
    parts = build(settings)
    settings = parts.settings
    if resume:
        folder.check_same(settings.flat())
    evaluator = Evaluator(
        parts.module, parts.labelled, parts.test, settings.evaluation, parts.machine
    )
    chance = parts.module.method.chance_loss
    reporter = Reporter(evaluator, Health(chance), settings.evaluation, say)
    start = time.perf_counter()
    try:
        if not resume:
            folder.write_settings(settings)
        say(headline(parts, recipes))
        fit(parts, folder, reporter, resume)
    except UserError:
        # What cannot even reach its first checkpoint shall not stand in the way of the next try.
        if not resume and not folder.last.exists():
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    rows, _ = finish(parts, folder, evaluator, reporter)
    if isinstance(parts.train, FileImages) and (line := parts.train.skipped.line()):
        say(line)
    seconds = time.perf_counter() - start
    write_results(folder.results, results_of(parts, folder, reporter, rows, command, seconds))
    found = load_results(folder.path)
    say_accuracies(found)
    if not evaluator.labelled:
        say(f"{settings.run.data} has no classes, so kNN and linear probes are off.")
    say(f"encoder: {folder.encoder}   results: {folder.results}")
    return found


def results_of(
    parts: Parts,
    folder: RunFolder,
    reporter: Reporter,
    rows: list[dict[str, Any]],
    command: str,
    seconds: float,
) -> dict[str, Any]:
    """The content of `results.json`; `seconds` are those of this call, with its evaluations."""
    settings = parts.settings
    return {
        "schema": 1,
        "name": folder.path.name,
        **{k: settings.flat()[k] for k in ("method", "data", "backbone", "width", "size")},
        "mixture": settings.mixture.name,
        "epochs": settings.run.epochs,
        "seed": settings.run.seed,
        "command": command,
        "evaluations": rows,
        "training": {
            "seconds": reporter.train_seconds,
            "total_seconds": seconds,
            "images_per_second": reporter.samples / max(reporter.train_seconds, 1e-9),
            "peak_memory_bytes": peak_memory(parts.machine.device),
            "steps": parts.module.total_steps,
            "loss": reporter.loss,
        },
        "hardware": {**hardware(parts.machine.device), "precision": parts.machine.precision},
        "versions": versions(),
    }


def say_accuracies(results: RunResults) -> None:
    """Print what was measured at the end of a run, on its own data."""
    for row in results.evaluations:
        if row.epoch == results.epochs and "data" not in row.details:
            top5 = "" if row.top5 is None else f"  top-5 {row.top5:5.1f}%"
            say(f"{row.protocol:>6} top-1 {row.top1:5.1f}%{top5}")


def fit(parts: Parts, folder: RunFolder, reporter: Reporter, resume: bool) -> None:
    """Train, from the last checkpoint if there is one."""
    settings, machine = parts.settings, parts.machine
    resume = resume and folder.last.exists()
    checkpoint = None
    if resume:
        checkpoint = AtomicCheckpoints().load_checkpoint(folder.last)
        check_fits(parts.module, checkpoint, folder)
        say(f"going on from {folder.last}, after {checkpoint['global_step']} steps")
    csv_logger = CSVLogger(folder.path, name="", version="")
    if checkpoint is not None:
        old = folder.old_metrics(checkpoint["global_step"])
        csv_logger.experiment.metrics.extend(old)
    callbacks: list[Callback] = [
        reporter,
        Checkpoints(
            folder.checkpoints, settings.machine.checkpoint_every, settings.machine.checkpoint_steps
        ),
    ]
    if is_terminal():
        callbacks.append(Bar(reporter))
    trainer = L.Trainer(
        accelerator=machine.accelerator,
        devices=1,
        precision=machine.precision,  # type: ignore[arg-type]
        max_epochs=settings.run.epochs,
        logger=[csv_logger, *extra_loggers(settings, folder)],
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        enable_checkpointing=True,
        enable_progress_bar=is_terminal(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    loader = build_loader(
        parts.train, parts.module.views, parts.module.order,
        workers=settings.machine.workers, pin_memory=machine.device.type == "cuda",
    )  # fmt: skip
    with our_endings(trainer, folder):
        trainer.fit(parts.module, loader, ckpt_path=folder.last if resume else None)


@contextmanager
def our_endings(trainer: L.Trainer, folder: RunFolder) -> Iterator[None]:
    """End an interrupted run by KeyboardInterrupt, and one whose disk is full by a UserError."""
    try:
        yield
    except SystemExit:
        # Lightning's way of ending an interrupted run.
        if not trainer.interrupted:
            raise
    except OSError as error:
        if error.errno not in _NO_WRITING:
            raise
        raise UserError(
            f"{error.filename or folder.path}: cannot be written ({error.strerror})."
        ) from error
    if trainer.interrupted:
        raise KeyboardInterrupt


def check_fits(module: Pretraining, checkpoint: Any, folder: RunFolder) -> None:
    """Check that a checkpoint is whole, and of this method and encoder.

    Raises:
        UserError: with the first part that is missing, or the first weight that does not fit.
    """
    for part in _PARTS:
        if not isinstance(checkpoint, dict) or part not in checkpoint:
            raise UserError(
                f"{folder.last}: has no {part}, so it is not a checkpoint of unmix pretrain; "
                "remove it to train from the start."
            )
    ours, state = module.state_dict(), checkpoint["state_dict"]
    for name, value in ours.items():
        theirs = state.get(name)
        if theirs is None or theirs.shape != value.shape:
            found = "is missing" if theirs is None else f"has shape {tuple(theirs.shape)}"
            raise UserError(
                f"{folder.last}: is of another architecture: {name} {found}, not "
                f"{tuple(value.shape)}; the settings in {folder.config} do not belong to it."
            )


def finish(
    parts: Parts, folder: RunFolder, evaluator: Evaluator, reporter: Reporter
) -> tuple[list[dict[str, Any]], Any]:
    """Export the encoder, and measure it: the last epoch is what counts."""
    settings, module = parts.settings, parts.module
    module.to(parts.machine.device)
    folder.write_encoder(module.method.backbone, encoder_facts(parts))
    protocols = ("knn", "linear") if settings.evaluation.evaluate else ()
    if not protocols or not evaluator.labelled:
        return reporter.rows, None
    rows, train = evaluator(protocols, settings.run.epochs)
    return [*reporter.rows, *rows], train


def encoder_facts(parts: Parts) -> dict[str, Any]:
    """What is needed to build and feed the exported encoder."""
    words = parts.settings.flat()
    facts = {k: words[k] for k in ("method", "backbone", "width", "stem", "size")}
    return {
        **facts,
        "color_space": parts.module.method.color_space,
        "mean": list(parts.train.mean),
        "std": list(parts.train.std),
    }


def headline(parts: Parts, recipes: list[str]) -> str:
    """What is going to happen, in a few lines."""
    settings, module, machine = parts.settings, parts.module, parts.machine
    model, run_ = settings.model, settings.run
    millions = sum(p.numel() for p in module.method.backbone.parameters()) / 1e6
    where = "in memory" if module.resident is not None else "from files"
    lines = [
        f"{run_.method} on {run_.data}: {len(parts.train):,} images {where}, views of "
        f"{run_.size} px, batches of {run_.batch_size}, {run_.epochs} epochs "
        f"({module.total_steps:,} steps)",
        f"mixture: {settings.mixture.name}   encoder: {model.backbone}, width {model.width:g}, "
        f"{millions:.1f} M parameters   device: {machine.device.type}, {machine.precision}"
        f"{', channels last' if machine.channels_last else ''}",
    ]
    if recipes:
        lines.append(f"recipe: {' < '.join(recipes)}   run folder: {settings.folder}")
    else:
        lines.append(f"run folder: {settings.folder}")
    return "\n".join(lines)


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


def say(text: str) -> None:
    """Print a line of our own, at once."""
    print(text, flush=True)


def quiet_libraries() -> None:
    """Keep libraries' notes to developers off the console."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for package in ("lightning", "torch", "torchvision", "tensorboard"):
        warnings.filterwarnings("ignore", module=rf"{package}\b.*")


def _call(config: str | None, words: dict[str, Any]) -> str:
    """The command line that says the same as a call."""
    if sys.argv and sys.argv[0].endswith("unmix"):
        return shlex.join(["unmix", *sys.argv[1:]])
    parts = ["unmix", "pretrain"]
    if config is not None:
        parts += ["--config", config]
    for name, value in words.items():
        if value is True:
            parts.append(f"--{name}")
        elif isinstance(value, (list, tuple)):
            parts += [f"--{name}", *map(str, value)]
        elif value is not None and value is not False:
            parts += [f"--{name}", str(value)]
    return shlex.join(parts)
