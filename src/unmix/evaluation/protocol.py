"""The interface of evaluation protocols."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unmix.evaluation.features import Encode, LabeledFeatures
from unmix.views import ViewSettings

__all__ = ["AugmentedImages", "Batches", "Measurement", "Prediction", "Protocol", "Task"]

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""From an epoch, counted from 0, to its augmented images `(n, C, H, W)` and labels `(n,)`."""


@dataclass(frozen=True)
class Prediction:
    """The predictions of a protocol for the test images.

    Attributes:
        ranking: Classes of each test image, best first, int64 `(M, K)`; five are enough. -1 where
            there is no further prediction.
        details: The settings that another evaluation must have in common with this one to be
            compared with it, and what is worth knowing of it; plain numbers and strings.
    """

    ranking: Tensor
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """The result of a protocol.

    Attributes:
        row: A row of `results.json`, without its epoch: accuracies in percent and details.
        correct: Whether each test image was predicted correctly, bool `(M,)`, on the CPU.
        index: Indices of the images in the test split, int64 `(M,)`.
    """

    row: dict[str, Any]
    correct: Tensor
    index: Tensor


class Protocol(ABC):
    """A way to evaluate a frozen encoder. Add a subclass to `unmix.evaluation.registry`.

    Attributes:
        needs_images: Whether a classifier is trained on augmented images, those of `task.images`.
        trained: Whether there are a number of epochs, a learning rate and a weight decay that a
            user may choose.
    """

    needs_images: bool = False
    trained: bool = False

    @abstractmethod
    def predict(self, task: Task) -> Prediction:
        """Predict the classes of the test images."""


@dataclass(frozen=True)
class AugmentedImages:
    """The training images of a task, for protocols that train on augmented images.

    Attributes:
        encode: Prepared images `(n, C, H, W)` to features `(n, D)`; frozen.
        batches: From the settings of the augmentation, a batch size and the indices of the images
            (None for all) to the batches of an epoch.
        count: Number of training images.
        data: Name of the data set.
        color_space: "RGB", "Lab" or "YCbCr"; what the encoder sees.
        width: Width of the encoder.
        dtype: Type for autocast while encoding.
        epochs: Of the classifier, instead of the published number.
        lr: Learning rate of the classifier, instead of the published one.
        weight_decay: Of the classifier, instead of the published one.
        select: Whether rate and weight decay are chosen on held-out training images.
        progress: Called with the epochs of the classifier that are done, and their number.
    """

    encode: Encode
    batches: Callable[[ViewSettings, int, Tensor | None], Batches]
    count: int
    data: str
    color_space: str = "RGB"
    width: float = 1.0
    dtype: torch.dtype | None = None
    epochs: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    select: bool = False
    progress: Callable[[int, int], None] | None = None


class Task:
    """What a protocol may use: features, which are encoded when they are first read, and images.

    Args:
        train: Gives the features and labels of the training images.
        test: Gives those of the test images.
        classes: Number of classes.
        generator: CPU generator of all random numbers.
        device: Where to compute.
        k: Neighbors that vote in the kNN.
        temperature: T of their weights.
        select: Whether both are chosen on held-out training images.
        images: The training images themselves, if the caller has them.
    """

    def __init__(
        self,
        train: Callable[[], LabeledFeatures],
        test: Callable[[], LabeledFeatures],
        classes: int,
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
        k: int = 200,
        temperature: float = 0.1,
        select: bool = False,
        images: AugmentedImages | None = None,
    ) -> None:
        self._train, self._test = train, test
        self.classes, self.generator, self.device = classes, generator, device
        self.k, self.temperature, self.images = k, temperature, images
        self.select = select

    @cached_property
    def train(self) -> LabeledFeatures:
        """Features and labels of the training images."""
        return self._train()

    @cached_property
    def test(self) -> LabeledFeatures:
        """Features and labels of the test images."""
        return self._test()

    @property
    def splits(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training features, training labels, test features and test labels."""
        assert self.train.labels is not None
        assert self.test.labels is not None
        return self.train.features, self.train.labels, self.test.features, self.test.labels

    @property
    def float64_device(self) -> torch.device | str | None:
        """`device`, unless it has no float64 (mps); then None, which is the features' own."""
        mps = self.device is not None and torch.device(self.device).type == "mps"
        return None if mps else self.device
