"""Images with boxes, and the checks that their annotations share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from unmix.data.decoding import BrokenImage, Decoding, decode
from unmix.errors import UserError

__all__ = ["Annotated", "BoxImages", "Noted", "annotated", "within"]

_SHOWN = 3


@dataclass(frozen=True)
class Annotated:
    """One image.

    Attributes:
        path: Its file.
        boxes: float32 `(n, 4)`: left, top, right, bottom in pixels.
        labels: int64 `(n,)`; classes from 1, since 0 is the background.
        ignored: bool `(n,)`: crowds (COCO) and difficult objects (VOC), which are not trained on,
            and neither count for nor against a detector.
    """

    path: Path
    boxes: Tensor
    labels: Tensor
    ignored: Tensor


@dataclass
class Noted:
    """What was wrong with single annotations: how often, and where first."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, where: object) -> None:
        """Count one more."""
        self.found.setdefault(what, []).append(str(where))

    def lines(self) -> list[str]:
        """One line for each kind, such as "2 boxes without area: left out (a.xml, b.xml)"."""
        return [
            f"note: {len(places)} x {what} ({', '.join(places[:_SHOWN])}"
            f"{', ...' if len(places) > _SHOWN else ''})"
            for what, places in self.found.items()
        ]


class BoxImages(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """A split of images with boxes.

    Args:
        images: The images.
        classes: Names of the classes; label k is `classes[k - 1]`.
        split: "train" or "test".
        noted: What was wrong with annotations.
        training: Without ignored objects, as for training.

    Attributes:
        decoding: How files are decoded.
    """

    def __init__(
        self,
        images: Sequence[Annotated],
        classes: Sequence[str],
        split: str,
        noted: Noted | None = None,
        *,
        training: bool = False,
    ) -> None:
        self.images, self.classes, self.split = list(images), tuple(classes), split
        self.noted, self.training = noted or Noted(), training
        self.decoding = Decoding()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """An image `(3, H, W)` in [0, 1], and its `boxes`, `labels` and `iscrowd`.

        Raises:
            UserError: if it cannot be read.
        """
        one = self.images[index]
        pixels = _pixels(one.path, self.decoding)
        keep = one.boxes.new_ones(len(one.boxes), dtype=torch.bool)
        if self.training:
            keep = ~one.ignored
        boxes, _ = clipped(one.boxes, pixels.shape[2], pixels.shape[1])
        keep &= has_area(boxes)
        return pixels, {
            "boxes": boxes[keep], "labels": one.labels[keep],
            "iscrowd": one.ignored[keep].long(),
        }  # fmt: skip

    @property
    def objects(self) -> int:
        """Number of objects that count."""
        return sum(int((~one.ignored).sum()) for one in self.images)


def annotated(
    path: Path,
    where: object,
    objects: Sequence[tuple[Sequence[float], int, bool]],
    size: tuple[int, int] | None,
    noted: Noted,
) -> Annotated:
    """An image of its objects (box, label, ignored); boxes are clipped, and checked.

    Args:
        path: Its file.
        where: Names it in notes.
        objects: The objects.
        size: Width and height as annotated; None if unknown.
        noted: Counts what is wrong.
    """
    boxes = torch.tensor([list(box) for box, _, _ in objects], dtype=torch.float64).reshape(-1, 4)
    keep = boxes.isfinite().all(dim=1)
    if not bool(keep.all()):
        noted.add("box with a number that is not finite: left out", where)
    if size is not None:
        inside, cut = clipped(boxes, *size)
        outside = keep & has_area(boxes) & ~has_area(inside)
        for _ in range(int(outside.sum())):
            noted.add("box outside its image: left out", where)
        for _ in range(int((cut & ~outside & keep).sum())):
            noted.add("box that reaches out of its image: cut to it", where)
        boxes, keep = inside, keep & ~outside
    empty = keep & ~has_area(boxes)
    for _ in range(int(empty.sum())):
        noted.add("box without area: left out", where)
    keep &= ~empty
    if not bool(keep.any()):
        noted.add("image without a box: used as background", where)
    labels = torch.tensor([label for _, label, _ in objects], dtype=torch.int64)
    ignored = torch.tensor([skip for _, _, skip in objects], dtype=torch.bool)
    return Annotated(path, boxes[keep].float(), labels[keep], ignored[keep])


def clipped(boxes: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Boxes cut to their image, and which of them were."""
    high = boxes.new_tensor([width, height, width, height])
    inside = torch.minimum(boxes.clamp_min(0), high)
    # VOC counts pixels from 1, and annotators round: half a pixel is not worth a note.
    return inside, ((inside - boxes).abs() > 1).any(dim=1)


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes have a width and a height of more than a hundredth of a pixel."""
    return ((boxes[:, 2] - boxes[:, 0]) > 0.01) & ((boxes[:, 3] - boxes[:, 1]) > 0.01)


def within(root: Path, name: str, what: object) -> Path:
    """A file within a folder.

    Raises:
        UserError: if its name leads out of the folder.
    """
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{what}: names the image {name!r}, which leads out of {root}.")
    return path


def _pixels(path: Path, decoding: Decoding) -> Tensor:
    try:
        return pil_to_tensor(decode(path, decoding=decoding)).float() / 255
    except BrokenImage as error:
        raise UserError(f"{error}; repair or remove it and its annotation.") from None
