"""Data sets, and image files decoded to 8-bit RGB."""

from __future__ import annotations

from unmix.data.dataset import DataSet
from unmix.data.decoding import BrokenImage, Decoding, decode
from unmix.data.imagenet import IMAGENET100
from unmix.data.imageset import FileImages, ImageSet, Skipped, StreamedImages, TensorImages
from unmix.data.packed import PackedImages
from unmix.data.reading import read_uint8
from unmix.data.registry import DATA_SETS, Lists, Shards, load
from unmix.data.statistics import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_normalization,
    estimate_mean_std,
)

__all__ = [
    "DATA_SETS",
    "IMAGENET100",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "BrokenImage",
    "DataSet",
    "Decoding",
    "FileImages",
    "ImageSet",
    "Lists",
    "PackedImages",
    "Shards",
    "Skipped",
    "StreamedImages",
    "TensorImages",
    "check_normalization",
    "decode",
    "estimate_mean_std",
    "load",
    "read_uint8",
]
