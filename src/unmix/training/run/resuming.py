"""Whether a run may go on with the data that is there now."""

from __future__ import annotations

from collections.abc import Callable

from unmix.config import Settings
from unmix.errors import UserError
from unmix.methods import method_class
from unmix.training.run.data_record import DataRecord
from unmix.training.run.folder import RunFolder

__all__ = ["go_on_with"]


def go_on_with(
    folder: RunFolder, settings: Settings, now: DataRecord, say: Callable[[str], None]
) -> DataRecord:
    """Compare a run's data with what is there now, and record that, and where it lies.

    Args:
        folder: Of the run that goes on.
        settings: With the paths where the data lies now.
        now: What was found there, first the split that is trained on.
        say: Prints a line.

    Returns:
        The record that was written.

    Raises:
        UserError: if the images are others, and the method keeps something of each of them.
    """
    record = DataRecord.read(folder.path)
    begun = folder.has_checkpoint
    if record is None:
        if begun:
            say(
                "note: this run was begun by a version that kept no fingerprint of its data; it is "
                "taken to be what is there now"
            )
        record = now
    elif begun and (clause := record.difference(now.splits)) is not None:
        trained = next(iter(now.splits))
        others = record.difference({trained: now.splits[trained]}) is not None
        method = settings.run.method
        if others and method_class(method).per_image:
            flag = "--data" if settings.run.data_dir is None else "--data_dir"
            raise UserError(
                f"{flag}: {clause}; {method} keeps something of every image by its number, so the "
                f"run cannot go on with other images. Give {flag} with the folder that holds the "
                "run's, or another --run."
            )
        say(f"warning: {clause}; going on with the data as it is now")
        record = record.replaced(now, clause)
    else:
        record = DataRecord(record.typed, now.splits, record.earlier)
    record.write(folder.path)
    words, run = folder.words(), settings.run
    if (words.get("data"), words.get("data_dir")) != (run.data, run.data_dir):
        folder.move_data(run.data, run.data_dir)
    return record
