"""Means of the losses of an epoch, each over the samples that have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unmix.distributed import all_reduce_sum, world_size

__all__ = ["LossMeans"]


class LossMeans:
    """Sums of losses over samples, on the device, and the number of samples of each.

    Steps without mixtures have no loss of mixtures, so it is a mean over fewer samples.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor, count: int) -> None:
        """Add the mean loss of `count` samples."""
        # Sums stay on the device: reading a loss at every step would make the host wait.
        self.sums[name] = self.sums.get(name, 0.0) + value.float() * count  # type: ignore[assignment]
        self.counts[name] = self.counts.get(name, 0) + count

    def over(self, reduce: Callable[[Tensor], Tensor], processes: int = 1) -> dict[str, float]:
        """The means, of sums that are reduced over the processes."""
        sums = {name: reduce(total) for name, total in self.sums.items()}
        return {
            name: (total / self.counts[name]).item() / processes for name, total in sums.items()
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of them: of several processes, which all call it, the mean."""
        sums = {name: all_reduce_sum(total) / world_size() for name, total in self.sums.items()}
        return {"epoch_sums": sums, "epoch_counts": dict(self.counts)}

    @classmethod
    def of(cls, checkpoint: dict[str, Any], share: float, device: torch.device) -> LossMeans:
        """Those of a checkpoint.

        Args:
            checkpoint: Also an earlier one, with one number of samples for all losses.
            share: Of them that is this process's, if it was written by another number.
            device: Where the sums will be.
        """
        found, sums = cls(), checkpoint["epoch_sums"]
        found.sums = {name: value.to(device) * share for name, value in sums.items()}
        counts = checkpoint.get("epoch_counts") or dict.fromkeys(sums, checkpoint["epoch_samples"])
        found.counts = {name: round(count * share) for name, count in counts.items()}
        return found
