"""What is known of a data set before it is read, and what a reader is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from unmix.data.decoding import Decoding
from unmix.data.imageset import RGB, FileImages, ImageSet, Skipped
from unmix.data.listing import Listing, Paths
from unmix.errors import UserError

__all__ = ["DataSet", "Request", "file_images"]


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    Args:
        split: `train`, `test` or `pretrain`.
        data_dir: The folder that holds the data set's files; None if the user gave none.
        skipped: For files that turn out broken.
        download: Whether the files may be fetched.
        decoding: How files are decoded.
    """

    split: str
    data_dir: Path | None
    skipped: Skipped
    download: bool = False
    decoding: Decoding = Decoding()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class DataSet:
    """A data set that is known by name.

    Args:
        name: The word for `--data`.
        size: Side of its images in pixels, or the usual side of its crops.
        classes: How many classes it has.
        mean: Of the training split's pixels, RGB in [0, 1].
        std: The standard deviation of the same.
        source: Where mean and std come from.
        read: Reads a split.
        layout: What `--data_dir` must hold; None if nothing is needed.
        downloads: Whether the files can be fetched.
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
        """Return the folder that the user gave for the files.

        Raises:
            UserError: if there is none, or it is no folder.
        """
        fetch = ", or add --download to fetch it" if self.downloads else ""
        if request.data_dir is None:
            raise UserError(
                f"--data_dir: {self.name} needs a folder DIR that holds {self.layout}{fetch}."
            )
        if request.data_dir.is_dir() or (request.download and not request.data_dir.exists()):
            return request.data_dir
        what = "is not a folder" if request.data_dir.exists() else "does not exist"
        raise UserError(
            f"--data_dir: {request.data_dir} {what}; {self.name} needs a folder DIR that holds "
            f"{self.layout}{fetch}."
        )

    def missing(self, root: Path, what: str) -> UserError:
        """Make the error for files that are not as they should be in `root`."""
        fetch = " Add --download to fetch it." if self.downloads else ""
        return UserError(f"--data_dir: {root}: {what}; {self.name} needs {self.layout}.{fetch}")


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
    """Make an image set of a listing."""
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
