"""What a row of `results.json` measures: on which images, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmix.names import shown

__all__ = ["OF_IMAGES", "measure_of", "of_other_images", "settings_of"]

# What comes out of a measurement; all else in a row says what was measured, and how.
_MEASURED = {
    "top1", "top5", "mean_per_class", "strength", "chosen", "seconds", "train_images",
    "test_images",
}  # fmt: skip
OF_IMAGES = (
    "data", "train_folder", "test_folder", "image_column", "label_column", "split_column",
)  # fmt: skip
"""Fields of a row that say on which images it was measured, if not on those of the run itself."""


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row measures, and how: `protocol`, `epoch`, `features`, `k`, ..."""
    return {key: value for key, value in row.items() if key not in _MEASURED}


def measure_of(protocol: str, details: Mapping[str, Any]) -> str:
    """What tables call an accuracy: its protocol, and what makes it one of another encoder.

    A layer's accuracy is not that of the whole encoder, and one of random weights is none of its
    training: "linear, layer conv1", "scratch-10%".

    Args:
        protocol: Of the row, as "linear" or "finetune-10% on digits".
        details: What else the row says.
    """
    if details.get("start") == "random":
        protocol = protocol.replace("finetune", "scratch", 1)
    layer = details.get("layer")
    return protocol if layer is None else f"{protocol}, layer {shown(str(layer))}"


def of_other_images(row: Mapping[str, Any]) -> bool:
    """Whether a row was measured on other images than the run's own, or on other parts of these."""
    return any(row.get(key) is not None for key in OF_IMAGES)
