"""Resuming with data, or on a machine, that may have changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from unmix.config import MachineSettings, Settings
from unmix.data.fingerprint import Fingerprint
from unmix.display import counted
from unmix.errors import UserError
from unmix.files import as_path
from unmix.methods import method_class
from unmix.names import shown
from unmix.training.run.data_record import DataRecord, same_place
from unmix.training.run.folder import RunFolder
from unmix.training.run.given import Given
from unmix.training.run.parts import Parts, fingerprints

__all__ = ["check_complete", "check_data", "check_devices", "check_machine"]


def check_complete(
    folder: RunFolder, settings: Settings, given: Given | None, say: Callable[[str], None]
) -> None:
    """Check that a complete run is of the images that are given, unless they are in its place.

    Args:
        folder: Folder of the run.
        settings: What is given, with absolute paths to the data.
        given: Images given as Python objects.
        say: Prints a line, if the images of a folder have changed in place.

    Raises:
        UserError: if it is of others, whose results would be taken for those of the given ones.
    """
    words, now = folder.words(), settings.flat()
    here = all(same_place(now[name], words.get(name)) for name in ("data", "data_dir"))
    record = DataRecord.read(folder.path)
    if record is None:
        return
    if here and given is None:
        # A run can be asked for its results without its images; of a folder a list is cheap.
        with suppress(UserError):
            changed = as_path(settings.run.data).is_dir() and record.difference(
                fingerprints(settings.run)
            )
            if changed:
                say(f"note: {changed}; to train on the images as they are now, give another --run")
        return
    seen = fingerprints(settings.run) if given is None else given.fingerprints()
    if (clause := record.difference(seen)) is not None:
        raise UserError(
            f"{shown(folder.path)} holds a complete run on other images: {clause}. Give another "
            "one.",
            parameter="run",
        )


def check_data(
    folder: RunFolder, parts: Parts, now: DataRecord, say: Callable[[str], None]
) -> tuple[DataRecord, bool]:
    """Compare a run's data with the present data, and record the present one.

    Args:
        folder: Folder of the run that is resumed.
        parts: Its components, with the present data and the present paths to them.
        now: Record of the present data, the training images first.
        say: Prints a line.

    Returns:
        The record that was written, and whether the images are the same.

    Raises:
        UserError: if the images differ, and the method stores something per image, or an epoch
            would have another number of steps.
    """
    settings = parts.settings
    record = DataRecord.read(folder.path)
    then_earlier = () if record is None else record.earlier
    begun = folder.has_checkpoint
    if record is None:
        if begun:
            say(
                "note: this run was started by a version that stored no fingerprint of its data; "
                "it is assumed to be unchanged"
            )
        record = now
    elif begun and (clause := record.difference(now.splits, numbered=True)) is not None:
        trained = next(iter(now.splits))
        own = {trained: now.splits[trained]}
        others = record.difference(own, numbered=True) is not None
        method = settings.run.method
        if others and method_class(method).per_image:
            flag = "--data" if settings.run.data_dir is None else "--data_dir"
            raise UserError(
                f"{flag}: {clause}; {method} stores something per image, by its id, so the "
                f"run cannot be resumed with other images. Give {flag} with the folder that holds "
                "the run's, or another --run."
            )
        if others:
            _check_steps(parts, record.splits[trained], now.splits[trained], clause)
        say(f"warning: {clause}; resuming with the data as it is now")
        record = record.replaced(now, clause)
    else:
        record = DataRecord(record.typed, now.splits, record.earlier)
    record.write(folder.path)
    words, run = folder.words(), settings.run
    same = record.earlier == then_earlier
    there, here = ((each.get("data"), each.get("data_dir")) for each in (words, settings.flat()))
    if there != here:
        if begun and same:
            place = run.data if run.data_dir is None else run.data_dir
            say(f"data: the same images, now in {shown(place)}; the run goes on exactly")
        folder.move_data(run.data, run.data_dir)
    return record, same


def _check_steps(parts: Parts, then: Fingerprint, now: Fingerprint, clause: str) -> None:
    """Check that an epoch has as many steps with the present data as with the run's.

    Raises:
        UserError: if not: neither the place in it nor the schedules would be the run's.
    """
    order, limit = parts.module.order, parts.settings.run.limit
    count = then.read if limit is None else min(limit, then.read)
    if order.n not in (now.read, limit) or (before := order.length_with(count)) == len(order):
        return
    flag = "data" if parts.settings.run.data_dir is None else "data_dir"
    raise UserError(
        f"{clause}: an epoch of the run has {counted(before, 'step')}, and with the data as it is "
        f"now {len(order):,}, so neither the place in it nor the schedules would be the run's. "
        f"Give `{flag}` with the folder that holds the run's images, or another `run`.",
        parameter=flag,
    )


def check_devices(folder: RunFolder, parts: Parts) -> None:
    """Check that an epoch has as many steps as before with the present number of devices.

    Raises:
        UserError: if not: neither the place in it nor the schedules would be the run's.
    """
    then, now = folder.settings().machine, parts.settings.machine
    order = parts.module.order
    before = order.of_processes(then.processes)
    if folder.has_checkpoint and len(before) != len(order):
        rest = order.n % order.batch_size
        raise UserError(
            f"an epoch of the run has {len(before):,} steps with {_devices(then.processes)}, but "
            f"{len(order):,} with {now.processes}, whose shares of its last batch, of {rest}, are "
            "unlike; resume it with as many as before, or with a number that divides it.",
            parameter="devices",
        )


def check_machine(
    folder: RunFolder, parts: Parts, same_images: bool, say: Callable[[str], None]
) -> None:
    """Say what goes on exactly on another machine and what does not, and record the present one.

    Another number of workers changes nothing, and is not mentioned.

    Args:
        folder: Folder of the run that is resumed.
        parts: Its components on this machine.
        same_images: Whether the training images and their numbers are those of the run.
        say: Prints a line.
    """
    then, now = folder.settings().machine, parts.settings.machine
    changed, lost = _changes(then, now)
    if not changed:
        return
    if folder.has_checkpoint:
        images, less = _images_of_steps(parts, then.processes) if same_images else ("", [])
        say(
            f"note: resuming with {', '.join(changed)}: weights, optimizer, memories, schedules"
            f"{images} go on exactly; from here on {'; '.join([*less, *lost])}"
        )
    names = (
        "device", "devices", "nodes", "precision", "resident", "strategy", "threads", "accumulate",
        "checkpoint_activations",
    )  # fmt: skip
    folder.change(**{name: getattr(now, name) for name in names})


def _images_of_steps(parts: Parts, processes: int) -> tuple[str, list[str]]:
    """What is said of the images of each step, and of a last one that has others than before.

    Processes have equally many, and with a rule that pairs them an even number.

    Args:
        parts: Of the run on this machine.
        processes: How many it had before.
    """
    order, unit = parts.module.order, 2 if parts.module.even else 1
    last, before = (
        each.last_share() // unit * unit * each.processes
        for each in (order, order.of_processes(processes))
    )
    if last == before:
        return " and the images of each step", []
    less = f"the last step of an epoch has {counted(last, 'image')} instead of {before}"
    return " and the images of all other steps", [less]


def _changes(then: MachineSettings, now: MachineSettings) -> tuple[list[str], list[str]]:
    """What differs between two machines, and what is therefore not as it would have been."""
    changed, lost = [], []
    if then.processes != now.processes:
        changed.append(f"{_devices(now.processes)} instead of {then.processes}")
        lost.append(
            "each device draws the crops and mixtures of its part of a batch, and batch norm sees "
            "that part unless it is synchronized"
        )
    if "auto" not in (then.precision, now.precision) and then.precision != now.precision:
        changed.append(f"precision {now.precision} instead of {then.precision}")
        lost.append(f"steps are computed in precision {now.precision}")
    if "auto" not in (then.resident, now.resident) and then.resident != now.resident:
        where = "on the device" if now.resident == "yes" else "decoded from files"
        changed.append(f"images {where}")
        lost.append("crops are drawn with other random numbers")
    if then.strategy != now.strategy:
        changed.append(f"strategy {now.strategy} instead of {then.strategy}")
        lost.append("the last digits of sums may differ")
    if "auto" not in (then.device, now.device) and then.device != now.device:
        changed.append(f"{now.device} instead of {then.device}")
        lost.append("the last digits of sums differ")
    if then.accumulate != now.accumulate:
        changed.append(f"{counted(now.accumulate, 'part')} of a batch instead of {then.accumulate}")
        lost.append(
            "what a loss, batch norm and mixtures take from other images of a batch is of other "
            "parts"
        )
    if then.checkpoint_activations != now.checkpoint_activations:
        word = "computed again" if now.checkpoint_activations else "kept"
        changed.append(f"activations {word} for the backward pass")
        lost.append("the last digits of sums may differ")
    if None not in (then.threads, now.threads) and then.threads != now.threads:
        changed.append(f"{now.threads} threads instead of {then.threads}")
        lost.append("the last digits of sums may differ")
    return changed, lost


def _devices(count: int) -> str:
    return counted(count, "device")
