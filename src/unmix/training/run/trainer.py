"""Lightning's trainer of a run: checkpoints, resuming, errors."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from unmix.data import StreamedImages
from unmix.errors import Interrupted, UserError
from unmix.names import is_python, shown
from unmix.training.console import is_leader, say
from unmix.training.loading.loaders import build_loader, worker_count
from unmix.training.loop.callbacks import Checkpoints, Reporter
from unmix.training.loop.compiling import Compiling
from unmix.training.loop.module import Pretraining
from unmix.training.loop.progress import Bar, Lines, shows_bar
from unmix.training.loop.records import Records
from unmix.training.loop.saving import Saving
from unmix.training.loop.sharding import ShardedPretraining
from unmix.training.loop.stopping import Stopping
from unmix.training.loop.waiting import Waiting
from unmix.training.run.checkpoints import AtomicCheckpoints, latest_intact, set_aside
from unmix.training.run.extending import Extending
from unmix.training.run.folder import RunFolder
from unmix.training.run.launching import cluster_plugins, in_worker, join_again
from unmix.training.run.loggers import extra_loggers
from unmix.training.run.parts import Parts, encoder_facts
from unmix.training.run.ranks import Ranks
from unmix.training.run.sharded import Sharded

__all__ = ["build_trainer", "fit"]

TIMEOUT = timedelta(hours=6)
_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
_PARTS = (
    "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step",
    "epoch_sums", "epoch_samples",
)  # fmt: skip


def fit(
    parts: Parts, folder: RunFolder, reporter: Reporter, resume: bool, stopping: Stopping
) -> None:
    """Train, from the newest intact checkpoint if there is one.

    Raises:
        UserError: if the run diverges, its folder cannot be written, or a run that is resumed has
            checkpoints and none is intact.
    """
    settings, machine = parts.settings, parts.machine
    start = resumed_from(parts.module, folder, stopping) if resume else None
    reporter.records = Records(folder.metrics)
    saving = Saving(parts.module.total_steps, stopping, folder.check_ours)
    reporter.checkpoints = Checkpoints(
        folder.checkpoints, settings.machine.checkpoint_every, settings.machine.checkpoint_steps,
        stopping, saving, encoder_facts(parts),
    )  # fmt: skip
    several = settings.machine.processes > 1
    in_python = is_python(settings.run.data)
    ranks = Ranks(
        settings.machine.processes,
        lambda: folder.way_on(stopping.saved, in_python, sentence=True),
        listing=parts.listing,
    )
    callbacks: list[Callback] = [
        *([ranks] if several else []),
        *([Extending(folder, settings)] if folder.extend else []),
        Compiling(settings.machine.compile, say),
        reporter,
        reporter.checkpoints,
    ]
    bar = shows_bar()
    if bar:
        callbacks.append(Bar(reporter))
    callbacks.append(Lines(reporter, every=None) if bar else Lines(reporter))
    workers = settings.machine.workers
    if workers is None:
        workers = worker_count(settings.machine.devices)
    if isinstance(parts.train, StreamedImages):
        advice = (
            f"give more than --workers {workers} if cores are free, or prepare the files once "
            "(unmix data pack --short_side)"
        )
        callbacks.append(Waiting(advice, lambda line: reporter.say(line)))
    trainer = build_trainer(
        parts,
        callbacks,
        max_epochs=settings.run.epochs,
        gradient_clip_val=settings.optimizer.clip_grad or None,
        logger=extra_loggers(settings, folder),
        plugins=[AtomicCheckpoints(saving), *cluster_plugins()],
        enable_checkpointing=False,  # the callback `Checkpoints` instead
        enable_progress_bar=bar,
    )
    loader = build_loader(
        parts.train, parts.module.views, parts.module.order,
        resident=parts.module.resident is not None, workers=workers,
        pin_memory=machine.device.type == "cuda",
    )  # fmt: skip
    ranks.take_over(trainer.strategy)
    with ranks.watching() if several else nullcontext(), errors_of_users(trainer, folder, stopping):
        if several:
            join_again(machine.device.type == "cuda", TIMEOUT)
        trainer.fit(parts.module, loader, ckpt_path=start)
        if isinstance(parts.module, ShardedPretraining):
            parts.module.make_whole()
    # A run that was stopped between its last save and the evaluation has no step left to do.
    reporter.complete(trainer, parts.module)
    with errors_of_users(trainer, folder, stopping):
        reporter.end()


def resumed_from(module: Pretraining, folder: RunFolder, stopping: Stopping) -> Path | None:
    """The checkpoint to resume from, checked; None if there is none yet.

    Raises:
        UserError: if none is intact, or it is of another run.
    """
    path, checkpoint, damaged = latest_intact(folder.checkpoints)
    if path is None:
        if damaged:
            raise UserError(
                f"{damaged[0]}, and {folder.checkpoints} holds no other that is intact. Put a copy "
                "in its place, or remove it to train from the start."
            )
        return None
    check_fits(module, checkpoint, path, folder)
    for error in damaged:
        say(f"{error}.")
    if damaged and is_leader():
        set_aside(folder.checkpoints, path)
        say(f"Damaged checkpoints are kept as {shown(folder.checkpoints)}/NAME.damaged.")
    stopping.saved = checkpoint["global_step"]
    say(f"resuming from {shown(path)}, after {checkpoint['global_step']} steps")
    if "first_loss" not in checkpoint and module.views.kinds[0].settings.jitter[3]:
        say(
            "note: this run was started by unmix 0.1.0, whose hue jitter was a rotation of colors; "
            "from here on it is a shift of the hue."
        )
    return path


def build_trainer(parts: Parts, callbacks: list[Callback], **options: Any) -> L.Trainer:
    """Build Lightning's trainer for the run's device and precision.

    Args:
        parts: Components of the run.
        callbacks: Callbacks of the trainer.
        options: Other arguments of `lightning.Trainer`.
    """
    machine, wanted = parts.machine, parts.settings.machine
    on_gpu = machine.device.type == "cuda"
    strategy: Any = "auto"
    sharded = wanted.strategy == "fsdp"
    devices: Any = wanted.devices
    nodes = wanted.nodes
    if in_worker():  # Ray places the workers, and knows the GPUs of each machine
        devices, nodes = "auto" if on_gpu else 1, 1
        if wanted.processes > 1:
            from ray.train.lightning import RayDDPStrategy

            strategy = RayDDPStrategy(broadcast_buffers=False)
    elif sharded:
        strategy = Sharded(TIMEOUT)
    elif wanted.processes > 1:
        # Buffers are gathered by the methods, or each process has its own. One process fits the
        # classifiers of an evaluation while the others wait.
        strategy = DDPStrategy(broadcast_buffers=False, timeout=TIMEOUT)
    return L.Trainer(
        accelerator=machine.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        use_distributed_sampler=False,
        sync_batchnorm=(
            wanted.processes > 1 and on_gpu and parts.module.method.sync_batch_norm and not sharded
        ),
        precision=machine.precision,  # type: ignore[arg-type]
        benchmark=on_gpu,  # all batches but the last have the same size
        callbacks=callbacks,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


@contextmanager
def errors_of_users(trainer: L.Trainer, folder: RunFolder, stopping: Stopping) -> Iterator[None]:
    """Raise Interrupted if a run is interrupted, and a UserError if it cannot go on."""
    try:
        yield
    except SystemExit:
        # Lightning ends an interrupted run like this.
        if not trainer.interrupted:
            raise
    except ValueError as error:
        # Lightning ignores SIGINT while it ends such a run, which only a main thread can; a worker
        # of Ray trains in another.
        if isinstance(error.__context__, Interrupted) and not isinstance(error, UserError):
            raise error.__context__ from None
        if "parameter group" in str(error):  # of PyTorch's optimizers
            raise UserError(
                f"{folder.path}: was begun by an earlier version, whose optimizer trained other "
                "parameters, or gave weight decay to others, so it cannot be continued; give "
                "another --run."
            ) from None
        raise
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise UserError(
            f"{error.filename or folder.path}: cannot be written ({error.strerror})."
        ) from error
    if trainer.interrupted:
        raise Interrupted(stopping.received or signal.SIGINT)


def check_fits(module: Pretraining, checkpoint: Any, path: Path, folder: RunFolder) -> None:
    """Check that a checkpoint is complete, and of this method and encoder.

    Raises:
        UserError: with the first part that is missing, or the first weight that does not match.
    """
    for part in _PARTS:
        if not isinstance(checkpoint, dict) or part not in checkpoint:
            raise UserError(
                f"{path}: has no {part}, so it is not a checkpoint of unmix pretrain; "
                "remove it to train from the start."
            )
    ours, state = module.state_dict(), checkpoint["state_dict"]
    for name, value in ours.items():
        theirs = state.get(name)
        if theirs is None or theirs.shape != value.shape:
            difference = "is missing" if theirs is None else f"has shape {tuple(theirs.shape)}"
            raise UserError(
                f"{path}: does not match the run: {name} {difference}, not "
                f"{tuple(value.shape)}; it does not belong to the settings in {folder.config}."
            )
