"""The order of a run's samples."""

from __future__ import annotations

from typing import Any

from unmix.config import RunSettings, Settings
from unmix.data import ImageSet
from unmix.data.streams import ShardImages
from unmix.errors import UserError
from unmix.training.loading.loaders import EpochOrder
from unmix.training.loading.shard_order import ShardOrder, side_by_side

__all__ = ["interleaved", "order_of"]


def interleaved(images: ImageSet, settings: Settings) -> dict[str, Any]:
    """How many shards are read side by side, for `config.yaml`: the order depends on it."""
    if not isinstance(images, ShardImages) or settings.run.interleave is not None:
        return {}
    return {"interleave": side_by_side(settings.machine.processes)}


def order_of(run_: RunSettings, images: ImageSet, smallest: int, processes: int) -> EpochOrder:
    """The order of the samples.

    Raises:
        UserError: if an epoch would have no batch.
    """
    count = len(images)
    if run_.drop_last and count < run_.batch_size:
        raise UserError(
            f"--drop_last: {count} images make no batch of {run_.batch_size}; use "
            f"--batch_size {count} or less, or --no-drop_last."
        )
    shards = images.shard_counts() if isinstance(images, ShardImages) else None
    order: EpochOrder
    if shards is not None:
        order = ShardOrder(
            shards, run_.batch_size, run_.seed, smallest, processes, run_.drop_last,
            buffer=run_.shuffle_buffer, lanes=run_.interleave or side_by_side(processes),
        )  # fmt: skip
    else:
        order = EpochOrder(
            count, run_.batch_size, run_.seed, smallest, processes, drop_last=run_.drop_last
        )
    if len(order) == 0:
        raise UserError(
            f"--data: {count} training images make no batch, and nothing would be trained: "
            f"with these settings a batch needs at least {smallest * processes}."
        )
    return order
