"""Resuming with data that may have changed."""

from __future__ import annotations

from collections.abc import Callable

from unmix.config import Settings
from unmix.errors import UserError
from unmix.methods import method_class
from unmix.training.run.data_record import DataRecord
from unmix.training.run.folder import RunFolder

__all__ = ["check_data"]


def check_data(
    folder: RunFolder, settings: Settings, now: DataRecord, say: Callable[[str], None]
) -> DataRecord:
    """Compare a run's data with the present data, and record the present one.

    Args:
        folder: Folder of the run that is resumed.
        settings: Settings with the present paths to the data.
        now: Record of the present data, the training images first.
        say: Prints a line.

    Returns:
        The record that was written.

    Raises:
        UserError: if the images differ, and the method stores something per image.
    """
    record = DataRecord.read(folder.path)
    begun = folder.has_checkpoint
    if record is None:
        if begun:
            say(
                "note: this run was started by a version that stored no fingerprint of its data; "
                "it is assumed to be unchanged"
            )
        record = now
    elif begun and (clause := record.difference(now.splits)) is not None:
        trained = next(iter(now.splits))
        others = record.difference({trained: now.splits[trained]}) is not None
        method = settings.run.method
        if others and method_class(method).per_image:
            flag = "--data" if settings.run.data_dir is None else "--data_dir"
            raise UserError(
                f"{flag}: {clause}; {method} stores something per image, by its id, so the "
                f"run cannot be resumed with other images. Give {flag} with the folder that holds "
                "the run's, or another --run."
            )
        say(f"warning: {clause}; resuming with the data as it is now")
        record = record.replaced(now, clause)
    else:
        record = DataRecord(record.typed, now.splits, record.earlier)
    record.write(folder.path)
    words, run = folder.words(), settings.run
    if (words.get("data"), words.get("data_dir")) != (run.data, run.data_dir):
        folder.move_data(run.data, run.data_dir)
    return record
