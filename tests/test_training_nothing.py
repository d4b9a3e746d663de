"""A run that would train nothing is refused; what begins an epoch does not need its first batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unmix.config import Settings
from unmix.errors import UserError
from unmix.methods import DeepClusterV2, Progress
from unmix.training import pretrain
from unmix.training.run.parts import build_parts

TINY: dict[str, Any] = {
    "data": "digits", "backbone": "resnet10", "width": 0.125, "size": 8, "batch_size": 16,
    "device": "cpu", "precision": "32",
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"method": "moco", "limit": 3, "unmix": True, "unmix_pairing": "halves",
             "bn_splits": 1, "queue_size": 16},
            "--data: 3 training images make no batch.*at least 4",
        ),
        ({"method": "wmse", "limit": 10}, "data: 10 training images fill no batch of the 65"),
        ({"method": "wmse", "limit": 10, "epsilon": 0.01}, None),
    ],
)  # fmt: skip
def test_a_run_of_no_steps_is_refused_before_it_begins(words: Any, message: str | None) -> None:
    settings = Settings.of({**TINY, **words})
    if message is None:
        assert build_parts(settings).module.total_steps > 0
        return
    with pytest.raises(UserError, match=message):
        build_parts(settings)


class Backbone(nn.Flatten):
    feature_dim = 4


def test_an_epoch_whose_first_batch_is_broken_is_clustered_with_the_next() -> None:
    """And once: also where the run is stopped and resumed within the epoch."""

    def method() -> DeepClusterV2:
        return DeepClusterV2(Backbone(), 8, dim=3, hidden=4, prototypes=(2,))  # type: ignore[arg-type]

    first = method()
    first.memory.copy_(torch.randn(2, 8, 3))
    clusterings: list[int] = []
    first.cluster = lambda generator: clusterings.append(1)  # type: ignore[method-assign, assignment]
    for step in (0, 1, 2, 3, 5, 6, 7):  # epochs of 4 steps; the first batch of the second is broken
        first.begin_step(Progress(step, 12, 4))
    assert len(clusterings) == 1
    resumed = method()
    resumed.load_state_dict(first.state_dict())
    resumed.cluster = first.cluster  # type: ignore[method-assign]
    resumed.begin_step(Progress(7, 12, 4))
    assert len(clusterings) == 1
    resumed.begin_step(Progress(8, 12, 4))
    assert len(clusterings) == 2


def test_a_first_schedule_of_one_epoch_is_no_run_of_one_epoch(tmp_path: Path) -> None:
    """`--restarts 1` was refused as `--epochs 1` is, which trains nothing."""
    words = {
        **TINY, "method": "deepclusterv2", "prototypes": [2], "limit": 16, "batch_size": 8,
        "hidden": 8, "dim": 8, "evaluate": False, "knn_every": 0, "logger": "none", "workers": 0,
    }  # fmt: skip
    found = pretrain(**words, epochs=2, restarts=[1], run=str(tmp_path / "restarts"))
    assert found.training["steps"] == 4
    with pytest.raises(UserError, match="epochs: 1 trains nothing with deepclusterv2"):
        pretrain(**words, epochs=1, run=str(tmp_path / "one"))
