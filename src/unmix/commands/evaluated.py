"""What an evaluation is of: the images, where they are, and the encoder after some epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from unmix.config import RunSettings
from unmix.data import ImageSet
from unmix.data.columns import Columns
from unmix.data.fingerprint import fingerprint
from unmix.training.run.data_record import own_split

__all__ = ["Splits", "Subject", "placed"]


@dataclass(frozen=True)
class Splits:
    """The labeled images of an evaluation.

    Attributes:
        train: Images to fit classifiers on.
        test: Images to predict.
        labels: Classes of the training images, int64 (N,).
        classes: Their names.
        transfer: Name of the data set if it is not the pretraining's, else None.
        note: A line for the user about the data, or None.
        parts: The folders and columns that were given and are not the run's own, as
            `{"test_folder": "ood"}`.
    """

    train: ImageSet
    test: ImageSet
    labels: Tensor
    classes: tuple[str, ...]
    transfer: str | None
    note: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def train_digest(self) -> str:
        """Which training images they are; sizes of files are asked for once."""
        return fingerprint(self.train).digest

    @cached_property
    def test_digest(self) -> str:
        """Likewise the test images."""
        return fingerprint(self.test).digest

    @property
    def named(self) -> dict[str, str]:
        """Fields of a row of `results.json`: which images, if not those of the run itself."""
        data = {} if self.transfer is None else {"data": self.transfer}
        return {**data, **self.parts}


@dataclass(frozen=True)
class Subject:
    """The encoder that is evaluated, after some epochs of pretraining.

    Attributes:
        encode: Maps prepared images (N, 3, size, size) to features (N, D).
        epoch: Completed epochs of pretraining; None if unknown.
        features: "backbone" or "projector".
        layer: Layer of the backbone; None for its pooled features.
    """

    encode: Callable[[Tensor], Tensor]
    epoch: int | None
    features: str = "backbone"
    layer: str | None = None

    @property
    def of(self) -> dict[str, Any]:
        """Fields of a row of `results.json`: the epoch, and which features they are."""
        return {
            **({} if self.epoch is None else {"epoch": self.epoch}),
            "features": self.features,
            **({} if self.layer is None else {"layer": self.layer}),
        }


def placed(
    own: RunSettings,
    name: str,
    data_dir: str | None,
    folders: Mapping[str, str | None],
    columns: Columns,
    elsewhere: bool,
) -> tuple[RunSettings, dict[str, str]]:
    """A run's settings with the place of data, and the folders and columns that are not its usual.

    Args:
        own: The run's own settings.
        name: Name or folder of the data.
        data_dir: Folder of its files; by default the run's, where the data is in its place.
        folders: `train_folder` and `test_folder`; by default the run's, even if its data was moved.
        columns: Likewise of a list or table.
        elsewhere: Whether the data is in another place than the run's.
    """
    usual = {key: own_split(name, getattr(own, key), elsewhere) for key in folders}
    train, test = (folders[key] or usual[key] for key in ("train_folder", "test_folder"))
    if data_dir is None and not elsewhere:
        data_dir = own.data_dir
    chosen = replace(
        own, data=name, data_dir=data_dir, limit=None, train_folder=train, test_folder=test
    )
    given = dict(folders)
    for column in ("image", "label", "split"):
        key = f"{column}_column"
        usual[key] = None if elsewhere else getattr(own, key)
        given[key] = getattr(columns, column)
    return chosen, {key: word for key, word in given.items() if word and word != usual[key]}
