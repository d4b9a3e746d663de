"""Encoding the images of several splits, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unmix.data import StreamedImages
from unmix.embedding.chunks import Chunk, Chunks, Place
from unmix.errors import UserError
from unmix.evaluation.features import NotFiniteError, encode_batch, evaluating
from unmix.evaluation.pixels import pixel_batches

__all__ = ["encode_chunks"]


def encode_chunks(
    chunks: Chunks,
    encode: Callable[[Tensor], Tensor],
    prepare: Callable[[Tensor], Tensor],
    size: int,
    *,
    first: int = 0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode what is missing, and write each chunk when it is complete.

    Args:
        chunks: The chunks; see `Chunks`.
        encode: Normalized images (N, C, H, W) to features (N, D); a module or a method of one.
        prepare: uint8 images to normalized ones, such as `Views.plain`.
        size: Side of the images in pixels.
        first: The chunks before it are there.
        batch_size: Images at a time; as that of the chunks.
        device: Where to encode.
        autocast: Autocast dtype; None for the dtype of the weights.
        workers: Data workers that read files.
        progress: Called after each batch with the number of images done, and of all, without those
            of the chunks before `first`.

    Raises:
        NotFiniteError: if a feature is not finite.
        UserError: if a chunk cannot be written.
    """
    missing = chunks.places[first:]
    total, done = sum(place.stop - place.start for place in missing), 0
    for split, each in enumerate(chunks.sets):
        own = [(first + i, place) for i, place in enumerate(missing) if place.split == split]
        if not own:
            continue
        collected = _Collected(chunks, each.images, own)
        start = own[0][1].start
        batches = pixel_batches(
            each.images, size, batch_size, workers=workers, device=device, start=start
        )
        with evaluating(encode):
            for pixels, index in batches:
                images = prepare(pixels.to(device, non_blocking=True))
                features = encode_batch(encode, images, device, autocast)
                collected.add(_checked(features).cpu(), index)
                if progress is not None:
                    progress(done + int(index[-1]) + 1 - start, total)
        collected.end()
        done += len(each.images) - start


def _checked(features: Tensor) -> Tensor:
    bad = int((~features.isfinite()).any(dim=1).sum())
    if bad:
        raise NotFiniteError(
            f"features of {bad} of {len(features)} images are not finite, because training "
            "diverged; pretrain again, with a smaller --lr"
        )
    return features


class _Collected:
    """Batches of one split, joined to chunks."""

    def __init__(self, chunks: Chunks, images: object, places: list[tuple[int, Place]]) -> None:
        self.chunks, self.images, self.places = chunks, images, places
        self.features: list[Tensor] = []
        self.index: list[Tensor] = []
        self.known = len(self._broken())

    def _broken(self) -> list[tuple[str, str]]:
        if not isinstance(self.images, StreamedImages):
            return []
        return [(str(error.path), error.reason) for error in self.images.skipped.errors]

    def add(self, features: Tensor, index: Tensor) -> None:
        """Add a batch; batches whose images are all broken are left out."""
        while int(index[0]) >= self.places[0][1].stop:
            self._write()
        self.features.append(features)
        self.index.append(index)
        # Written as soon as it is complete, rather than with the batch that follows.
        if int(index[-1]) + 1 == self.places[0][1].stop:
            self._write()

    def end(self) -> None:
        """Write what is left."""
        while self.places:
            self._write()

    def _write(self) -> None:
        number, _ = self.places.pop(0)
        broken = self._broken()
        if self.index:
            features, index = torch.cat(self.features).numpy(), torch.cat(self.index).numpy()
        else:
            features, index = np.empty((0, self.chunks.dim)), np.empty(0, dtype=np.int64)
        with np.errstate(over="ignore"):  # told in a line
            features = features.astype(self.chunks.dtype, copy=False)
        if not np.isfinite(features).all():
            raise UserError(
                f"features are too large for {features.dtype}, whose largest number is "
                f"{np.finfo(features.dtype).max:g}; give --dtype float32."
            )
        self.chunks.save(number, Chunk(features, index, tuple(broken[self.known :])))
        self.features, self.index, self.known = [], [], len(broken)
