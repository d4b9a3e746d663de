"""Folders in PASCAL VOC's layout."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from unmix.detection.boxes import BoxImages, Noted, annotated, within
from unmix.errors import UserError

__all__ = ["load_voc", "read_xml", "voc_folder"]

_MOST = 2**24  # bytes of an annotation
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp")


def voc_folder(folder: Path) -> Path | None:
    """The folder that holds `Annotations/` and `ImageSets/`: this one, or the only one below."""
    found = [
        path
        for pattern in (".", "*", "*/*")
        for path in sorted(folder.glob(pattern) if pattern != "." else [folder])
        if (path / "Annotations").is_dir() and (path / "ImageSets" / "Main").is_dir()
    ]
    if len(found) > 1 and folder not in found:
        raise UserError(
            f"{folder} holds several VOC folders, {found[0].name} and {found[1].name}; give one.",
            parameter="data",
        )
    return found[0] if found else None


def load_voc(root: Path) -> tuple[BoxImages, BoxImages]:
    """Training and test images: `trainval` and `test` if both lists exist, else `train` and `val`.

    Raises:
        UserError: if lists, annotations or images are missing or damaged.
    """
    lists = root / "ImageSets" / "Main"
    names = ("trainval", "test") if (lists / "test.txt").exists() else ("train", "val")
    if names[0] == "trainval" and not (lists / "trainval.txt").exists():
        names = ("train", "test")
    ids = [_ids(lists / f"{name}.txt") for name in names]
    noted = (Noted(), Noted())
    parsed = [
        [(name, *_objects(root, name, note)) for name in split]
        for split, note in zip(ids, noted, strict=True)
    ]
    classes = sorted({label for _, _, _, objects in parsed[0] for _, label, _ in objects})
    number = {name: k for k, name in enumerate(classes, start=1)}
    both = []
    for split, note, images in zip(("train", "test"), noted, parsed, strict=True):
        made = []
        for name, path, size, objects in images:
            unknown = sorted({label for _, label, _ in objects} - set(classes))
            if unknown:
                raise UserError(
                    f"{root / 'Annotations' / name}.xml: the class {unknown[0]!r} is not in the "
                    "training split, so it cannot be learned."
                )
            numbered = [(box, number[label], skip) for box, label, skip in objects]
            made.append(annotated(path, name, numbered, size, note))
        both.append(BoxImages(made, classes, split, note, training=split == "train"))
    return both[0], both[1]


Objects = list[tuple[list[float], str, bool]]


def _ids(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise UserError(f"{path}: cannot be read ({reason}).") from None
    found = [line.split()[0] for line in lines if line.strip()]
    if not found:
        raise UserError(f"{path}: lists no image.")
    return found


def _objects(root: Path, name: str, noted: Noted) -> tuple[Path, tuple[int, int] | None, Objects]:
    """The image of an annotation, its size, and its objects: box, class, whether difficult."""
    file = within(root / "Annotations", f"{name}.xml", root / "ImageSets")
    tree = read_xml(file)
    pictures = root / "JPEGImages"
    stated = tree.findtext("filename") or ""
    candidates = [f"{name}{suffix}" for suffix in _SUFFIXES]
    path = next(
        (
            within(pictures, n, file)
            for n in [*candidates, stated]
            if n and (pictures / n).is_file()
        ),
        None,
    )
    if path is None:
        raise UserError(f"{file}: its image {pictures / (stated or candidates[0])} is missing.")
    size = _size(tree)
    objects: Objects = []
    for each in tree.findall("object"):
        label, box = (each.findtext("name") or "").strip(), each.find("bndbox")
        try:
            corners = [
                float((box.findtext(side) if box is not None else None) or "")
                for side in ("xmin", "ymin", "xmax", "ymax")
            ]
        except ValueError:
            noted.add("object without a box of four numbers: left out", name)
            continue
        if not label:
            noted.add("object without a name: left out", name)
            continue
        # VOC's pixels are counted from 1, and the last one is within the box.
        corners = [corners[0] - 1, corners[1] - 1, corners[2], corners[3]]
        objects.append((corners, label, (each.findtext("difficult") or "0").strip() == "1"))
    return path, size, objects


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(tree.findtext(f"size/{s}") or "")) for s in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None


def read_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file that may come from anywhere.

    Document types are refused, because entities can expand to any size or read other files.

    Raises:
        UserError: if it cannot be read, is too large or damaged, or has a document type.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(content) > _MOST:
        raise UserError(f"{path}: has {len(content):,} bytes, which no annotation needs.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if "<!doctype" in text.lower() or "<!entity" in text.lower():
        raise UserError(f"{path}: has a document type or entities, which are not accepted.")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: is not valid XML ({error}).") from None
