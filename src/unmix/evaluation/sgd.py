"""The published linear protocols: SGD on a frozen encoder, the images augmented anew each epoch."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from unmix.errors import check_number
from unmix.evaluation.features import Encode, encode_batch, evaluating
from unmix.evaluation.metrics import accuracy, check_labeled
from unmix.evaluation.protocol import Batches, Prediction, Protocol, Task
from unmix.views import ViewSettings, preset

__all__ = ["SGDProbe", "SGDSettings", "cmc_settings", "moco_settings", "train_classifier"]


@dataclass(frozen=True)
class SGDSettings:
    """How a linear classifier is trained on a frozen encoder by SGD with momentum 0.9.

    Args:
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Learning rate at the start.
        milestones: Numbers of finished epochs after which the rate is multiplied by `gamma`.
        gamma: That factor.
        weight_decay: L2 penalty on weights and biases.
        augmentation: Name of a preset of `unmix.views`.
        crop_scale_min: Least share of the image's area in a random crop; replaces the preset's.
        source: Where it was published.

    Raises:
        UserError: if a number is out of range.
    """

    epochs: int
    batch_size: int
    lr: float
    milestones: tuple[int, ...]
    gamma: float
    weight_decay: float
    augmentation: str
    crop_scale_min: float
    source: str

    @property
    def views(self) -> ViewSettings:
        """The augmentation of the training images."""
        return replace(preset(self.augmentation), crop_scale_min=self.crop_scale_min)

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, at_least=1)
        check_number("batch_size", self.batch_size, at_least=1)
        check_number("lr", self.lr, above=0)

    def shortened(self, epochs: int) -> SGDSettings:
        """Return the settings with another number of epochs, the milestones moved in proportion.

        Raises:
            UserError: if `epochs` is less than 1.
        """
        moved = tuple(round(milestone * epochs / self.epochs) for milestone in self.milestones)
        return replace(self, epochs=epochs, milestones=moved)


def cmc_settings(data: str, color_space: str = "RGB", width: float = 1.0) -> SGDSettings:
    """Settings of CMC (arXiv 1906.05849), and of the code of image mixtures.

    60 epochs; for half-encoders (Lab, YCbCr) at learning rate 30, or 50 from width 2 on; for RGB
    encoders at 10 on ImageNet-100, 30 on ImageNet, and elsewhere 0.1, the default of the code.

    Args:
        data: Name of the data set, as "imagenet100" or "imagenet".
        color_space: "RGB", "Lab" or "YCbCr"; what the encoder sees.
        width: Width of the encoder.
    """
    if color_space == "RGB":
        lr = {"imagenet100": 10.0, "imagenet": 30.0}.get(data, 0.1)
        augmentation, source = "moco-v1", "eval_moco_ins.py, arXiv 1906.05849"
    else:
        lr = 50.0 if width >= 2 else 30.0
        augmentation, source = "cmc", "LinearProbing.py, arXiv 1906.05849"
    crop = 0.08 if data == "imagenet" else 0.2
    return SGDSettings(60, 256, lr, (30, 40, 50), 0.2, 0.0, augmentation, crop, source)


def moco_settings(data: str, color_space: str = "RGB", width: float = 1.0) -> SGDSettings:
    """Settings of MoCo (arXiv 1911.05722): 100 epochs at learning rate 30, whatever the encoder."""
    return SGDSettings(
        100, 256, 30.0, (60, 80), 0.1, 0.0, "cmc", 0.08, "main_lincls.py, arXiv 1911.05722"
    )


class _LinearClassifier(lightning.LightningModule):
    """A linear layer trained on features that are encoded batch by batch."""

    def __init__(
        self,
        settings: SGDSettings,
        batches: Batches,
        features: int,
        classes: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.batches = batches
        # Without using the global generator: the layer is created empty, then filled.
        self.fc = nn.utils.skip_init(nn.Linear, features, classes)
        with torch.no_grad():
            self.fc.weight.normal_(0.0, 0.01, generator=generator)
            self.fc.bias.zero_()

    def train_dataloader(self) -> Iterable[tuple[Tensor, Tensor]]:
        return _Epochs(self)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        features, labels = batch
        return cross_entropy(self.fc(features), labels)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        optimizer = SGD(
            self.parameters(),
            lr=self.settings.lr,
            momentum=0.9,
            weight_decay=self.settings.weight_decay,
        )
        schedule = MultiStepLR(optimizer, list(self.settings.milestones), self.settings.gamma)
        return [optimizer], [schedule]


class _Epochs:
    """The batches of the classifier's current epoch.

    Not a plain generator: Lightning may create an iterator twice and discard the first, with a
    batch fetched from it.
    """

    def __init__(self, classifier: _LinearClassifier) -> None:
        self.classifier = classifier

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.classifier.batches(self.classifier.current_epoch))


def train_classifier(
    settings: SGDSettings,
    encode: Encode,
    augmented_batches: Batches,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    epochs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Train a linear classifier as published, and evaluate it after the last epoch.

    Weights are initialized from N(0, 0.01) and biases to zero, as in both protocols. The published
    scripts test after every epoch and report the best; here the last epoch counts, so that nothing
    is selected on the test split.

    Args:
        settings: Published ones, or others.
        encode: As in `extract`; frozen, in evaluation mode.
        augmented_batches: From an epoch (from 0) to its images and labels, in batches of
            `settings.batch_size`.
        test_features: Features of the test images, not augmented, `(M, D)`.
        test_labels: int64 `(M,)`.
        classes: Number of classes.
        generator: CPU generator of the initial weights.
        device: Where to encode and train.
        dtype: Autocast dtype while encoding, as in `extract`.
        epochs: Another number of epochs, the milestones moved in proportion.
        progress: Called with the epochs that are done, and their number.

    Returns:
        "top1" and "top5" in percent, "epochs", "lr" and "seconds".

    Raises:
        UserError: if features and labels do not match, or `epochs` is less than 1.
    """
    prediction = _predict(
        settings, encode, augmented_batches, test_features, test_labels,
        classes=classes, generator=generator, device=device, dtype=dtype, epochs=epochs,
        progress=progress,
    )  # fmt: skip
    return {**accuracy(prediction.ranking, test_labels.cpu()), **prediction.details}


def _predict(
    settings: SGDSettings,
    encode: Encode,
    augmented_batches: Batches,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    generator: torch.Generator,
    device: torch.device | str,
    dtype: torch.dtype | None,
    epochs: int | None,
    progress: Callable[[int, int], None] | None,
) -> Prediction:
    started = time.perf_counter()
    check_labeled("test", test_features, test_labels, classes)
    device = torch.device(device)
    if epochs is not None:
        settings = settings.shortened(epochs)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if progress is not None:
            progress(epoch, settings.epochs)
        for images, labels in augmented_batches(epoch):
            # A clone made outside inference mode is a normal tensor, which autograd may save.
            yield encode_batch(encode, images, device, dtype).clone(), labels

    model = _LinearClassifier(settings, batches, test_features.shape[1], classes, generator)
    with _quiet(), evaluating(encode):
        _trainer(settings.epochs, device).fit(model)
    with torch.inference_mode():
        logits = model.fc.cpu()(test_features.cpu().float())
    ranking = logits.topk(min(5, classes), dim=1).indices
    details = {"epochs": settings.epochs, "lr": settings.lr}
    return Prediction(ranking, {**details, "seconds": time.perf_counter() - started})


class SGDProbe(Protocol):
    """A published linear protocol: the classifier of `train_classifier`.

    Args:
        published: From the data set, the color space and the width of the encoder to the settings.
    """

    needs_images: ClassVar[bool] = True

    def __init__(self, published: Callable[[str, str, float], SGDSettings]) -> None:
        self.published = published

    def predict(self, task: Task) -> Prediction:
        """Predict the classes of the test images."""
        images = task.images
        assert images is not None
        assert task.test.labels is not None
        settings = self.published(images.data, images.color_space, images.width)
        if images.lr is not None:
            settings = replace(settings, lr=images.lr)
        return _predict(
            settings, images.encode, images.batches(settings.views, settings.batch_size),
            task.test.features, task.test.labels,
            classes=task.classes, generator=task.generator, device=task.device or "cpu",
            dtype=images.dtype, epochs=images.epochs, progress=images.progress,
        )  # fmt: skip


def _trainer(epochs: int, device: torch.device) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Lightning's log messages and warnings."""
    logger = logging.getLogger("lightning.pytorch")
    children = [logger, logging.getLogger("lightning.pytorch.utilities.rank_zero")]
    levels = [child.level for child in children]
    for child in children:
        child.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for child, level in zip(children, levels, strict=True):
            child.setLevel(level)
