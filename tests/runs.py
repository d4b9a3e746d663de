"""Settings of runs that take a second: tests add what they are about."""

from __future__ import annotations

from typing import Any

TINY_RUN: dict[str, Any] = {
    "backbone": "resnet10", "width": 0.125, "size": 8, "epochs": 1, "knn_every": 0,
    "device": "cpu", "precision": "32", "logger": "none", "workers": 0,
}  # fmt: skip
"""Of any method, on any data."""

MOCO_RUN: dict[str, Any] = {
    **TINY_RUN, "method": "moco", "data": "digits", "limit": 100, "batch_size": 50,
    "queue_size": 50, "bn_splits": 1,
}  # fmt: skip
"""Of MoCo, on digits."""
