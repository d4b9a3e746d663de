"""The data sets by name, and `load`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from unmix.data.columns import Columns
from unmix.data.dataset import DataSet, Request
from unmix.data.decoding import Decoding
from unmix.data.folder import load_folder
from unmix.data.hf import load_hf
from unmix.data.hf_address import Address
from unmix.data.imagenet import IMAGENET, IMAGENET_100, TINY_IMAGENET
from unmix.data.imageset import ImageSet, Skipped
from unmix.data.lists import load_list
from unmix.data.packed import holds_pack, load_pack
from unmix.data.photos import PHOTOS
from unmix.data.streams import holds_shards, load_shards
from unmix.data.streams.cache import ShardCache, default_folder
from unmix.data.streams.loading import Reading
from unmix.data.tables import KINDS, is_list
from unmix.data.tensor_sets import CIFAR10, CIFAR100, DIGITS, STL10
from unmix.errors import UserError, byte_count, check_choice
from unmix.files import as_path
from unmix.names import HUGGING_FACE, is_python, is_stream
from unmix.transfer import usual_defaults

__all__ = ["DATA_SETS", "Lists", "Shards", "load", "path_of", "with_path"]

DATA_SETS: dict[str, DataSet] = {
    data_set.name: data_set
    for data_set in (
        PHOTOS, DIGITS, CIFAR10, CIFAR100, STL10, TINY_IMAGENET, IMAGENET_100, IMAGENET
    )
}  # fmt: skip
"""The data sets by the name that `data` takes."""

_SPLITS = ("train", "test", "pretrain")


@dataclass(frozen=True)
class Shards:
    """How images in shards are read.

    Attributes:
        cache_size: Bytes of all copies of remote shards, such as "50GB"; "0" for none.
        interleave: How many shards are read side by side; by default 8.
        shuffle_buffer: How many images are shuffled together.
    """

    cache_size: str = "50GB"
    interleave: int | None = None
    shuffle_buffer: int = 32_768


@dataclass(frozen=True)
class Lists:
    """How lists of files and tables are read.

    Attributes:
        columns: The columns of paths or images, labels and splits; by default those with usual
            names.
        manifest: Whether the names of a large folder or list are kept in the cache, and only what
            has changed is listed again (see `unmix.data.manifest` and `unmix.data.list_cache`).
    """

    columns: Columns = Columns()  # noqa: RUF009 - frozen
    manifest: bool = False


@usual_defaults()
def load(
    data: str | os.PathLike[str],
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    strict: bool = False,
    download: bool = False,
    train_folder: str | None = None,
    test_folder: str | None = None,
    decoding: Decoding | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    shards: Shards | None = None,
    lists: Lists | None = None,
) -> ImageSet:
    """Load a split of a data set.

    Args:
        data: A name of `DATA_SETS`; a folder of images (see `unmix.data.folder.load_folder`), or a
            pack of one (see `unmix.data.packed`); a list of files (see `unmix.data.lists`); a
            Hugging Face data set as `hf:NAME` or `hf:PATH` (see `unmix.data.hf.load_hf`); or
            shards of images (see `unmix.data.streams.load_shards`). A name takes precedence over a
            folder of the same name, which can be given as `./NAME`.
        split: `train`, `test`, or `pretrain`, which differs from `train` only for `stl10`: it adds
            the unlabeled images and has no labels.
        data_dir: Folder of the files of a named data set, if it needs any.
        strict: Whether the first file that cannot be read ends the run.
        download: Whether torchvision may fetch the files into `data_dir` if they are missing.
        train_folder: Of a folder of images, where within it the training images are; by default
            found by the usual names. Of a list, the name of the training split.
        test_folder: Likewise the images to evaluate on.
        decoding: How files are decoded. Without a range, that of images of more than 8 bits is
            measured on the training images.
        cache_dir: Where copies of remote shards and names of files are kept; by default
            `~/.cache/unmix`.
        shards: How images in shards are read.
        lists: How lists and tables are read, and whether names of files are kept.

    Raises:
        UserError: if the name is unknown, or files are missing, damaged, or laid out differently.
    """
    check_choice("split", split, _SPLITS)
    name = os.fspath(data)
    skipped = Skipped(strict)
    how = decoding or Decoding()
    shards, lists = shards or Shards(), lists or Lists()
    chosen = lists.columns
    kept = _cache_folder(cache_dir) if lists.manifest else None
    given = {"train_folder": train_folder, "test_folder": test_folder}
    folders = [parameter for parameter, value in given.items() if value is not None]
    if name.startswith(HUGGING_FACE):
        return load_hf(
            name, split, skipped, how, chosen, train_split=train_folder, test_split=test_folder
        )
    if name not in DATA_SETS:
        if (is_stream(name) or _is_folder_of_shards(name)) and not (
            chosen.needed and chosen.given()
        ):
            cache = ShardCache(
                _cache_folder(cache_dir), byte_count("cache_size", shards.cache_size)
            )
            return load_shards(
                name, split, skipped, how, cache, train_folder=train_folder,
                test_folder=test_folder,
                reading=Reading(shards.interleave or 8, shards.shuffle_buffer),
            )  # fmt: skip
        place = Path(name) if is_stream(name) else _place(name)
        if place.is_file() and not is_stream(name):
            return load_list(
                place, split, skipped, how, chosen, train_split=train_folder,
                test_split=test_folder, cache=kept,
            )  # fmt: skip
        if chosen.needed and chosen.given():
            raise UserError(
                f"applies only to a list of files and to hf:NAME, not to {name}.",
                parameter=chosen.given()[0],
            )
        if not holds_pack(place):
            return load_folder(
                place, split, skipped, how, train_folder=train_folder, test_folder=test_folder,
                cache=kept,
            )  # fmt: skip
        if folders:
            raise UserError(
                f"does not apply to {name}, a pack, whose splits are fixed.", parameter=folders[0]
            )
        return load_pack(place, split, skipped, how)
    if chosen.needed and chosen.given():
        folders += chosen.given()
    if folders:
        where = "a folder of images" if folders[0] in given else "a list of files"
        raise UserError(f"applies only to {where}, not to {name}.", parameter=folders[0])
    data_set = DATA_SETS[name]
    if download and data_set.layout is not None and not data_set.downloads:
        raise UserError(
            f"{name} cannot be downloaded; download it yourself and give its folder as `data_dir`, "
            f"with {data_set.layout}.",
            parameter="download",
        )
    root = None if data_dir is None else as_path(data_dir)
    return data_set.read(data_set, Request(split, root, skipped, download, how))


def path_of(data: str) -> str | None:
    """The path that `data` gives, as it is written; None for a name, and for shards."""
    if data.startswith(HUGGING_FACE):
        address = Address.of(data)
        return address.name if address.local else None
    return None if data in DATA_SETS or is_python(data) or is_stream(data) else data


def with_path(data: str, path: str) -> str:
    """The same `data`, which gives a path, with another one."""
    return Address.of(data).with_path(path) if data.startswith(HUGGING_FACE) else path


def _is_folder_of_shards(name: str) -> bool:
    folder = as_path(name)
    return bool(name) and folder.is_dir() and not holds_pack(folder) and holds_shards(folder)


def _place(name: str) -> Path:
    """Return the folder or list of images."""
    if is_python(name):
        raise UserError(
            f"the run's images were given in Python ({name}); to go on, give them again, "
            "unmix.pretrain(run=..., data=...); to measure it, give a folder or a name.",
            parameter="data",
        )
    place = as_path(name)
    if name and (place.is_dir() or (place.is_file() and is_list(place))):
        return place
    if place.exists() and name:
        raise UserError(
            f"{name} is a file; give a folder of images, or a list of them: {KINDS}.",
            parameter="data",
        )
    if name.startswith(("~", ".")) or os.sep in name:
        what = "file" if is_list(place) else "folder"
        raise UserError(f"there is no {what} {name}.", parameter="data")
    try:
        check_choice("data", name, DATA_SETS)
    except UserError as error:
        raise error.with_more("Or give the path of a folder of images.") from None
    raise AssertionError("a known name is no folder")


def _cache_folder(given: str | os.PathLike[str] | None) -> Path:
    # Only where something is kept: a user may have no home.
    return default_folder() if given is None else as_path(given)
