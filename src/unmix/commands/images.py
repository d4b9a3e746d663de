"""The images that a command looks at with a finished encoder: of any data, labeled or not."""

from __future__ import annotations

from dataclasses import replace

from unmix.commands.columns import with_columns
from unmix.commands.finished import FinishedRun, Say
from unmix.data import ImageSet
from unmix.data.columns import Columns
from unmix.data.folder import NOTHING_TO_SCALE
from unmix.errors import UserError, check_choice
from unmix.training.run.data_record import check_there, located_data, own_split, same_place
from unmix.training.run.parts import load_split

__all__ = ["SPLITS", "image_sets"]

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
    """Load the images of a data set, as the run reads them.

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
    chosen, elsewhere = with_columns(chosen, columns, elsewhere)
    if split == "test":
        return [load_split(chosen, "test", elsewhere=elsewhere)]
    train = load_split(chosen, "train", elsewhere=elsewhere)
    for note in train.notes:
        if note != NOTHING_TO_SCALE:  # the range is the encoder's, not a flag of this command
            say(note)
    if split == "train":
        return [train]
    try:
        return [train, load_split(chosen, "test", elsewhere=elsewhere)]
    except UserError as error:
        # Images without classes need no test images.
        if train.labels is not None:
            say(f"note: only the training images: {error}")
        return [train]
