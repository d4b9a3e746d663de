"""Names of trained weights of other packages."""

from __future__ import annotations

__all__ = ["TIMM", "TORCHVISION", "is_name"]

TIMM, TORCHVISION = "timm:", "torchvision:"


def is_name(weights: str) -> bool:
    """Whether these are weights of timm or torchvision by name, and not a path."""
    return weights.startswith((TIMM, TORCHVISION))
