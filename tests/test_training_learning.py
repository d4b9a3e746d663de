"""Training teaches: the loss falls and neighbors agree more, on embedded photographs."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest

from unmix.config import Settings
from unmix.data import ImageSet
from unmix.evaluation import evaluate_features, split_features
from unmix.randomness import generator_for
from unmix.training.loading.loaders import build_loader
from unmix.training.run.parts import Parts, build_parts

SMALL: dict[str, Any] = {
    "data": "photos",
    "backbone": "resnet10",
    "width": 0.25,
    "size": 16,
    "batch_size": 25,
    "device": "cpu",
    "precision": "32",
}
ADAM: dict[str, Any] = {
    "optimizer": "adam", "lr": 3e-3, "weight_decay": 1e-6, "limit": 300, "epochs": 6,
}  # fmt: skip
# In so few steps a method without negatives learns from views that keep their colors only.
COLOURED: dict[str, Any] = {**ADAM, "jitter_p": 0.0, "gray_p": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "all4one": {
        **ADAM, "dim": 64, "hidden": 128, "predictor_hidden": 128, "queue_size": 100,
        "transformer_layers": 1, "encoder_momentum": 0.9, "limit": 200, "epochs": 6,
    },
    "barlow": {**ADAM, "dim": 128, "hidden": 128, "off_diagonal": 0.05, "epochs": 8},
    "byol": {**COLOURED, "dim": 64, "hidden": 128, "encoder_momentum": 0.9, "epochs": 8},
    "ibot": {
        **COLOURED, "backbone": "timm:vit_tiny_patch16_224", "width": 1.0, "patch": 4, "depth": 2,
        "dim": 64, "hidden": 64, "bottleneck": 32, "encoder_momentum": 0.9, "lr": 1e-3,
        "teacher_temperature": 0.04, "warmup_teacher_epochs": 0, "freeze_last_epochs": 0,
        "centering": "sinkhorn", "koleo": 0.1, "epochs": 12,
    },
    "lejepa": {**ADAM, "dim": 16, "hidden": 128, "slices": 64, "local_crops": 0},
    "mocov3": {**ADAM, "dim": 64, "hidden": 128, "encoder_momentum": 0.9},
    "nnbyol": {
        **COLOURED, "dim": 64, "hidden": 128, "encoder_momentum": 0.99, "queue_size": 800,
        "epochs": 8,
    },
    "nnclr": {
        **ADAM, "dim": 64, "hidden": 128, "predictor_hidden": 128, "queue_size": 100, "epochs": 14,
    },
    "ressl": {
        **ADAM, "dim": 64, "hidden": 128, "queue_size": 200, "encoder_momentum": 0.9,
        "second_jitter_p": 0.0, "second_gray_p": 0.0, "epochs": 14,
    },
    "simclr": {**ADAM, "lr": 1e-3, "dim": 64, "temperature": 0.2, "limit": 200, "epochs": 6},
    "simdino": {**ADAM, "dim": 32, "hidden": 128, "encoder_momentum": 0.9},
    "simsiam": {
        **COLOURED, "lr": 2e-3, "dim": 64, "hidden": 128, "layers": 2, "predictor_hidden": 64,
        "batch_size": 50, "limit": 800, "epochs": 6,
    },
    "tico": {**ADAM, "dim": 64, "hidden": 128, "encoder_momentum": 0.9},
    "vicreg": {**ADAM, "lr": 1e-3, "dim": 64, "hidden": 64, "limit": 200, "epochs": 10},
    "wmse": {**ADAM, "dim": 16, "hidden": 128, "batch_size": 50, "sub_batch": 50},
    "moco": {"queue_size": 50, "bn_splits": 1, "limit": 200, "epochs": 6},
    "densecl": {"queue_size": 50, "bn_splits": 1, "limit": 200, "epochs": 12},
    "insdis": {
        "negatives": 128, "contrast": "softmax", "optimizer": "adam", "lr": 1e-3,
        "limit": 150, "epochs": 6,
    },
    "cmc": {
        "negatives": 128, "contrast": "softmax", "lr": 0.03, "jitter_p": 0.0,
        "limit": 200, "epochs": 6,
    },
}  # fmt: skip


def trained(parts: Parts) -> float:
    """Train, and give the loss of the last epoch."""
    module = parts.module
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=module.epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, build_loader(module.images, module.views, module.order))
    return module.epoch_means()["loss"]


def knn(parts: Parts) -> float:
    """Top-1 accuracy in percent of 20 neighbors."""
    views = parts.module.views

    def features(images: ImageSet) -> Any:
        return split_features(parts.module.method.features, images, views.plain, views.size)

    assert parts.test is not None
    train, test = features(parts.labeled), features(parts.test.evenly(640))
    (measured,) = evaluate_features(train, test, 16, ("knn",), k=20, generator=generator_for(0))
    return measured.row["top1"]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_neighbors_agree_more_than_without_training(method: str) -> None:
    """Against the encoder as it starts, and against a run at a rate of next to nothing.

    That one fills the same queue or bank and settles the same batch-norm statistics, which alone
    lower the loss and raise the accuracy: three epochs are enough for both.
    """
    words = {"method": method, **SMALL, **METHODS[method]}
    untouched = knn(build_parts(Settings.of(words)))
    still = build_parts(Settings.of({**words, "lr": 1e-12, "epochs": 3}))
    still_loss = trained(still)
    learning = build_parts(Settings.of(words))
    assert trained(learning) < 0.97 * still_loss
    accuracy = knn(learning)
    assert accuracy > untouched + 6
    assert accuracy > knn(still) + 1
