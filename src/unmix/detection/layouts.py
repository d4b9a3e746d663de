"""Images with boxes from a folder, in the layout of PASCAL VOC or of COCO."""

from __future__ import annotations

from pathlib import Path

from unmix.data.decoding import Decoding
from unmix.detection.boxes import BoxImages
from unmix.detection.coco import coco_files, load_coco
from unmix.detection.voc import load_voc, voc_folder
from unmix.errors import UserError
from unmix.files import as_path

__all__ = ["load_boxes"]


def load_boxes(
    data: Path | str, limits: tuple[float, float] | None = None
) -> tuple[BoxImages, BoxImages]:
    """Training and test images of a folder in VOC's or COCO's layout.

    VOC: `Annotations/*.xml`, `JPEGImages/` and `ImageSets/Main/*.txt`, in the folder or below it
    (`VOCdevkit/VOC2007`). COCO: `annotations/*.json`, one file for training and one for
    validation.

    Args:
        data: The folder.
        limits: Values of images of more than 8 bits that become 0 and 255; by default 0 and 65535.

    Raises:
        UserError: if it has neither layout, a file is damaged, or a split has no objects.
    """
    folder = as_path(data)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}.", parameter="data")
    if (root := voc_folder(folder)) is not None:
        train, test = load_voc(root)
    elif (files := coco_files(folder)) is not None:
        train, test = load_coco(folder, files)
    else:
        raise UserError(
            f"{folder} has neither VOC's layout (Annotations/, JPEGImages/, ImageSets/Main/) nor "
            "COCO's (annotations/ with a *train*.json and a *val*.json or *test*.json).",
            parameter="data",
        )
    for split in (train, test):
        split.decoding = Decoding(range=limits)
        if split.objects == 0:
            raise UserError(
                f"{folder}: the {split.split} split has {len(split)} images and no object to "
                f"{'learn' if split.training else 'find'}.",
                parameter="data",
            )
    return train, test
