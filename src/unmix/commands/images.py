"""The images that a command looks at with a finished encoder: of any data, labeled or not."""

from __future__ import annotations

from dataclasses import replace

from unmix.commands.columns import with_columns
from unmix.commands.finished import FinishedRun, Say
from unmix.data import ImageSet, StreamedImages
from unmix.data.bit_depth import Range
from unmix.data.columns import Columns
from unmix.data.fingerprint import Fingerprint
from unmix.data.folder import NOTHING_TO_SCALE
from unmix.errors import UserError, check_choice
from unmix.training.run.data_record import check_there, located_data, own_split, same_place
from unmix.training.run.parts import load_split

__all__ = ["SPLITS", "image_sets", "range_of"]

SPLITS = ("all", "train", "test")


def image_sets(
    finished: FinishedRun,
    split: str,
    data: str | None,
    data_dir: str | None,
    train_folder: str | None,
    test_folder: str | None,
    columns: Columns,
    say: Say,
) -> list[ImageSet]:
    """Load the images of a data set, as the run reads them, and say where they are not its own.

    Args:
        finished: The run, or an encoder file alone, which needs `data`.
        split: "train", "test", or "all": the training images, then the test images if there are
            any.
        data: Name or folder; by default the data of the pretraining.
        data_dir: Folder of its files.
        train_folder: Folder of the training images within it.
        test_folder: Folder of the test images within it.
        columns: Columns of a list or table that are given.
        say: Prints a line.

    Raises:
        UserError: if the data cannot be read.
    """
    check_choice("split", split, SPLITS)
    own = finished.settings.run
    if data is None:
        if finished.alone:
            raise UserError(
                "an encoder file does not say what it was trained on; give the images.",
                parameter="data",
            )
        check_there(own.data)
    elsewhere = finished.alone or (data is not None and not same_place(data, own.data))
    name = own.data if data is None else located_data(data)
    if not elsewhere:
        train_folder = train_folder or own_split(name, own.train_folder)
        test_folder = test_folder or own_split(name, own.test_folder)
    limits = finished.encoder.range or own.limits
    chosen = replace(
        own, data=name, data_dir=data_dir if elsewhere else data_dir or own.data_dir, limit=None,
        train_folder=train_folder, test_folder=test_folder,
        range=limits, bit_depth=None,
    )  # fmt: skip
    chosen, other = with_columns(chosen, columns, elsewhere)
    # Fingerprints take time, and say nothing of other data.
    record = None if elsewhere else finished.record
    seen: dict[str, Fingerprint] | None = None if record is None else {}
    sets = []
    if split != "test":
        train = load_split(chosen, "train", seen, elsewhere=other)
        sets.append(train)
        for note in train.notes:
            if note != NOTHING_TO_SCALE:  # the range is the encoder's, not a flag of this command
                say(note)
        if not elsewhere and own.limit is not None and own.limit < len(train):
            say(
                f"note: these are all {len(train):,} training images; the run was trained with "
                f"--limit {own.limit}"
            )
    if split != "train":
        try:
            sets.append(load_split(chosen, "test", seen, elsewhere=other))
        except UserError as error:
            if split == "test":
                raise
            # Images without classes need no test images.
            if train.labels is not None:
                say(f"note: only the training images: {error}")
    if record is not None and seen and (clause := record.difference(seen)) is not None:
        say(f"note: {clause}; the splits are those of the data as it is now")
    return sets


def range_of(finished: FinishedRun, images: ImageSet) -> Range | None:
    """The values that become 0 and 255 in images beside those of a set; see `Decoding.range`.

    An encoder that has no range of its own takes that of the data.
    """
    measured = images.decoding.range if isinstance(images, StreamedImages) else None
    return measured or finished.encoder.range or finished.settings.run.limits
