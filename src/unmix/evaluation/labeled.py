"""Which training images have labels in semi-supervised fine-tuning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

import torch
from torch import Tensor

from unmix.data import ImageSet, StreamedImages
from unmix.errors import UserError
from unmix.names import shown

__all__ = ["ALL_LABELS", "Amount", "choose_labeled", "image_name", "read_list"]

ALL_LABELS = "all labels"
"""What a list says that names no images, since all have labels."""


class Amount:
    """How many labels: a share of all, or a number per class.

    Args:
        text: "100%", "10%", "0.5%", or the number of images of each class, "20".

    Attributes:
        share: In (0, 1]; None for a number per class.
        per_class: None for a share.

    Raises:
        UserError: if it is neither, or out of range.
    """

    def __init__(self, text: str) -> None:
        self.share: float | None = None
        self.per_class: int | None = None
        word = text.strip()
        try:
            if word.endswith("%"):
                self.share = float(word[:-1]) / 100
            else:
                self.per_class = int(word)
        except ValueError:
            pass
        fine = (self.share is not None and 0 < self.share <= 1) or (self.per_class or 0) >= 1
        if not fine:
            raise UserError(
                f"{text!r} is neither a share such as 1%, 10% or 100% nor a number of images per "
                "class such as 20.",
                parameter="labels",
            )

    def __str__(self) -> str:
        return f"{100 * self.share:g}%" if self.share is not None else f"{self.per_class} per class"

    @property
    def everything(self) -> bool:
        """Whether all labels are used."""
        return self.share == 1


def choose_labeled(
    labels: Tensor, classes: Sequence[str], amount: Amount, generator: torch.Generator
) -> Tensor:
    """Choose images at random, equally many of each class.

    A share of N images is that of N in all; where it is no multiple of the number of classes, some
    classes, drawn at random, have one image more, as in the published 1% and 10% of ImageNet
    (SimCLR, arXiv 2002.05709, section 6).

    Args:
        labels: int64 `(N,)`.
        classes: Their names.
        amount: How many.
        generator: CPU generator.

    Returns:
        The indices of the chosen images in ascending order.

    Raises:
        UserError: if that is less than an image of each class, or a class has fewer.
    """
    n, count = len(labels), len(classes)
    if amount.everything:
        return torch.arange(n)
    total = count * amount.per_class if amount.per_class else round((amount.share or 0) * n)
    each, rest = divmod(total, count)
    if each == 0:
        least = next(p for p in _percents() if round(p / 100 * n) >= count or p >= 100)
        raise UserError(
            f"{amount} of {n:,} images is {total}, less than one for each of the {count} classes; "
            f"use {least:g}% or more, or a number of images per class.",
            parameter="labels",
        )
    sizes = labels.bincount(minlength=count)
    short = int(sizes.argmin())
    if int(sizes[short]) < each:
        what = f"{amount}, balanced over the classes, is {each} of each" if amount.share else amount
        raise UserError(
            f"class {shown(classes[short])!r} has {int(sizes[short])} training images, and {what}; "
            "use less, or name the images in --label_list.",
            parameter="labels",
        )
    larger = [c for c in torch.randperm(count, generator=generator).tolist() if sizes[c] > each]
    if rest > len(larger):
        raise UserError(
            f"{amount} of {n:,} images cannot be balanced over classes as small as "
            f"{shown(classes[short])!r} with {int(sizes[short])}; use less, or name the images in "
            "--label_list.",
            parameter="labels",
        )
    one_more = set(larger[:rest])
    order = torch.randperm(n, generator=generator)
    chosen = [order[labels[order] == c][: each + (c in one_more)] for c in range(count)]
    return torch.cat(chosen).sort().values


def _percents() -> Iterable[float]:
    """Round percentages, ascending."""
    for unit in (0.001, 0.01, 0.1, 1, 10):
        yield from (unit * k for k in (1, 2, 5))
    yield 100


def image_name(images: ImageSet, i: int) -> str:
    """The name of an image in a list: its class folder and file, or its index in the split."""
    if not isinstance(images, StreamedImages):
        return str(i)
    return "/".join(images.place(i).parts[-2:])


def read_list(path: Path, images: ImageSet) -> Tensor:
    """Read which images are labeled, one per line, such as the published lists of ImageNet.

    Args:
        path: A text file. A line is a file's name (`n01440764_10026.JPEG`), with as many of the
            folders around it as tell it apart, or the index of an image that has no file; empty
            lines and those that begin with # do not count.
        images: The training images.

    Returns:
        Their indices in ascending order.

    Raises:
        UserError: if the file cannot be read or names none, or an image that is not there, that
            could be several, or that was named before.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text in UTF-8"
        raise UserError(f"{path} cannot be read ({reason}).", parameter="label_list") from None
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        whole = text.startswith(f"# {ALL_LABELS}:")
        why = f"; it stands for {ALL_LABELS}, which are taken without it" if whole else ""
        raise UserError(f"{path} names no images{why}.", parameter="label_list")
    found = _by_file(names, images) if isinstance(images, StreamedImages) else None
    places = [_by_number(name, len(images)) for name in names] if found is None else found
    missing = [name for name, place in zip(names, places, strict=True) if not place]
    if missing:
        count = "an image that is" if len(missing) == 1 else f"{len(missing):,} images that are"
        raise UserError(
            f"{path} names {count} not among the {len(images):,} training images"
            f"{':' if len(missing) == 1 else ', first'} {shown(missing[0])}",
            parameter="label_list",
        )
    seen: set[int] = set()
    for name, place in zip(names, places, strict=True):
        if len(place) > 1:
            raise UserError(
                f"{path} names {shown(name)}, which {len(place)} training images are called; put "
                "its folder before it.",
                parameter="label_list",
            )
        if place[0] in seen:
            raise UserError(f"{path} names {shown(name)} twice.", parameter="label_list")
        seen.add(place[0])
    return torch.tensor(sorted(seen))


def _by_number(name: str, count: int) -> list[int]:
    return [int(name)] if name.isdecimal() and int(name) < count else []


def _by_file(names: Sequence[str], images: StreamedImages) -> list[list[int]]:
    """For each name the images whose path ends in it."""
    wanted = {PurePath(name).name for name in names}
    by_file: defaultdict[str, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    for i in range(len(images)):
        place = images.place(i)
        if place.name in wanted:
            by_file[place.name].append((i, place.parts))
    found = []
    for name in names:
        parts = PurePath(name).parts
        found.append([i for i, whole in by_file[parts[-1]] if whole[-len(parts) :] == parts])
    return found
