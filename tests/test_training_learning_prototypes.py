"""Training teaches with SwAV, DINO, DeepCluster-v2 and PIRL, as in test_training_learning."""

from __future__ import annotations

from typing import Any

import pytest

from test_training_learning import SMALL, knn, trained
from unmix.config import Settings
from unmix.training.run.parts import build_parts

ADAM: dict[str, Any] = {"optimizer": "adam", "weight_decay": 1e-6, "limit": 200}
METHODS: dict[str, dict[str, Any]] = {
    "swav": {
        "hidden": 128, "prototypes": 30, "freeze_prototypes_steps": 10, "lr": 2e-3, "epochs": 8,
    },
    "dino": {
        "dim": 256, "hidden": 128, "bottleneck": 64, "encoder_momentum": 0.99, "head_bn": True,
        "center_momentum": 0.5, "lr": 3e-3, "epochs": 6,
    },
    "deepclusterv2": {"hidden": 128, "prototypes": (32, 32, 32), "lr": 2e-3, "epochs": 8},
    "pirl": {"negatives": 128, "lr": 1e-3, "epochs": 6},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_neighbors_agree_more_than_without_training(method: str) -> None:
    """Against the encoder as it starts, and against a run at a rate of next to nothing."""
    words = {"method": method, **SMALL, **ADAM, **METHODS[method]}
    untouched = knn(build_parts(Settings.of(words)))
    still = build_parts(Settings.of({**words, "lr": 1e-12, "epochs": 3}))
    still_loss = trained(still)
    learning = build_parts(Settings.of(words))
    assert trained(learning) < 0.97 * still_loss
    accuracy = knn(learning)
    assert accuracy > untouched + 6
    assert accuracy > knn(still) + 1
