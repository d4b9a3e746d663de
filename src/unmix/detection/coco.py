"""Folders in COCO's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unmix.detection.boxes import Annotated, BoxImages, Noted, annotated, within
from unmix.errors import UserError
from unmix.files import read_json

__all__ = ["coco_files", "load_coco"]


def coco_files(folder: Path) -> tuple[Path, Path] | None:
    """The annotations of the training and of the test images; None if there are none.

    Of `annotations/*.json`, else `*.json` or `*/_annotations*.json`; of several those named
    instances.

    Raises:
        UserError: if a split has several files.
    """
    found: list[Path] = []
    for pattern in ("annotations/*.json", "*.json", "*/*annotations*.json"):
        found = sorted(folder.glob(pattern))
        if found:
            break
    train = _one(found, ("train",), folder)
    others = [file for file in found if file != train]  # "trainval" has "val" in it
    test = _one(others, ("val", "valid"), folder) or _one(others, ("test",), folder)
    return (train, test) if train is not None and test is not None else None


def _one(files: Iterable[Path], words: tuple[str, ...], folder: Path) -> Path | None:
    named = [f for f in files if any(w in str(f.relative_to(folder)).lower() for w in words)]
    instances = [f for f in named if "instances" in f.name.lower()]
    named = instances or named
    if len(named) > 1:
        raise UserError(
            f"{folder} has several annotations for a split, {named[0].name} and {named[1].name}; "
            "leave one.",
            parameter="data",
        )
    return named[0] if named else None


def load_coco(folder: Path, files: tuple[Path, Path]) -> tuple[BoxImages, BoxImages]:
    """Training and test images; classes are the categories of the training file, by id.

    Raises:
        UserError: if a file is damaged, an image is missing, or the splits' categories differ.
    """
    contents = [_read(file) for file in files]
    names = [_categories(file, content) for file, content in zip(files, contents, strict=True)]
    if extra := set(names[1].values()) - set(names[0].values()):
        raise UserError(
            f"{files[1]}: the category {sorted(extra)[0]!r} is not in {files[0].name}, so it "
            "cannot be learned."
        )
    classes = list(dict.fromkeys(names[0][key] for key in sorted(names[0])))
    number = {name: k for k, name in enumerate(classes, start=1)}
    made = []
    for split, file, content, known in zip(("train", "test"), files, contents, names, strict=True):
        noted, numbers = Noted(), {key: number[name] for key, name in known.items()}
        images = _images(folder, file, content, numbers, noted)
        made.append(BoxImages(images, classes, split, noted, training=split == "train"))
    return made[0], made[1]


def _images(
    folder: Path,
    file: Path,
    content: Mapping[str, Any],
    numbers: Mapping[int, int],
    noted: Noted,
) -> list[Annotated]:
    listed: dict[Any, Mapping[str, Any]] = {}
    for image in content["images"]:
        key, name = _field(image, "id"), _field(image, "file_name")
        if not isinstance(key, int | str) or not isinstance(name, str):
            raise UserError(f"{file}: an image has no id or no file_name.")
        if key in listed:
            raise UserError(f"{file}: two images have the id {key}.")
        listed[key] = image
    objects: dict[Any, list[tuple[list[float], int, bool]]] = {key: [] for key in listed}
    for each in content["annotations"]:
        where = f"annotation {_field(each, 'id')}"
        key, category, box = (_field(each, n) for n in ("image_id", "category_id", "bbox"))
        if not isinstance(key, int | str) or key not in objects:
            noted.add("annotation of an image that is not listed: left out", where)
        elif not isinstance(category, int) or category not in numbers:
            noted.add("annotation of a category that is not listed: left out", where)
        elif not _is_box(box):
            noted.add("annotation without a box of four numbers: left out", where)
        else:
            x, y, width, height = map(float, box)
            objects[key].append(
                ([x, y, x + width, y + height], numbers[category], bool(each.get("iscrowd")))
            )
    return [
        annotated(_path(folder, file, image["file_name"]), f"image {key}", objects[key],
                  _size(image), noted)
        for key, image in listed.items()
    ]  # fmt: skip


def _path(folder: Path, file: Path, name: str) -> Path:
    """The file of an image: beside its annotations, in a folder of the split's name, or images/."""
    part = file.stem.split("_", 1)[-1]  # instances_train2017
    places = [file.parent, folder / part, folder / "images" / part, folder / "images", folder]
    for place in places:
        if (place / name).is_file():
            return within(folder, str((place / name).relative_to(folder)), file)
    within(folder, name, file)
    raise UserError(f"{file}: its image {name!r} is in none of {part}/, images/{part}/, images/.")


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return None


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    )


def _field(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, Mapping) else None


def _categories(file: Path, content: Mapping[str, Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for each in content["categories"]:
        key, name = _field(each, "id"), _field(each, "name")
        if not isinstance(key, int) or not isinstance(name, str):
            raise UserError(f"{file}: a category has no id or no name.")
        found[key] = name
    if not found:
        raise UserError(f"{file}: lists no category.")
    return found


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = read_json(file, at_most=1 << 31)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{file}: cannot be read as JSON ({reason}).") from None
    for part in ("images", "annotations", "categories"):
        if not isinstance(_field(content, part), list):
            raise UserError(f"{file}: has no list of {part}, so it is not COCO's format.")
    return content
