"""`unmix probe`: linear evaluation of a finished run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from unmix.commands.augmented import augmented_batches, batch_order
from unmix.commands.checkpoints import epoch_checkpoints
from unmix.commands.evaluated import Splits, Subject
from unmix.commands.finished import FinishedRun, Say, check_features, line_of, say_skipped
from unmix.commands.rows import NotSavedError
from unmix.data.columns import Columns
from unmix.errors import UserError, check_choice, check_number
from unmix.evaluation import PROBES, PROTOCOLS, AugmentedImages, LabeledFeatures, Task, evaluate
from unmix.evaluation.protocol import Batches
from unmix.hardware.threads import CoreMeter
from unmix.names import in_words
from unmix.randomness import generator_for
from unmix.training.console import Estimate, quiet_libraries
from unmix.training.console import say as print_line
from unmix.views import ViewSettings

__all__ = ["classifier_task", "probe"]


def probe(
    run: Path | str,
    *,
    protocol: str = "linear",
    features: str = "backbone",
    epochs: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    select: bool = False,
    layer: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    checkpoint: str | None = None,
    say: Say = print_line,
) -> list[dict[str, Any]]:
    """Train linear classifiers on a run's frozen encoder, and add them to its `results.json`.

    `linear` fits features that are encoded once, without augmentation. The others are published
    protocols: `cmc`, `moco`, `swav`, `barlow`, `vicreg` and `dino` train by SGD on augmented
    images, `whitening` by Adam on features that are encoded once. A row with the same settings is
    replaced; rows of other settings are kept beside it. Tables use that of the usual settings, or
    the only one; a layer has a column of its own.

    Args:
        run: Run folder, or an encoder file alone, with `data`; then nothing is saved.
        protocol: linear, or a published one: cmc, moco, whitening, swav, barlow, vicreg or dino.
        features: The backbone's pooled features, or the projector's.
        epochs: Epochs of a published protocol's classifier; milestones move in proportion.
        lr: Learning rate of a published protocol's classifier.
        weight_decay: Weight decay of a published protocol's classifier.
        select: Choose rate and weight decay of a published protocol on a held-out tenth of the
            training images; linear always chooses its L2 strength so.
        layer: Layer of the backbone instead of its pooled features: a name such as layer3 or
            blocks.5, or CMC's number, 1 to 6.
        device: auto, cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        data: Another data set than the pretraining's, by name or folder: transfer.
        data_dir: Folder of the data set's files, for the names that need it.
        train_folder: Folder of the training images, relative to --data, if its name is not
            usual.
        test_folder: Folder of the images to evaluate on, likewise.
        image_column: Of a list or table, the column of the images or their paths, if its name is
            not a usual one.
        label_column: Likewise of the labels.
        split_column: Likewise of the splits to which images belong.
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
    own = _check(protocol, epochs=epochs, lr=lr, weight_decay=weight_decay, select=select)
    check_features(features, layer)
    quiet_libraries()
    cores = CoreMeter()
    finished = FinishedRun.open(run, device)
    checkpoints = _chosen(finished, checkpoint)
    columns = Columns(image_column, label_column, split_column)
    splits = finished.splits("a probe", data, data_dir, train_folder, test_folder, columns)
    if splits.note is not None:
        say(splits.note)
    usual = features == finished.settings.evaluation.features and not own and layer is None
    rows: list[dict[str, Any]] = []
    lost: NotSavedError | None = None
    with finished.computing(threads, cores, say):
        for name in checkpoints:
            subject = finished.subject(features, name, layer)
            measured = evaluate(protocol, classifier_task(finished, subject, splits, own, say))
            row = {**measured.row, **subject.of, **splits.named}
            rows.append(row)
            say(line_of(row))
            # One at a time, so that results are saved whatever happens to the next.
            try:
                finished.keep(row, measured, splits, main=usual, say=say)
            except NotSavedError as error:
                lost = error
    say_skipped(say, splits.train, splits.test)
    if lost is not None:
        lost.rows = rows
        raise lost
    return rows


def _check(protocol: str, **own: Any) -> dict[str, Any]:
    """The settings of a classifier that are given.

    Raises:
        UserError: if the protocol has none, or one is out of range.
    """
    check_choice("protocol", protocol, PROBES)
    given = {k: v for k, v in own.items() if v is not None and v is not False}
    trained = [name for name in PROBES if PROTOCOLS[name].trained]
    for name, value in given.items():
        if protocol not in trained:
            what = f"--{name}" if value is True else f"--{name}: {value:g}"
            raise UserError(
                f"{what} does not apply to --protocol {protocol}, which is fitted until it "
                "converges, with an L2 strength chosen on held-out training images; leave it out, "
                f"or use --protocol {in_words(trained, 'or')}."
            )
    if given.get("select"):
        for name in given:
            if name in ("lr", "weight_decay"):
                raise UserError(f"--{name}: is what --select chooses; give one of the two.")
    if "epochs" in given:
        check_number("epochs", given["epochs"], at_least=1)
    if "lr" in given:
        check_number("lr", given["lr"], above=0)
    if "weight_decay" in given:
        check_number("weight_decay", given["weight_decay"], at_least=0)
    return given


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


def classifier_task(
    finished: FinishedRun,
    subject: Subject,
    splits: Splits,
    own: dict[str, Any],
    say: Say,
    features: Callable[[str], LabeledFeatures] | None = None,
) -> Task:
    """The task of the protocols: features, encoded when they are first read, and images.

    Args:
        finished: The run.
        subject: Its encoder.
        splits: Labeled images.
        own: Settings of the classifier that are given, by name.
        say: Prints a line.
        features: Gives the features of a split, "train" or "test", instead of encoding it.
    """
    facts, settings = finished.encoder.facts, finished.settings.run
    if features is None:

        def features(split: str) -> LabeledFeatures:
            return finished.features(subject.encode, getattr(splits, split), say)

    def batches(augmentation: ViewSettings, batch_size: int, index: Tensor | None) -> Batches:
        images = splits.train if index is None else splits.train.picked(index)
        labels = splits.labels if index is None else splits.labels[index]
        order = batch_order(images, batch_size, settings.seed)
        return augmented_batches(finished, images, labels, augmentation, order)

    images = AugmentedImages(
        subject.encode, batches, len(splits.train),
        settings.data if splits.transfer is None else splits.transfer,
        facts["color_space"], facts["width"], finished.machine.autocast,
        progress=Estimate("classifier", "epochs", say), **own,
    )  # fmt: skip
    return Task(
        lambda: features("train"),
        lambda: features("test"),
        len(splits.classes), generator=generator_for(settings.seed, "probe"),
        device=finished.machine.device, images=images,
    )  # fmt: skip
