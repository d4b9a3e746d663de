"""`unmix probe`: linear evaluation of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from unmix.commands.checkpoints import epoch_checkpoints
from unmix.commands.finished import FinishedRun, Say, Splits, Subject, line_of, say_skipped
from unmix.commands.rows import NotSavedError
from unmix.data import StreamedImages, TensorImages
from unmix.errors import UserError, check_choice, check_number
from unmix.evaluation import PROBES, PROTOCOLS, AugmentedImages, Task, evaluate
from unmix.evaluation.protocol import Batches
from unmix.hardware.threads import CoreMeter
from unmix.randomness import generator_for
from unmix.training.console import Estimate, quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.loading.loaders import EpochOrder, build_loader
from unmix.views import Views, ViewSettings

__all__ = ["probe"]


def probe(
    run: Path | str,
    *,
    protocol: str = "linear",
    features: str = "backbone",
    epochs: int | None = None,
    lr: float | None = None,
    device: str = "auto",
    threads: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    checkpoint: str | None = None,
    say: Say = print_line,
) -> list[dict[str, Any]]:
    """Train linear classifiers on a run's frozen encoder, and add them to its `results.json`.

    `linear` fits features that are encoded once, without augmentation. `cmc` and `moco` are the
    published protocols: SGD on augmented images. A row with the same settings is replaced; rows of
    other settings are kept beside it, and not used by tables.

    Args:
        run: Run folder, or an encoder file alone, with `data`; then nothing is saved.
        protocol: linear, cmc or moco.
        features: The backbone's pooled features, or the projector's.
        epochs: Epochs of the classifier, for cmc and moco; the milestones move in proportion.
        lr: Learning rate of the classifier, for cmc and moco.
        device: auto, cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        data: Another data set than the pretraining's, by name or folder: transfer.
        data_dir: Folder of the data set's files, for the names that need it.
        train_folder: Folder of the training images, relative to --data, if its name is not
            usual.
        test_folder: Folder of the images to evaluate on, likewise.
        checkpoint: A kept checkpoint, such as epoch-0010, instead of the end of the run; "all"
            evaluates every one that was kept, then the end.
        say: Prints a line.

    Returns:
        The rows of `results.json`, in the order of their epochs.

    Raises:
        NotSavedError: if `results.json` cannot be written; its `rows` are the results.
        UserError: if the run is not complete, the data has no classes, there is no such
            checkpoint, or a value is out of range.
    """
    _check(protocol, features, epochs, lr)
    quiet_libraries()
    cores = CoreMeter()
    finished = FinishedRun.open(run, device)
    checkpoints = _chosen(finished, checkpoint)
    splits = finished.splits("a probe", data, data_dir, train_folder, test_folder)
    if splits.note is not None:
        say(splits.note)
    usual = features == finished.settings.evaluation.features and epochs is None and lr is None
    rows: list[dict[str, Any]] = []
    lost: NotSavedError | None = None
    with finished.computing(threads, cores, say):
        for name in checkpoints:
            subject = finished.subject(features, name)
            measured = evaluate(protocol, _task(finished, subject, splits, epochs, lr, say))
            row = {**measured.row, **subject.at, "features": features, **splits.named}
            rows.append(row)
            say(line_of(row))
            # One at a time, so that results are saved whatever happens to the next.
            try:
                main = usual and splits.transfer is None
                finished.keep(row, measured, splits.test, main=main, say=say)
            except NotSavedError as error:
                lost = error
    say_skipped(say, splits.train, splits.test)
    if lost is not None:
        lost.rows = rows
        raise lost
    return rows


def _check(protocol: str, features: str, epochs: int | None, lr: float | None) -> None:
    check_choice("protocol", protocol, PROBES)
    check_choice("features", features, ("backbone", "projector"))
    trained = [name for name in PROBES if PROTOCOLS[name].needs_images]
    for flag, value in (("--epochs", epochs), ("--lr", lr)):
        if value is not None and protocol not in trained:
            raise UserError(
                f"{flag}: {value:g} does not apply to --protocol {protocol}, which is fitted until "
                f"it converges; leave it out, or use --protocol {' or '.join(trained)}."
            )
    if epochs is not None:
        check_number("epochs", epochs, at_least=1)
    if lr is not None:
        check_number("lr", lr, above=0)


def _chosen(finished: FinishedRun, checkpoint: str | None) -> list[str | None]:
    """The checkpoints to evaluate; None is the exported encoder."""
    if checkpoint in (None, "last"):
        return [None]
    if finished.alone:
        raise UserError(
            f"--checkpoint: {finished.folder.path} is not a run folder, so it has no checkpoint "
            f"{checkpoint!r}; leave it out, or give the run folder."
        )
    kept = epoch_checkpoints(finished.folder)
    if not kept:
        raise UserError(
            f"--checkpoint: {finished.folder.path} has no checkpoints of earlier epochs; pretrain "
            "with --checkpoint_every N to keep one every N epochs."
        )
    if checkpoint == "all":
        end = finished.settings.run.epochs
        return [*(name for epoch, name in kept.items() if epoch < end), None]
    assert checkpoint is not None
    return [check_choice("checkpoint", checkpoint, ("all", "last", *kept.values()))]


def _task(
    finished: FinishedRun,
    subject: Subject,
    splits: Splits,
    epochs: int | None,
    lr: float | None,
    say: Say,
) -> Task:
    """The task of the protocols: features, encoded when they are first read, and images."""
    facts, settings = finished.encoder.facts, finished.settings.run
    images = AugmentedImages(
        subject.encode, lambda augmentation, size: _batches(finished, splits, augmentation, size),
        len(splits.train), settings.data if splits.transfer is None else splits.transfer,
        facts["color_space"], facts["width"], finished.machine.autocast, epochs, lr,
        Estimate("classifier", "epochs", say),
    )  # fmt: skip
    return Task(
        lambda: finished.features(subject.encode, splits.train, say),
        lambda: finished.features(subject.encode, splits.test, say),
        len(splits.classes), generator=generator_for(settings.seed, "probe"),
        device=finished.machine.device, images=images,
    )  # fmt: skip


def _batches(
    finished: FinishedRun, splits: Splits, augmentation: ViewSettings, batch_size: int
) -> Batches:
    """The training images, augmented anew each epoch, by seed and epoch."""
    machine, plain = finished.machine, finished.encoder.views
    views = Views(
        augmentation, plain.size, plain.mean, plain.std, 1, plain.color_space,
        channels_last=machine.channels_last,
    )  # fmt: skip
    images, seed = splits.train, finished.settings.run.seed
    resident = images.images.to(machine.device) if isinstance(images, TensorImages) else None
    order = EpochOrder(len(images), batch_size, seed, smallest=1)
    loader = build_loader(
        images, views, order,
        workers=finished.settings.machine.workers, pin_memory=machine.device.type == "cuda",
    )  # fmt: skip

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order.position = lambda: (epoch, 0)
        for step, batch in enumerate(loader):
            generator = generator_for(seed, "probe", epoch, step)
            for error in batch.broken:
                assert isinstance(images, StreamedImages)
                images.skipped.add(error)
            if len(batch.index) == 0:
                continue
            labels = splits.labels[batch.index]
            if resident is not None:
                yield views(resident[batch.index.to(resident.device)], generator)[0], labels
                continue
            assert batch.crops is not None
            crops = batch.crops[0].to(machine.device)
            draw = views.draw(len(crops), plain.size, plain.size, generator)
            yield views.apply_crops(crops, draw), labels

    return batches
