"""The components of a run, built from its settings."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from unmix.backbones import VIT_SHAPE, checkpoint_activations
from unmix.config import RunSettings, Settings
from unmix.config.compatibility import check_teacher
from unmix.data import (
    Decoding,
    ImageSet,
    Lists,
    Shards,
    Skipped,
    StreamedImages,
    check_normalization,
    load,
)
from unmix.data.columns import Columns
from unmix.data.fingerprint import Fingerprint, fingerprint
from unmix.data.from_python import check_sendable
from unmix.data.streams import NoTestShards
from unmix.display import counted
from unmix.errors import UserError
from unmix.hardware.devices import Machine, choose_machine
from unmix.methods import Method
from unmix.mixtures import MixtureOperator
from unmix.names import shown
from unmix.randomness import generator_for
from unmix.together import smallest_batch
from unmix.training.loading.residency import hold
from unmix.training.loop.health import advice_for
from unmix.training.loop.module import Pretraining
from unmix.training.mixing import check_views, label_space
from unmix.training.run.building import build_method, has_narrow_downsampling
from unmix.training.run.initial import start_of
from unmix.training.run.loggers import check_logger
from unmix.training.run.notes import notes_on_settings, notes_on_views, notes_on_weights
from unmix.training.run.ordering import interleaved, order_of
from unmix.training.run.same_data import Listing
from unmix.training.run.sharded import pretraining_class
from unmix.training.run.taught import teacher_of
from unmix.training.run.vain import notes_on_vain
from unmix.views import Views

__all__ = [
    "Parts",
    "build_method",
    "build_parts",
    "encoder_facts",
    "fingerprints",
    "has_narrow_downsampling",
    "headline",
    "load_split",
    "measured_range",
    "native_size",
]

LARGE = 224


@dataclass
class Parts:
    """The components of a run."""

    settings: Settings
    machine: Machine
    train: ImageSet
    labeled: ImageSet
    test: ImageSet | None
    module: Pretraining
    where: str
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    threads: str = ""
    listing: Listing | None = None


Seen = MutableMapping[str, Fingerprint]


def build_parts(
    settings: Settings,
    images: ImageSet | None = None,
    seen: Seen | None = None,
    test: ImageSet | None = None,
    *,
    init: bool = True,
) -> Parts:
    """Build the components of a run; nothing is written.

    Args:
        settings: Settings of the run.
        init: Whether to load the weights to start from, if any; a run that goes on from its own
            checkpoint does not need them.
        images: Images to train on instead of `data`.
        seen: If given, filled with the fingerprint of each split that is read, the training images
            first.
        test: With `images`, the images to evaluate on; None for no evaluation.

    Raises:
        UserError: if the settings do not go together or the data cannot be read.
    """
    run_ = settings.run
    check_teacher(settings)
    machine = choose_machine(settings.machine)
    check_logger(settings.machine.logger)
    source, test = _images_of(settings, images, seen, test)
    size = run_.size or native_size(source)
    held = hold(source, machine, settings.machine)
    train = held.images
    if seen is not None and held.kept is not None:
        seen[source.split] = seen[source.split].without(held.kept, len(source))
    labeled = train
    if images is None:
        labeled = train if train.labels is not None else load_split(run_, "train", seen)
        test = _test_images(labeled, run_, seen)
    settings = settings.with_changes(
        size=size,
        precision=machine.precision.split("-")[0].removesuffix("-true"),
        resident="yes" if held.resident else "no",
        **measured_range(source, run_),
        **interleaved(source, settings),
    )
    processes = settings.machine.processes
    _check_shared(run_.batch_size, processes)
    start = start_of(settings.model) if init else None
    if start is not None:
        settings = settings.with_changes(init_sha256=start.weights.sha256)
    teacher = teacher_of(settings)
    if teacher is not None:
        settings = settings.with_changes(teacher_sha256=teacher.sha256)
    taught = None if teacher is None else teacher.module(train.mean, train.std)
    method = build_method(settings, len(train), size, start, taught)
    if settings.machine.checkpoint_activations:
        checkpoint_activations(method.backbone)
    parts = settings.machine.accumulate
    method.share_among(processes)
    check_batch(method, run_.batch_size, len(train), processes, parts)
    mixing = label_space(settings, method)
    operators = [operator for operator, _ in mixing]
    smallest = max(smallest_batch(each, method) for each in (None, *operators))
    order = order_of(settings.run, train, smallest, processes)
    contiguous = settings.machine.strategy == "fsdp"  # which takes no other weights
    if contiguous or (machine.device.type == "cpu" and has_narrow_downsampling(method)):
        machine = replace(machine, channels_last=False)
    check_views(settings, method)
    views = Views(
        settings.views, size, train.mean, train.std, method.views, method.color_space,
        extra=tuple(area for each in operators for area in each.extra),
        channels_last=machine.channels_last,
    )  # fmt: skip
    module = pretraining_class(settings, method, machine)(
        method, views, train, order, settings.optimizer, epochs=run_.epochs, seed=run_.seed,
        image_space=settings.mixture.image_space(), mixing=mixing,
        channels_last=machine.channels_last, resident=held.resident,
        joint=settings.mixture.unmix_joint,
        advice=advice_for(settings), accumulate=parts, schedule=settings.mixture.schedule(),
    )  # fmt: skip
    _check_draws(module, operators, size)
    notes = (
        *source.notes,
        *held.notes,
        *notes_on(run_, images),
        *notes_on_vain(run_, source),
        *notes_on_views(settings, method),
        *notes_on_weights(settings.model.backbone, settings.model.init),
        *(() if start is None else start.notes(train.mean, train.std)),
        *(() if teacher is None else teacher.notes(size, train.mean, train.std)),
        *notes_on_settings(settings, method, operators, size, len(train)),
    )
    sets = (source, labeled, test)  # not train, whose files may have become a tensor
    skipped = tuple(each.skipped for each in sets if isinstance(each, StreamedImages))
    return Parts(
        settings, machine, train, labeled, test, module, held.about, notes, skipped,
        listing=Listing.of(source, held.kept) if processes > 1 else None,
    )  # fmt: skip


def _check_shared(batch_size: int, processes: int) -> None:
    if batch_size % processes:
        raise UserError(
            f"--batch_size: {batch_size} cannot be shared by {processes} devices; use a "
            f"multiple of {processes}."
        )


def _check_draws(module: Pretraining, operators: Sequence[MixtureOperator], size: int) -> None:
    """Draw each mixture once, so that one that does not fit the images is told before training."""
    if module.image_space is not None:
        module.image_space.draw((2, 3, size, size), generator_for(0))
    pixels = torch.zeros(4, 3, size, size)
    for each in operators:
        each.draw_for(pixels, generator_for(0), torch.eye(4), pixels[:, 0])


def _images_of(
    settings: Settings, images: ImageSet | None, seen: Seen | None, test: ImageSet | None
) -> tuple[ImageSet, ImageSet | None]:
    """The training images, of the settings or those that are given, and given test images.

    Raises:
        UserError: if there are fewer than 2, or all pixels have one value.
    """
    run_ = settings.run
    if images is None:
        training = load_split(run_, "pretrain", seen)
    else:
        training = as_wanted(images, run_, seen)
        test = None if test is None else as_wanted(test, run_, seen)
        check_sendable(training, settings.machine.workers)
    if max(training.std) == 0:
        raise UserError(
            f"--data: all pixels of {training.name} that were looked at have one value "
            f"({255 * training.mean[0]:.0f}); there is nothing to learn from them."
        )
    if len(training) < 2:
        raise UserError(
            f"--data: {run_.data} has {len(training)} training image; pretraining needs 2."
        )
    return training, test


def _test_images(labeled: ImageSet, run_: RunSettings, seen: Seen | None) -> ImageSet | None:
    """The images to evaluate on; None without labels, or if shards have none for it."""
    if labeled.labels is None:
        return None
    try:
        return load_split(run_, "test", seen)
    except NoTestShards:
        return None


def fingerprints(run_: RunSettings) -> dict[str, Fingerprint]:
    """The fingerprints of the splits that a run would read, without training on them.

    Raises:
        UserError: if the data cannot be read.
    """
    seen: dict[str, Fingerprint] = {}
    images = load_split(run_, "pretrain", seen)
    _test_images(
        images if images.labels is not None else load_split(run_, "train", seen), run_, seen
    )
    return seen


def measured_range(images: ImageSet, run_: RunSettings) -> dict[str, Any]:
    """The measured range of pixel values, for `config.yaml`, so that later images scale alike."""
    if not isinstance(images, StreamedImages) or images.decoding.range in (None, run_.limits):
        return {}
    return {"range": list(images.decoding.range)}  # type: ignore[arg-type]


def check_batch(method: Method, batch_size: int, n: int, processes: int, parts: int = 1) -> None:
    """Check that a method supports the batch size of a run, or the parts of its batches.

    Raises:
        UserError: if not. If the data is too small for any batch, the message says so.
    """
    method.check_queue(min(batch_size, n))
    try:
        method.check_batch(min(batch_size, n) // processes // parts)
    except UserError as error:
        if parts > 1:
            raise error.with_more(
                f"With `accumulate={parts}` each of its parts is a batch of "
                f"{batch_size // processes // parts}; fewer parts may do."
            ) from None
        needed = method.smallest_batch * processes
        if n >= needed or "batch_size" not in f"{error.parameter} {error.message}":
            raise
        # Do not advise a batch size that the data cannot fill.
        advice = error.message.partition("; ")[2].replace(f"`batch_size={needed}` or more, ", "")
        raise UserError(
            f"{n} training images fill no batch of the {needed} that this method needs; "
            f"{advice or 'use more images.'}",
            parameter="data",
        ) from None


def load_split(
    run_: RunSettings, split: str, seen: Seen | None = None, *, elsewhere: bool = False
) -> ImageSet:
    """Load a split of the run's data set; training splits are reduced to `limit` images.

    Args:
        run_: Settings of the data set.
        split: `train`, `test` or `pretrain`.
        seen: If given, filled with the fingerprint of the whole split.
        elsewhere: Whether it is other data than the run's, which may have other columns.
    """
    columns = Columns(run_.image_column, run_.label_column, run_.split_column, not elsewhere)
    images = load(
        run_.data, split, data_dir=run_.data_dir, strict=run_.strict, download=run_.download,
        train_folder=run_.train_folder, test_folder=run_.test_folder,
        decoding=Decoding(run_.max_pixels, run_.limits),
        cache_dir=run_.cache_dir,
        shards=Shards(run_.cache_size, run_.interleave, run_.shuffle_buffer),
        lists=Lists(columns, run_.manifest),
    )  # fmt: skip
    return as_wanted(images, run_, seen)


def as_wanted(images: ImageSet, run_: RunSettings, seen: Seen | None = None) -> ImageSet:
    """Apply the settings to a split: `limit` and normalization; see `load_split`."""
    if seen is not None:
        seen[images.split] = fingerprint(images)
    if images.split != "test" and run_.limit is not None:
        images = images.evenly(run_.limit)
    std = images.std
    if max(std) > 0:
        # A constant channel has no standard deviation to divide by.
        std = tuple(value or 1.0 for value in std)  # type: ignore[assignment]
    return replace(images, mean=run_.mean or images.mean, std=run_.std or std)


def notes_on(run_: RunSettings, images: ImageSet | None = None) -> tuple[str, ...]:
    """A note if mean and standard deviation are far from the data set's own."""
    if run_.mean is None and run_.std is None:
        return ()
    own = images or load_split(replace(run_, mean=None, std=None), "pretrain")
    line = check_normalization(own, run_.mean or own.mean, run_.std or own.std)
    return () if line is None else (line,)


def native_size(images: ImageSet) -> int:
    """Default view size: the side of images in memory, 224 for files."""
    if isinstance(images, StreamedImages):
        return LARGE
    return int(images.images.shape[-1])  # type: ignore[attr-defined]


def encoder_facts(parts: Parts) -> dict[str, Any]:
    """Facts to rebuild the exported encoder and prepare its images."""
    words = parts.settings.flat()
    names = ("method", "backbone", "width", "stem", "size", *VIT_SHAPE)
    return {
        **{name: words[name] for name in names},
        "color_space": parts.module.method.color_space,
        "mean": list(parts.train.mean),
        "std": list(parts.train.std),
        "range": parts.settings.run.limits,
    }


def headline(parts: Parts, recipes: list[str]) -> str:
    """The first lines of a run: data, mixture, encoder, device, recipe, folder, notes."""
    settings, module, machine = parts.settings, parts.module, parts.machine
    model, run_ = settings.model, settings.run
    millions = sum(p.numel() for p in module.method.backbone.parameters()) / 1e6
    count = settings.machine.processes
    device = f"{count} x {machine.device.type}" if count > 1 else machine.device.type
    lines = [
        f"{run_.method} on {shown(run_.data)}: {len(parts.train):,} images {parts.where}, views of "
        f"{run_.size} px, batches of {run_.batch_size}, {counted(run_.epochs, 'epoch')} "
        f"({counted(module.total_steps, 'step')})",
        f"mixture: {settings.mixture.name}   encoder: {model.backbone}, width {model.width:g}, "
        f"{millions:.1f} M parameters   device: {device}, {machine.precision}"
        f"{', channels last' if machine.channels_last else ''}"
        f"{', sharded (fsdp)' if settings.machine.strategy == 'fsdp' else ''}"
        f"{', ' + parts.threads if parts.threads else ''}",
    ]
    if recipes:
        lines.append(f"recipe: {' < '.join(recipes)}   run folder: {shown(settings.folder)}")
    else:
        lines.append(f"run folder: {shown(settings.folder)}")
    return "\n".join([*lines, *parts.notes])
