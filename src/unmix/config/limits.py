"""Sizes that no machine has: refused before memory is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmix.errors import UserError, check_number

__all__ = ["check_sizes"]

# A hundred times what anyone has published, or more.
_MOST: dict[str, float] = {
    "width": 64, "size": 16_384, "second_size": 16_384, "local_size": 16_384, "dim": 2**20,
    "hidden": 2**20, "bottleneck": 2**20, "batch_size": 2**24, "queue_size": 2**28,
    "workers": 4_096, "threads": 4_096, "devices": 4_096, "nodes": 65_536, "local_crops": 1_024,
}  # fmt: skip
_MOST_BYTES = 2**42


def check_sizes(settings: Mapping[str, Any]) -> None:
    """Check the sizes among flat settings.

    Raises:
        UserError: if one, or the pixels of a batch, or a queue, is more than any machine has.
    """
    for name, most in _MOST.items():
        value = settings.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_number(name, value, at_most=most)
    batch, size = settings.get("batch_size") or 0, settings.get("size") or 0
    needed = batch * 3 * size**2 * 4
    if needed > _MOST_BYTES:
        raise UserError(
            f"{batch:,} images of `size={size}` take {needed / 2**40:,.0f} TiB for one view of a "
            "batch; give fewer or smaller ones.",
            parameter="batch_size",
        )
