"""The images of shards as a set, each with an index that never changes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmix.data.decoding import BrokenImage
from unmix.data.imageset import StreamedImages
from unmix.data.statistics import even_indices
from unmix.data.streams.cache import key_of
from unmix.data.streams.store import ShardStore

__all__ = ["ShardImages"]

_MANY = 32  # images of a shard at once, for which it is worth a copy


@dataclass(frozen=True, eq=False, kw_only=True)
class ShardImages(StreamedImages):
    """Images in shards, numbered by shard, then by position in it.

    Args:
        store: The shards.
        counts: Number of images of each shard, int64 (S,).
        numbers: Those of the images that are selected, int64 (N,); None for all.
    """

    store: ShardStore
    counts: np.ndarray
    numbers: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", np.concatenate([[0], np.cumsum(self.counts)]))
        super().__post_init__()

    def __len__(self) -> int:
        return int(self.counts.sum()) if self.numbers is None else len(self.numbers)

    def _picked(self, index: Tensor) -> dict[str, Any]:
        chosen = index.numpy()
        return {"numbers": chosen if self.numbers is None else self.numbers[chosen]}

    def sample(self, count: int) -> ShardImages:
        """Images of up to four evenly spaced shards: others need not be read for them."""
        shards = even_indices(len(self.counts), _SAMPLED)
        total = int(self.counts[shards].sum())
        if self.numbers is not None or total <= 1:
            return self.evenly(count)
        starts = self._starts[shards]  # type: ignore[attr-defined]
        index = np.concatenate([np.arange(a, a + self.counts[s]) for a, s in zip(starts, shards,
                                strict=True)])  # fmt: skip
        return self.picked(torch.from_numpy(index[even_indices(total, count)]))

    def located(self, i: int) -> tuple[int, int]:
        """Shard of image `i`, and its position there."""
        number = i if self.numbers is None else int(self.numbers[i])
        starts: np.ndarray = self._starts  # type: ignore[attr-defined]
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        return shard, number - int(starts[shard])

    def shard_counts(self) -> np.ndarray | None:
        """Number of selected images of each shard; None if they are not in order."""
        if self.numbers is None:
            return self.counts
        if len(self.numbers) and (np.diff(self.numbers) <= 0).any():
            return None
        edges = np.searchsorted(self.numbers, self._starts)  # type: ignore[attr-defined]
        return np.diff(edges)

    def place(self, i: int) -> Path:
        """Path of the shard, or its URL without the protocol, followed by the image's name."""
        shard, position = self.located(i)
        name = self.store.index(shard).names[position]
        return Path(self.store.shards[shard].place) / name

    def read(self, i: int) -> bytes:
        """Read image `i`.

        Raises:
            BrokenImage: if it is empty, too large, or its sample has no image.
            ShardError: if the shard cannot be read.
        """
        shard, position = self.located(i)
        length = int(self.store.index(shard).length[position])
        if length < 0:
            raise BrokenImage(self.place(i), "this sample of the shard has no image")
        if length > self.decoding.max_bytes:
            raise BrokenImage(self.place(i), f"the file has {length:,} bytes, too many to read")
        return self.store.read(shard, position)

    def prepare(self, indices: Sequence[int], whole: bool | None = None) -> None:
        """Make ready images that will be read next.

        Args:
            indices: Which.
            whole: Whether to copy their shards; by default those of which many are wanted.

        Raises:
            ShardError: if a shard cannot be read.
        """
        wanted = [self.located(i) for i in indices]
        counts = Counter(shard for shard, _ in wanted)
        chosen = [s for s, n in counts.items() if (n >= _MANY if whole is None else whole)]
        self.store.prepare(wanted, chosen)

    def fetch_ahead(self, shards: Sequence[int]) -> None:
        """Copy shards in the background, by their numbers."""
        self.store.fetch_ahead(shards)

    def digest(self) -> bytes:
        """Of the shards' names and sizes and of the selection: the same in another place."""
        digest = hashlib.blake2b(digest_size=16)
        for shard, count in zip(self.store.shards, self.counts.tolist(), strict=True):
            name = shard.url.partition("?")[0].rpartition("/")[2]
            digest.update(repr((name, shard.size, count)).encode())
        if self.numbers is not None:
            digest.update(self.numbers.astype("<i8").tobytes())
        return digest.digest()

    def versions(self) -> str:
        """Digests of the URLs, and of ETags or times of modification, which differ by place."""
        shards = self.store.shards
        columns = [shard.url for shard in shards], [shard.version for shard in shards]
        return ":".join(key_of(column)[:16] for column in columns)


_SAMPLED = 4
