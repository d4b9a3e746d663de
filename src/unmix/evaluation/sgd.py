"""Training of linear classifiers by the published protocols, on a frozen encoder."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, MultiStepLR

from unmix.evaluation.features import Encode, encode_batch, evaluating
from unmix.evaluation.metrics import accuracy, check_labeled
from unmix.evaluation.protocol import Batches, Prediction, Protocol, Task
from unmix.evaluation.published import SGDSettings
from unmix.evaluation.selection import DECAYS, RATES, best, held_out

__all__ = ["SGDProbe", "quiet_lightning", "train_classifier"]


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
            if settings.start == "normal":
                self.fc.weight.normal_(0.0, 0.01, generator=generator)
                self.fc.bias.zero_()
            else:
                bound = features**-0.5
                self.fc.weight.uniform_(-bound, bound, generator=generator)
                self.fc.bias.uniform_(-bound, bound, generator=generator)

    def train_dataloader(self) -> Iterable[tuple[Tensor, Tensor]]:
        return _Epochs(self)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        features, labels = batch
        return cross_entropy(self.fc(features), labels)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        settings, parameters = self.settings, self.parameters()
        optimizer: Optimizer
        if settings.optimizer == "adam":
            optimizer = Adam(parameters, settings.lr, weight_decay=settings.weight_decay)
        else:
            optimizer = SGD(
                parameters, settings.lr, momentum=0.9, weight_decay=settings.weight_decay
            )
        return [optimizer], [_schedule(settings, optimizer)]


def _schedule(settings: SGDSettings, optimizer: Optimizer) -> LRScheduler:
    """How the rate falls from epoch to epoch."""
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, settings.epochs)
    if settings.schedule == "exponential":
        factor = (settings.final_lr / settings.lr) ** (1 / settings.epochs)
        return ExponentialLR(optimizer, factor)
    return MultiStepLR(optimizer, list(settings.milestones), settings.gamma)


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

    Weights start as the settings say, N(0, 0.01) and biases of zero in most. The published scripts
    test after every epoch and report the best; here the last epoch counts, so that nothing
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
    with quiet_lightning(), evaluating(encode):
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

    trained = True

    def __init__(self, published: Callable[[str, str, float], SGDSettings]) -> None:
        self.published = published
        self.needs_images = published("", "RGB", 1.0).augmentation is not None

    def settings(self, task: Task) -> SGDSettings:
        """The published settings, with what the task has of its own."""
        images = task.images
        if images is None:
            return self.published("", "RGB", 1.0)
        settings = self.published(images.data, images.color_space, images.width)
        if images.lr is not None:
            settings = replace(settings, lr=images.lr)
        if images.weight_decay is not None:
            settings = replace(settings, weight_decay=images.weight_decay)
        return settings if images.epochs is None else settings.shortened(images.epochs)

    def predict(self, task: Task) -> Prediction:
        """Predict the classes of the test images."""
        assert task.test.labels is not None
        settings, chosen = self.settings(task), {}
        if task.images is not None and task.images.select:
            settings = self._selected(task, settings)
            chosen = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        found = self._trained(task, settings, None, task.test.features, task.test.labels)
        details = dict(found.details)
        if task.images is not None and task.images.weight_decay is not None:
            details["weight_decay"] = settings.weight_decay
        if not chosen:
            return replace(found, details=details)
        del details["lr"]
        return replace(found, details={**details, "selected": ", ".join(chosen), "chosen": chosen})

    def _selected(self, task: Task, settings: SGDSettings) -> SGDSettings:
        """Rate, then weight decay, by the accuracy on held-out training images."""
        train = task.train
        assert train.labels is not None
        unseen = held_out(train.labels, task.generator)
        features, labels = train.features[unseen], train.labels[unseen]

        def score(candidate: SGDSettings) -> float:
            found = self._trained(task, candidate, ~unseen, features, labels)
            return float((found.ranking[:, 0] == labels).double().mean())

        rates = [replace(settings, lr=settings.lr * factor) for factor in RATES]
        settings, reached = best(rates, score)
        decays = [replace(settings, weight_decay=d) for d in DECAYS if d != settings.weight_decay]
        return best([settings, *decays], score, reached)[0]

    def _trained(
        self,
        task: Task,
        settings: SGDSettings,
        some: Tensor | None,
        features: Tensor,
        labels: Tensor,
    ) -> Prediction:
        """Train on the training images, or on some of them, and predict the given features.

        Args:
            task: Features and images.
            settings: Of the classifier.
            some: Which of `task.train` to train on, bool `(N,)`; None for all.
            features: To predict, `(M, D)`.
            labels: Their classes.
        """
        images = task.images
        # A state of the generator for each training, so that candidates start from the same one.
        generator = torch.Generator()
        generator.set_state(task.generator.get_state())
        if self.needs_images:
            assert images is not None
            index = None if some is None else task.train.index[some]
            encode, dtype = images.encode, images.dtype
            batches = images.batches(settings.views, settings.batch_size, index)
        else:
            encode, dtype = _as_they_are, None
            batches = _feature_batches(task, settings.batch_size, some, generator)
        return _predict(
            settings, encode, batches, features, labels, classes=task.classes,
            generator=generator, device=task.device or "cpu", dtype=dtype, epochs=None,
            progress=None if images is None else images.progress,
        )  # fmt: skip


def _as_they_are(features: Tensor) -> Tensor:
    return features


def _feature_batches(
    task: Task, batch_size: int, some: Tensor | None, generator: torch.Generator
) -> Batches:
    """The features of the training images, shuffled anew each epoch."""
    features, labels = task.train.features, task.train.labels
    assert labels is not None
    if some is not None:
        features, labels = features[some], labels[some]

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(len(features), generator=generator).split(batch_size):
            yield features[index], labels[index]

    return batches


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
def quiet_lightning() -> Iterator[None]:
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
