"""Shards as a data set: splits, classes, colors."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from tqdm import tqdm

from unmix.data.decoding import Decoding
from unmix.data.imageset import RGB, Skipped
from unmix.data.listing import Folder
from unmix.data.statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    estimate_mean_std,
    estimate_range,
    range_note,
)
from unmix.data.streams.cache import ShardCache, key_of
from unmix.data.streams.images import ShardImages
from unmix.data.streams.locations import one_spelling, shards_of
from unmix.data.streams.remote import facts_of_all, local_path
from unmix.data.streams.store import Shard, ShardStore
from unmix.display import counted, memory
from unmix.errors import UserError
from unmix.files import atomic_write, read_json
from unmix.names import shown
from unmix.schema import Check, Fraction, checked

__all__ = ["NoTestShards", "Reading", "holds_shards", "load_shards"]

_SAMPLE = 1000
_MINUTE = 60.0
_TEST_WORDS = ("val", "valid", "validation", "test")
_WORD = re.compile(r"(train|validation|valid|val|test)(?=$|[^a-z])", re.IGNORECASE)


_Std = Annotated[float, Check(lambda std: std == 0 or 1e-4 <= std <= 1, "from 0.0001 to 1")]


@dataclass(frozen=True)
class _Colors:
    """What was measured on a sample of shards, as it is kept."""

    mean: tuple[Fraction, Fraction, Fraction]
    std: tuple[_Std, _Std, _Std]
    range: Annotated[list[float], Check(lambda x: len(x) in (0, 2), "none or two numbers")]


class NoTestShards(UserError):  # noqa: N818 - it says what is wrong
    """Shards to evaluate on are asked for, and there are none."""


def holds_shards(folder: Path) -> bool:
    """Whether a local folder holds tar files without images, in itself or in a split's folder."""
    with suppress(OSError):
        inside = list(folder.iterdir())
        splits = [path for path in inside if _WORD.fullmatch(path.name) and path.is_dir()]
        if any(path.suffix == ".tar" and path.is_file() for path in inside):
            return not _holds_images(folder)
        return any(any(path.glob("*.tar")) and not _holds_images(path) for path in splits)
    return False


def _holds_images(folder: Path) -> bool:
    # Where images lie beside a tar file, it mostly is the archive that they were unpacked from.
    try:
        return Folder(folder).holds_images
    except UserError:
        return False  # a folder that cannot be read, such as lost+found of a disk of shards


@dataclass(frozen=True)
class Reading:
    """How training reads shards, to know how many of them have to be copied at the same time.

    Attributes:
        side_by_side: Number of shards that are read side by side.
        buffer: Number of images that are shuffled together.
    """

    side_by_side: int = 8
    buffer: int = 32_768

    def bytes_at_once(self, images: ShardImages) -> int:
        """Bytes of the remote shards that are read at the same time, and of the next ones."""
        shards = images.store.shards
        remote = [shard.size for shard in shards if local_path(shard.url) is None]
        each = max(1.0, len(images) / len(shards))
        lane = math.ceil(self.buffer / self.side_by_side / each) + 1
        return sum(sorted(remote)[-lane * self.side_by_side :])


@dataclass(frozen=True)
class _Splits:
    train: tuple[Shard, ...]
    test: tuple[Shard, ...]
    unused: int = 0


def load_shards(
    spec: str,
    split: str,
    skipped: Skipped,
    decoding: Decoding,
    cache: ShardCache,
    *,
    train_folder: str | None = None,
    test_folder: str | None = None,
    reading: Reading = Reading(),
) -> ShardImages:
    """Load a split of images in shards.

    1. *Splits.* `train_folder` and `test_folder` name shards; otherwise shards, or the folders they
       are in, whose names begin with `val`, `valid` or `validation`, else `test`, are the test
       split, and all others are for training.
    2. *Index.* The images of a shard are found by its headers. That is kept in the cache. A remote
       shard has to be read for it, but not before training if a `sizes.json` tells how many samples
       each shard has and there are no test shards.
    3. *Classes.* `KEY.cls`, or the label in `KEY.json`, if all images have one.
    4. *Colors.* Mean, standard deviation and range are measured on 1,000 images of four shards.

    Args:
        spec: See `unmix.data.streams.locations.shards_of`.
        split: `train`, `test`, or `pretrain`, which is `train` here.
        skipped: Collects broken images.
        decoding: How images are decoded.
        cache: Whole copies of remote shards, and what is known of all.
        train_folder: Shards to train on, relative to those of `spec`.
        test_folder: Shards to evaluate on, likewise.
        reading: How training reads them. If the cache is too small for that, nothing is copied.

    Raises:
        NoTestShards: if a test split is wanted and there is none.
        UserError: if there are no shards, or one cannot be read or has no images.
    """
    find = _splits_again if "://" in spec else _splits
    splits = find(spec, train_folder, test_folder)
    if split == "test" and not splits.test:
        raise NoTestShards(
            f"{spec}: there are no shards to evaluate on; give --test_folder with them, or name "
            "them val-*.tar."
        )
    lazy = not splits.test and all(shard.count is not None for shard in splits.train)
    train = _images(spec, "train", splits.train, cache, lazy)
    train.store.copies = reading.bytes_at_once(train) <= cache.limit
    train = replace(train, **_looked_at(train, decoding), skipped=skipped)
    labels, classes = ([], ()) if lazy else _labels(train)
    test: ShardImages | None = None
    test_labels: list[str] = []
    if splits.test:
        test = _images(spec, "test", splits.test, cache, False)
        test_labels, _ = _labels(test)
        if classes and (other := set(test_labels) - set(labels)):
            raise UserError(
                f"{test.store.shards[0].url}: class {shown(min(other))!r} of the test shards is "
                "not among those to train on."
            )
    number = {name: i for i, name in enumerate(classes)}
    if split != "test":
        own = torch.tensor([number[label] for label in labels]) if classes else None
        notes = (
            _understood(splits, train, test, classes, lazy), *_notes(train, reading),
            *_unlabeled(train, classes, lazy), *train.notes,
        )  # fmt: skip
        return replace(train, labels=own, classes=classes or None, notes=notes)
    assert test is not None
    own = None
    if classes and test_labels:
        own = torch.tensor([number[label] for label in test_labels])
    return replace(
        test, labels=own, classes=None if own is None else classes, mean=train.mean, std=train.std,
        decoding=train.decoding, skipped=skipped,
    )  # fmt: skip


def _splits_again(spec: str, train_folder: str | None, test_folder: str | None) -> _Splits:
    """The same without asking a server again within a minute, as for the splits of a run."""
    return _splits_of_minute(spec, train_folder, test_folder, int(time.monotonic() / _MINUTE))


@lru_cache(maxsize=8)
def _splits_of_minute(
    spec: str, train_folder: str | None, test_folder: str | None, minute: int
) -> _Splits:
    return _splits(spec, train_folder, test_folder)


def _splits(spec: str, train_folder: str | None, test_folder: str | None) -> _Splits:
    given = shards_of(spec)
    urls = given.urls
    named = {
        name: shards_of(folder, given.base).urls
        for name, folder in (("train", train_folder), ("test", test_folder))
        if folder is not None
    }
    words = {url: _word(url, given.base) for url in urls}
    found = {word for word in words.values() if word in _TEST_WORDS}
    usual = next((group for group in (_TEST_WORDS[:3], _TEST_WORDS[3:]) if found & set(group)), ())
    others = [url for url in urls if words[url] not in _TEST_WORDS]
    own = _spellings(named.get("train", ()))
    test = named.get("test") or {
        url: urls[url]
        for url in urls
        if others and words[url] in usual and one_spelling(url) not in own
    }
    held_out = _spellings(test)
    train = named.get("train") or {
        url: urls[url] for url in others or urls if one_spelling(url) not in held_out
    }
    if both := [url for url in test if one_spelling(url) in own]:
        raise UserError(
            f"{both[0]} is one of the shards of --train_folder {train_folder} too; give others to "
            "evaluate on.", parameter="test_folder",
        )  # fmt: skip
    if not train:
        raise UserError(f"{spec}: no shards are left to train on.", parameter="data")
    for some in (train, test):
        first = {one_spelling(url): url for url in reversed(some)}
        for url in some:
            if (other := first[one_spelling(url)]) != url:
                raise UserError(
                    f"{url}: is the same shard as {other}, so its images would be read twice; "
                    "name it once.", parameter="data",
                )  # fmt: skip
    whole = {**train, **test}
    known = dict(zip(whole, facts_of_all(whole), strict=True))

    def shards(of: dict[str, int | None]) -> tuple[Shard, ...]:
        return tuple(Shard(u, known[u].size, known[u].version, n) for u, n in of.items())

    return _Splits(shards(train), shards(test), len(_spellings(urls) - _spellings(whole)))


def _spellings(urls: Iterable[str]) -> set[str]:
    return set(map(one_spelling, urls))


def _word(url: str, base: str) -> str:
    """The split that a shard's name begins with, or the folder that it is in; empty if none."""
    # A pattern of file:// stands for plain paths, without the base's protocol.
    url, base = (text.removeprefix("file://") for text in (url, base))
    inside = url.partition("?")[0].removeprefix(base).strip("/").split("/")
    for name in reversed(inside[-2:]):
        if (match := _WORD.match(name)) is not None:
            return match[1].lower()
    return ""


def _images(
    spec: str, split: str, shards: Sequence[Shard], cache: ShardCache, lazy: bool
) -> ShardImages:
    store = _store(tuple(shards), cache.root, cache.limit)
    if lazy:
        counts = [shard.count or 0 for shard in shards]
    else:
        _hold(store)
        counts = [len(store.held[number]) for number in range(len(shards))]
    return ShardImages(
        name=spec, split=split, labels=None, classes=None, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        store=store, counts=np.array(counts, dtype=np.int64),
    )  # fmt: skip


@lru_cache(maxsize=8)
def _store(shards: tuple[Shard, ...], root: Path, limit: int) -> ShardStore:
    return ShardStore(shards, ShardCache(root, limit), copies=limit > 0)


def _hold(store: ShardStore) -> None:
    """Load all indices; say how far it is if shards have to be read for it."""
    if len(store.held) == len(store.shards):
        return
    missing = store.unknown()
    size = sum(store.shards[n].size for n in missing if local_path(store.shards[n].url) is None)
    if size:
        print(
            f"reading {counted(len(missing), 'shard')} ({memory(size)}) once to find the images",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    with tqdm(
        total=len(missing), desc="index", unit="shard", disable=None, leave=False, delay=2
    ) as bar:
        store.hold(lambda _: bar.update())


def _labels(images: ShardImages) -> tuple[list[str], tuple[str, ...]]:
    """The label of each image and the classes in order; empty if an image has none."""
    store = images.store
    labels = [
        label for number in range(len(store.shards)) for label in store.held[number].label.tolist()
    ]
    if not all(labels):
        return [], ()
    names = set(labels)
    if all(re.fullmatch(r"\d{1,18}", name) for name in names):
        return labels, tuple(sorted(names, key=lambda name: (int(name), name)))
    return labels, tuple(sorted(names))


def _looked_at(images: ShardImages, decoding: Decoding) -> dict[str, Any]:
    """Mean, standard deviation, decoding and notes, of a sample of the training images."""
    store = images.store
    words = [(shard.url, shard.size, shard.version) for shard in store.shards]
    path = store.cache.root / "index" / f"{key_of('colors', words, decoding)}.json"
    try:
        kept = checked(_Colors, read_json(path), path)
        mean, std, limits = kept.mean, kept.std, tuple(kept.range)
    except (OSError, UserError):  # it is measured again
        sample = replace(images.sample(_SAMPLE), decoding=decoding, skipped=Skipped())
        sample.prepare(range(len(sample)))
        limits = estimate_range(sample, _SAMPLE)[0] or ()
        if limits:  # with a single value there is no range to scale to, and no color to measure
            range_note(images.name, limits, decoding.range, len(sample), len(images))
        how = replace(decoding, range=decoding.range or limits or None)
        mean, std = estimate_mean_std(replace(sample, decoding=how), _SAMPLE)
        content = {"mean": mean, "std": std, "range": limits}
        with suppress(UserError):
            atomic_write(path, json.dumps(content).encode())
    notes: tuple[str, ...] = ()
    if limits:
        low, high = decoding.range or limits
        notes = (
            f"more than 8 bits: values from {low:,.6g} to {high:,.6g} become black to white "
            f"({'as set' if decoding.range else 'measured on a sample of four shards'})",
        )
        decoding = replace(decoding, range=(low, high))
    colors: tuple[RGB, RGB] = (mean, std)  # type: ignore[assignment]
    return {"mean": colors[0], "std": colors[1], "decoding": decoding, "notes": notes}


def _understood(
    splits: _Splits,
    train: ShardImages,
    test: ShardImages | None,
    classes: tuple[str, ...],
    lazy: bool,
) -> str:
    """How the shards were interpreted, in a line."""
    shards = train.store.shards
    size = sum(shard.size for shard in shards)
    what = f"in {len(classes):,} classes" if classes else "without classes"
    if lazy:
        what = "labels are not read, as there are no shards to evaluate on"
    line = f"shards: train {len(train):,} images {what} in {counted(len(shards), 'shard')}"
    line += f" ({memory(size)})"
    if test is not None:
        line += f", evaluation on {len(test):,} in {counted(len(splits.test), 'shard')}"
    if splits.unused:
        line += f"; not used: {counted(splits.unused, 'shard')}"
    return line


def _unlabeled(train: ShardImages, classes: tuple[str, ...], lazy: bool) -> tuple[str, ...]:
    """A note if only some images have a label."""
    if lazy or classes:
        return ()
    missing = {number: int((of.label == "").sum()) for number, of in train.store.held.items()}
    if sum(missing.values()) == len(train):
        return ()
    first = next(number for number, count in missing.items() if count)
    return (
        f"note: labels are not used, as {sum(missing.values()):,} of {len(train):,} images have "
        f"none, first in {shown(os.path.basename(train.store.shards[first].place))}",
    )


def _notes(train: ShardImages, reading: Reading) -> tuple[str, ...]:
    store = train.store
    lines = []
    for shard, located in ((store.shards[n], found) for n, found in store.held.items()):
        lines += [f"{os.path.basename(shard.place)}: {note}" for note in located.notes]
    few = [f"note: {shown(line)}" for line in lines[:3]]
    if len(lines) > len(few):
        few.append(f"note: the same or similar in {len(lines) - len(few):,} other shards")
    if not store.copies:
        limit = store.cache.limit
        needed = reading.bytes_at_once(train)
        few.append(
            f"note: each image is requested on its own, since --cache_size {memory(limit)} has no "
            f"room for the {memory(needed)} of shards that are read at the same time"
        )
    return tuple(few)
