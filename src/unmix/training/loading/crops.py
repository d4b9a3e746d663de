"""Decoding and cropping in data workers: from encoded images to the crops of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from unmix.data import BrokenImage, StreamedImages
from unmix.data.opened import OpenedImage
from unmix.data.streams import ShardImages
from unmix.randomness import generator_for
from unmix.training.loading.batch import Batch
from unmix.views import Views
from unmix.views.crops import crop_reduced, crop_uint8

__all__ = ["FileCrops"]

# Enough to amortize drawing; few enough that images of formats without a readable header, which
# are decoded whole to know their size, fit in memory.
_TOGETHER = 16


class FileCrops(Dataset[Batch]):
    """Reads images, draws the crops of their views, and decodes only the pixels these need.

    Items are indexed by (epoch, sample id), so that the crops depend neither on the worker nor on
    the other images of the batch. Boxes are drawn from the image size in the file's header, so
    they do not depend on the decoder either.

    Args:
        images: The encoded images.
        views: Number and sizes of the crops, and how they are drawn.
        seed: Seed of the run.
        after: Of images in shards, which shards follow in an epoch those of some images.
    """

    def __init__(
        self,
        images: StreamedImages,
        views: Views,
        seed: int,
        after: Callable[[int, Sequence[int]], list[int]] | None = None,
    ) -> None:
        self.images, self.views, self.seed, self.after = images, views, seed, after

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        """A batch of one image."""
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        """A batch of images: their crops, and the errors of those that cannot be read.

        Args:
            items: Epoch and sample id of each.
        """
        crops = self._allocate(len(items))
        kept: list[int] = []
        broken: list[BrokenImage] = []
        for start in range(0, len(items), _TOGETHER):
            part = range(start, min(start + _TOGETHER, len(items)))
            self._prepare(items, part)
            opened: dict[int, OpenedImage] = {}
            for n in part:
                try:
                    opened[n] = self._open(items[n][1])
                except BrokenImage as error:
                    broken.append(error)
            boxes = self._boxes(items, opened)
            for n in list(opened):
                try:
                    # Popped, so that its pixels are freed.
                    self._cut(opened.pop(n), boxes[n], [room[n] for room in crops])
                    kept.append(n)
                except BrokenImage as error:
                    broken.append(error)
        index = torch.tensor([items[n][1] for n in kept], dtype=torch.long)
        if len(kept) < len(items):
            crops = [room[kept] for room in crops]
        return Batch(index, tuple(crops) if kept else None, broken=tuple(broken))

    def _prepare(self, items: Sequence[tuple[int, int]], part: range) -> None:
        if not isinstance(self.images, ShardImages):
            return
        if part.start == 0 and self.after is not None:
            following = self.after(items[0][0], [i for _, i in items])
            self.images.fetch_ahead(following)
        self.images.prepare([items[n][1] for n in part], whole=True)

    def _open(self, i: int) -> OpenedImage:
        return OpenedImage.of(self.images.read(i), self.images.place(i), self.images.decoding)

    def _boxes(
        self, items: Sequence[tuple[int, int]], opened: Mapping[int, OpenedImage]
    ) -> dict[int, list[list[int]]]:
        """Draw the boxes of all views for several images, indexed by image, then view."""
        if not opened:
            return {}
        heights, widths = torch.tensor([image.size for image in opened.values()]).T
        generators = [generator_for(self.seed, "crop", *items[n]) for n in opened]
        drawn = [
            self.views.draw_boxes(len(opened), heights, widths, generators, view)
            for view in range(len(self.views))
        ]
        return dict(zip(opened, torch.stack(drawn, dim=1).tolist(), strict=True))

    def _cut(
        self, image: OpenedImage, boxes: Sequence[Sequence[int]], out: Sequence[Tensor]
    ) -> None:
        """Decode an image and write its crops to `out`: for each view uint8 (3, size, size)."""
        sizes, kinds = self.views.sizes, self.views.kinds
        factor = min(
            image.factor(min(box[2:]), size) for box, size in zip(boxes, sizes, strict=True)
        )
        reduced = image.reduced(factor) if factor > 1 else None
        for room, kind, (top, left, height, width) in zip(out, kinds, boxes, strict=True):
            box, how = image.stored_box((top, left, height, width)), kind.settings.interpolation
            if reduced is None:
                crop = crop_uint8(image.pixels, box, kind.size, how)
            else:
                crop = crop_reduced(reduced, box, factor, kind.size, how)
            room.copy_(image.upright(crop))

    def _allocate(self, count: int) -> list[Tensor]:
        """Allocate the crops in one block: for each view uint8 (N, 3, size, size), channels last.

        Channels last is the layout that decoders write.
        """
        sizes = self.views.sizes
        needed = [count * size * size * 3 for size in sizes]
        room = torch.empty(sum(needed), dtype=torch.uint8)
        if get_worker_info() is not None:
            # Shared memory: otherwise the batch would be copied into it when it is sent.
            room.share_memory_()
        parts = zip(room.split(needed), sizes, strict=True)
        return [part.view(count, size, size, 3).permute(0, 3, 1, 2) for part, size in parts]
