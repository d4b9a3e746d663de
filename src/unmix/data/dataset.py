"""The facts of a data set that are known before it is read, and the request to read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from unmix.data.decoding import Decoding
from unmix.data.imageset import RGB, FileImages, ImageSet, Skipped
from unmix.data.listing import Listing
from unmix.data.paths import Paths
from unmix.errors import UserError

__all__ = ["DataSet", "Request", "file_images"]


@dataclass(frozen=True)
class Request:
    """A request to read a split.

    Args:
        split: `train`, `test` or `pretrain`.
        data_dir: The folder of the data set's files; None if not given.
        skipped: Records broken files.
        download: Whether the files may be downloaded.
        decoding: How files are decoded.
    """

    split: str
    data_dir: Path | None
    skipped: Skipped
    download: bool = False
    decoding: Decoding = Decoding()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class DataSet:
    """A data set with a name.

    Args:
        name: Its name, the value of `data`.
        size: Side of its images in pixels, or of the usual crops.
        classes: Number of classes.
        mean: Of the training split's pixels, RGB in [0, 1].
        std: The standard deviation of the same.
        source: Where mean and std come from.
        read: Reads a split.
        layout: The required content of `data_dir`; None if it needs no files.
        downloads: Whether the files can be downloaded.
    """

    name: str
    size: int
    classes: int
    mean: RGB
    std: RGB
    source: str
    read: Callable[[DataSet, Request], ImageSet]
    layout: str | None = None
    downloads: bool = False

    def root(self, request: Request) -> Path:
        """Return the folder of the files.

        Raises:
            UserError: if it is not given or is not a folder.
        """
        fetch = ", or add `download` to fetch it" if self.downloads else ""
        if request.data_dir is None:
            raise UserError(
                f"{self.name} needs a folder DIR that holds {self.layout}{fetch}.",
                parameter="data_dir",
            )
        if request.data_dir.is_dir() or (request.download and not request.data_dir.exists()):
            return request.data_dir
        what = "is not a folder" if request.data_dir.exists() else "does not exist"
        raise UserError(
            f"{request.data_dir} {what}; {self.name} needs a folder DIR that holds "
            f"{self.layout}{fetch}.",
            parameter="data_dir",
        )

    def missing(self, root: Path, what: str) -> UserError:
        """Return the error for missing or wrong files in `root`."""
        fetch = " Add `download` to fetch it." if self.downloads else ""
        return UserError(
            f"{root}: {what}; {self.name} needs {self.layout}.{fetch}", parameter="data_dir"
        )


def file_images(
    listing: Listing,
    *,
    name: str,
    split: str,
    mean: RGB,
    std: RGB,
    skipped: Skipped,
    notes: tuple[str, ...] = (),
    decoding: Decoding | None = None,
) -> FileImages:
    """Make an image set from a listing."""
    labels = None
    if listing.labels is not None:
        labels = torch.tensor(listing.labels, dtype=torch.int64)
    return FileImages(
        name=name,
        split=split,
        labels=labels,
        classes=listing.classes,
        mean=mean,
        std=std,
        paths=Paths(listing.paths),
        skipped=skipped,
        notes=notes,
        decoding=decoding or Decoding(),
    )
