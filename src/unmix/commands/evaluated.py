"""What an evaluation is of: the images, and the encoder after some epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from unmix.data import ImageSet
from unmix.data.fingerprint import fingerprint

__all__ = ["Splits", "Subject"]


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
