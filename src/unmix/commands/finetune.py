"""`unmix finetune`: fine-tuning of a finished run's encoder, on all labels or a part of them."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unmix.checksums import weights_digest
from unmix.commands.evaluated import Splits
from unmix.commands.finished import FinishedRun, Say, line_of, say_skipped
from unmix.commands.fitting import (
    Labeled,
    WorkFolder,
    choose_settings,
    train,
    untrained,
)
from unmix.commands.images import range_of
from unmix.data.columns import Columns
from unmix.display import counted
from unmix.errors import UserError, check_choice, check_given
from unmix.evaluation import Measurement, accuracy
from unmix.evaluation.finetuning import FINE_TUNING, FineTuneSettings, usual_fine_tuning
from unmix.evaluation.labeled import ALL_LABELS, Amount, choose_labeled, read_list
from unmix.files import as_path
from unmix.hardware.threads import CoreMeter
from unmix.mixtures import MIXTURES, MixtureOperator, PatchMixture
from unmix.mixtures.registry import label_space
from unmix.names import shown
from unmix.randomness import generator_for
from unmix.results import finite
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line

__all__ = ["finetune"]


def finetune(
    run: Path | str,
    *,
    labels: str = "100%",
    label_list: str | None = None,
    protocol: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    head_lr: float | None = None,
    weight_decay: float | None = None,
    lr_decay: float | None = None,
    mix: str | None = None,
    beta: float | None = None,
    select: bool = False,
    from_scratch: bool = False,
    seed: int | None = None,
    overwrite: bool = False,
    out: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    say: Say = print_line,
) -> dict[str, Any]:
    """Fine-tune a run's encoder with a linear classifier, and add the result to `results.json`.

    Encoder and classifier are trained on all labels, or on a part of them that is balanced over the
    classes: semi-supervised learning. The run itself stays as it is; the fine-tuned encoder, the
    classifier and the list of the labeled images are in a folder within it, `finetune/NAME`. Give
    the same command to continue. It runs on one device.

    Args:
        run: Run folder, or an encoder file alone, with `data` and `out`.
        labels: 100%, 10%, 1% or any other share of the training images, or the number of images of
            each class.
        label_list: A file that names the labeled training images, one per line, such as SimCLR's
            lists of 1% and 10% of ImageNet.
        protocol: Published settings: swav, vicreg, simclr or mae; by default swav, for vision
            transformers mae.
        epochs: Epochs; milestones and warmup move in proportion.
        batch_size: Images per step; the rates of simclr and mae follow it.
        lr: Learning rate of the encoder.
        head_lr: Learning rate of the classifier.
        weight_decay: Weight decay.
        lr_decay: Factor of the learning rate from layer to layer, towards the first; 1 for the same
            rate in all.
        mix: Mix every batch, and weight the loss between the labels of the mixed images: global
            (MixUp), region (CutMix), coin (one of both), or another mixture of pretraining that
            needs the images alone.
        beta: Of --mix: lambda ~ Beta(beta, beta); by default 1, or as it was published.
        select: Choose the rates, published ones times 0.1 to 10, on a held-out tenth of the labeled
            images.
        from_scratch: Start from random weights, for comparison.
        seed: Of the choice of labels, of the order and of the classifier; by default the run's.
        overwrite: Train again what is complete.
        out: Folder for the fine-tuned encoder instead of one within the run.
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
        say: Prints a line.

    Returns:
        The row of `results.json`: accuracies in percent, and the settings.

    Raises:
        NotSavedError: if `results.json` cannot be written; its `rows` are the results.
        UserError: if the run is not complete, the data has no classes, there are too few images of
            a class, or a value is out of range.
    """
    amount = Amount(str(labels))
    own = {"lr": lr, "head_lr": head_lr, "weight_decay": weight_decay, "lr_decay": lr_decay}
    _check(amount, label_list, protocol, select, own)
    operator = _mixture(mix, beta)
    check_given("out", out)
    quiet_libraries()
    cores = CoreMeter()
    finished = FinishedRun.open(run, device)
    columns = Columns(image_column, label_column, split_column)
    splits = finished.splits("fine-tuning", data, data_dir, train_folder, test_folder, columns)
    _check_place(finished, out)
    if splits.note is not None:
        say(splits.note)
    name = protocol or usual_fine_tuning(finished.encoder.backbone)
    seed = finished.settings.run.seed if seed is None else seed
    labeled = _labeled(splits, amount, label_list, seed)
    published = FINE_TUNING[name](len(labeled.images) / len(splits.train))
    settings = replace(published.changed(epochs, batch_size, **own), mixture=operator)
    mixed = {k: v for k, v in {"mix": mix, "beta": beta}.items() if v is not None}
    row = _row(finished, splits, labeled, settings, name, seed, select, from_scratch) | mixed
    encoder = weights_digest(finished.encoder.backbone.state_dict())
    work = WorkFolder.of(finished, row, labeled, splits, encoder, out)
    identity = work.identified(row, labeled, splits, encoder, finished.encoder.prepares, seed)
    done = work.result(identity, overwrite)
    # What a table shows of several rows: the published settings.
    main = settings == published and not (select or from_scratch)
    if done is not None:
        say(f"{line_of(done)} (complete; --overwrite trains it again)")
        finished.keep_again(done, main=main, say=say)
        return done
    with finished.computing(threads, cores, say), work.locked(say):
        work.begin(overwrite, identity, labeled)
        _say_start(labeled, splits, settings, work, say)
        backbone = untrained(finished, seed) if from_scratch else finished.encoder.backbone
        if select:
            settings = choose_settings(finished, backbone, labeled, settings, seed, work, say)
            row |= {"chosen": {"lr": settings.lr, "head_lr": settings.head_lr}}
        model = train(finished, backbone, labeled, settings, seed, work, say)
        measured = _measure(finished, model, splits, row, say)
        work.save(_facts(finished, splits, measured.row), model, splits.classes)
        say_skipped(say, labeled.images, splits.test)
        say(line_of(measured.row))
        finished.keep(measured.row, measured, splits, main=main, say=say)
        # Complete only now: if the row could not be kept, the same command measures it again.
        work.finish(measured.row)
        name = shlex.quote(str(work.path))
        say(f"to classify images: unmix predict {shown(name)} --data FOLDER --out classes.csv")
    return measured.row


def _mixture(name: str | None, beta: float | None) -> MixtureOperator | None:
    """The mixture of the batches; None for none.

    Raises:
        UserError: if there is no such mixture, it needs more than the images of a batch, or `beta`
            does not apply.
    """
    if name is None:
        if beta is not None:
            raise UserError("--beta: is of --mix; give it too, such as --mix global.")
        return None
    usable = [each for each in MIXTURES if _of_images_alone(each)]
    if name in MIXTURES and name not in usable:
        raise UserError(
            f"--mix: {name} needs more than the images of a batch; use {', '.join(usable)}."
        )
    check_choice("mix", name, usable)
    return label_space(name, {} if beta is None else {"beta": beta})


def _of_images_alone(name: str) -> bool:
    """Whether a mixture needs the images of a batch, and nothing else."""
    kind = MIXTURES[name].kind
    if not issubclass(kind, MixtureOperator) or not kind.mixes_pixels or kind.needs_attention:
        return False
    if issubclass(kind, PatchMixture):  # of the patches of a transformer
        return False
    try:
        return not label_space(name, {}).extra
    except UserError:  # it needs a setting
        return False


def _say_start(
    labeled: Labeled, splits: Splits, settings: FineTuneSettings, work: WorkFolder, say: Say
) -> None:
    """Say what is trained, and where it is kept."""
    say(
        f"fine-tuning on {len(labeled.images):,} of {len(splits.train):,} images, "
        f"{counted(settings.epochs, 'epoch')} ({settings.source})   folder: {shown(work.path)}"
    )
    _note_one_step(settings, len(labeled.images), say)


def _check_place(finished: FinishedRun, out: str | None) -> None:
    """Check that there is a place for the fine-tuned encoder.

    Raises:
        UserError: if not.
    """
    if finished.alone and out is None:
        raise UserError(
            "--out: an encoder file alone has no run folder to put the fine-tuned encoder in; give "
            "a folder for it."
        )


def _note_one_step(settings: FineTuneSettings, images: int, say: Say) -> None:
    """Say so if a batch holds all images, with which published rates mean something else."""
    if settings.batch_size > images:
        scaled = ", and scales the rates" if settings.scaled else ""
        say(
            f"note: {counted(images, 'image')} are fewer than the batch of "
            f"{settings.batch_size:,}, so an epoch is one step; --batch_size makes more{scaled}"
        )


def _check(
    amount: Amount,
    label_list: str | None,
    protocol: str | None,
    select: bool,
    own: dict[str, Any],
) -> None:
    if protocol is not None:
        check_choice("protocol", protocol, FINE_TUNING)
    if label_list is not None and not amount.everything:
        raise UserError(
            f"--labels: {amount} does not apply with --label_list, which names the images; leave "
            "one of the two out."
        )
    if select:
        for name in ("lr", "head_lr"):
            if own[name] is not None:
                raise UserError(f"--{name}: is what --select chooses; give one of the two.")


def _labeled(splits: Splits, amount: Amount, label_list: str | None, seed: int) -> Labeled:
    """The labeled images.

    Raises:
        UserError: if there are too few of a class, or the list does not fit.
    """
    if len(splits.classes) < 2:
        raise UserError(
            f"--data: {splits.train.name} has one class, {shown(splits.classes[0])!r}; a "
            "classifier needs two or more."
        )
    if label_list is not None:
        check_given("label_list", label_list)
        index = read_list(as_path(label_list), splits.train)
        what, kind = f"the images of {Path(label_list).name}", "list"
    else:
        generator = generator_for(seed, "labels")
        index = choose_labeled(splits.labels, splits.classes, amount, generator)
        what = ALL_LABELS if amount.everything else f"{amount}, balanced, seed {seed}"
        kind = "" if amount.everything else str(amount).replace(" ", "-")
    labels = splits.labels[index]
    if len(labels.unique()) < 2:
        raise UserError(
            "--label_list: all of its images are of one class; a classifier needs two or more."
        )
    return Labeled(splits.train.picked(index), labels, index, len(splits.classes), kind, what)


def _row(
    finished: FinishedRun,
    splits: Splits,
    labeled: Labeled,
    settings: FineTuneSettings,
    name: str,
    seed: int,
    select: bool,
    from_scratch: bool,
) -> dict[str, Any]:
    """What is measured, and how: the row of `results.json` without its results."""
    published = asdict(settings)
    words = ["epochs", "batch_size", *([] if select else ["lr", "head_lr"])]
    words += ["weight_decay", "lr_decay"]
    own = finished.settings.run
    return {
        "protocol": "finetune" + (f"-{labeled.kind}" if labeled.kind else ""),
        **({} if finished.alone else {"epoch": own.epochs}),
        "settings": name,
        **{word: published[word] for word in words},
        **({"selected": "lr, head_lr"} if select else {}),
        **({"start": "random"} if from_scratch else {}),
        **({} if seed == own.seed else {"seed": seed}),
        **splits.named,
        **({"labeled": labeled.digest[:8]} if labeled.kind == "list" else {}),
        "train_images": len(labeled.images),
    }


def _facts(finished: FinishedRun, splits: Splits, row: dict[str, Any]) -> dict[str, Any]:
    """The facts of the encoder's file, which say on whose labels it was trained, and how well.

    Images of more than 8 bits were scaled by the range of these, if the encoder had none, so later
    ones have to be too.
    """
    limits = range_of(finished, splits.train)
    data = str(row.get("data") or finished.settings.run.data)
    # Not where the data is on this machine: the file is for others too.
    labels = {"data": Path(data).name or data, "classes": list(splits.classes)}
    precision = {"precision": finished.machine.precision.partition("-")[0]}
    facts = {**finished.encoder.facts, **({} if limits is None else {"range": list(limits)})}
    return {**facts, "fine_tuned": finite({**row, **labels, **precision})}


def _measure(
    finished: FinishedRun, model: Any, splits: Splits, row: dict[str, Any], say: Say
) -> Measurement:
    """Predict the test images."""
    found = finished.features(model, splits.test, say)
    assert found.labels is not None
    ranking = found.features.topk(min(5, len(splits.classes)), dim=1).indices
    measured = {**row, **accuracy(ranking, found.labels), "test_images": len(found.labels)}
    return Measurement(measured, ranking[:, 0] == found.labels, found.index)
