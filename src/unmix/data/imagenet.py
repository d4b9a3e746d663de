"""`imagenet`, `imagenet100` and `tiny-imagenet`: class trees of JPEGs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from unmix.data.dataset import DataSet, Request, file_images
from unmix.data.imageset import ImageSet
from unmix.data.listing import Listing, folders_in, images_in, list_classes
from unmix.data.statistics import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["IMAGENET", "IMAGENET100", "IMAGENET_100", "TINY_IMAGENET"]

# The subset that CMC (arXiv 1906.05849) chose; MoCo and this method's paper report on the same.
IMAGENET100 = tuple(
    """
    n01558993 n01692333 n01729322 n01735189 n01749939 n01773797 n01820546 n01855672
    n01978455 n01980166 n01983481 n02009229 n02018207 n02085620 n02086240 n02086910
    n02087046 n02089867 n02089973 n02090622 n02091831 n02093428 n02099849 n02100583
    n02104029 n02105505 n02106550 n02107142 n02108089 n02109047 n02113799 n02113978
    n02114855 n02116738 n02119022 n02123045 n02138441 n02172182 n02231487 n02259212
    n02326432 n02396427 n02483362 n02488291 n02701002 n02788148 n02804414 n02859443
    n02869837 n02877765 n02974003 n03017168 n03032252 n03062245 n03085013 n03259280
    n03379051 n03424325 n03492542 n03494278 n03530642 n03584829 n03594734 n03637318
    n03642806 n03764736 n03775546 n03777754 n03785016 n03787032 n03794056 n03837869
    n03891251 n03903868 n03930630 n03947888 n04026417 n04067472 n04099969 n04111531
    n04127249 n04136333 n04229816 n04238763 n04336792 n04418357 n04429376 n04435653
    n04485082 n04493381 n04517823 n04589890 n04592741 n07714571 n07715103 n07753275
    n07831146 n07836838 n13037406 n13040303
    """.split()  # noqa: SIM905 - a literal of words takes a hundred lines
)
"""The WordNet ids of ImageNet-100's classes (Tian et al. 2020), sorted."""


_TINY_FOLDER = "tiny-imagenet-200"
_ANNOTATIONS = "val_annotations.txt"


def _read_imagenet(data_set: DataSet, request: Request) -> ImageSet:
    root = data_set.root(request)
    train = root / "train"
    if not train.is_dir():
        raise data_set.missing(root, "there is no train/ in it")
    wanted = _wanted(data_set, train)
    if request.split == "test":
        test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
        if test is None:
            raise data_set.missing(root, "there is no val/ in it")
        return _images(data_set, request, _class_folders(data_set, test, wanted))
    return _images(data_set, request, _class_folders(data_set, train, wanted))


def _wanted(data_set: DataSet, train: Path) -> Sequence[str]:
    """The class folders of the data set."""
    if data_set is IMAGENET_100:
        return IMAGENET100
    folders = folders_in(train)
    if len(folders) != data_set.classes:
        raise data_set.missing(
            train,
            f"it holds {len(folders):,} class folders, not {data_set.classes:,} (for a part of "
            f"ImageNet give the folder itself as --data)",
        )
    return folders


def _class_folders(data_set: DataSet, folder: Path, wanted: Sequence[str]) -> Listing:
    present = set(folders_in(folder))
    absent = sorted(set(wanted) - present)
    if absent:
        raise data_set.missing(
            folder,
            f"{len(absent):,} of the {len(wanted):,} class folders are missing, first {absent[0]}",
        )
    listing = list_classes(folder, wanted)
    _check_not_empty(data_set, folder, listing)
    return listing


def _check_not_empty(data_set: DataSet, folder: Path, listing: Listing) -> None:
    assert listing.labels is not None
    assert listing.classes is not None
    empty = sorted(set(range(len(listing.classes))) - set(listing.labels))
    if empty:
        raise data_set.missing(
            folder, f"class {listing.classes[empty[0]]} has no images ({len(empty):,} such classes)"
        )


def _images(data_set: DataSet, request: Request, listing: Listing) -> ImageSet:
    return file_images(
        listing,
        name=data_set.name,
        split="test" if request.split == "test" else "train",
        mean=data_set.mean,
        std=data_set.std,
        skipped=request.skipped,
        decoding=request.decoding,
    )


def _read_tiny(data_set: DataSet, request: Request) -> ImageSet:
    root = data_set.root(request)
    if (root / _TINY_FOLDER).is_dir():
        root = root / _TINY_FOLDER
    train = root / "train"
    if not train.is_dir():
        raise data_set.missing(root, "there is no train/ in it")
    classes = folders_in(train)
    if len(classes) != data_set.classes:
        raise data_set.missing(
            train, f"it holds {len(classes):,} class folders, not {data_set.classes:,}"
        )
    if request.split != "test":
        listing = _tiny_train(train, classes)
        _check_not_empty(data_set, train, listing)
    elif (root / "val" / _ANNOTATIONS).is_file():
        listing = _tiny_annotated(data_set, root / "val", classes)
    elif (root / "val").is_dir():
        listing = _class_folders(data_set, root / "val", classes)
    else:
        raise data_set.missing(root, "there is no val/ in it")
    return _images(data_set, request, listing)


def _tiny_train(train: Path, classes: list[str]) -> Listing:
    """List the training images, which are one folder deeper than in a class tree."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        place = os.path.join(train, name, "images")
        if not os.path.isdir(place):
            place = os.path.join(train, name)  # a copy that was rearranged as a class tree
        images = [os.path.join(place, image) for image in images_in(place)]
        paths += images
        labels += [label] * len(images)
    return Listing(paths, labels, tuple(classes))


def _tiny_annotated(data_set: DataSet, val: Path, classes: list[str]) -> Listing:
    """List the validation images, labeled by a file of tab-separated names, wnids and boxes."""
    place = val / "images"
    if not place.is_dir():
        raise data_set.missing(val, "there is no images/ in it")
    images = images_in(place)
    class_of: dict[str, str] = {}
    for line in (val / _ANNOTATIONS).read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition("\t")
        class_of[name] = rest.partition("\t")[0].strip()
    index = {name: label for label, name in enumerate(classes)}
    for name in images:
        if class_of.get(name) not in index:
            raise data_set.missing(val, f"{_ANNOTATIONS} gives no class of train/ to {name}")
    if not images:
        raise data_set.missing(place, "it holds no images")
    labels = [index[class_of[name]] for name in images]
    return Listing([os.path.join(place, name) for name in images], labels, tuple(classes))


_LAYOUT = "DIR/{train, val}/<wnid>/*.JPEG"

IMAGENET = DataSet(
    name="imagenet",
    size=224,
    classes=1000,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    source="as torchvision's pretrained models and the published ImageNet protocols use them",
    read=_read_imagenet,
    layout=_LAYOUT,
)

IMAGENET_100 = DataSet(
    name="imagenet100",
    size=224,
    classes=100,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    source="ImageNet's, as CMC uses them",
    read=_read_imagenet,
    layout=_LAYOUT,
)
"""The 100 classes of `IMAGENET100`, from a whole ImageNet tree or one that has no other classes."""

TINY_IMAGENET = DataSet(
    name="tiny-imagenet",
    size=64,
    classes=200,
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
    source="pixels of the 100,000 training images, as commonly published",
    read=_read_tiny,
    layout=f"DIR/{_TINY_FOLDER}/{{train/<wnid>/images, val/images, val/{_ANNOTATIONS}}}",
)
"""The tree as published: validation images lie in one folder, and a file has their classes. Its
`test/` has no labels, so the validation images are the test split."""
