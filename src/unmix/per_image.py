"""Which test images a run's encoder predicted correctly, in a small file beside `results.json`.

With it two single runs can be compared image by image, on the same test images alone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from unmix.errors import UserError
from unmix.files import atomic_write, read_json
from unmix.names import json_bytes
from unmix.results import Evaluation
from unmix.rows import settings_of
from unmix.schema import Between, Percent, checked

__all__ = ["FILE", "PerImage", "keep_per_image", "per_image"]

FILE = "correct.json"
_SCHEMA = 1
# A row's accuracy is the mean over its images, but for the rounding of a sum.
_CLOSE = 1e-6


@dataclass(frozen=True)
class PerImage:
    """One measurement of an encoder, image by image.

    Attributes:
        row: Its row of `results.json`.
        images: Digest of the test images and their order.
        correct: Whether each was predicted correctly, bool `(M,)`.
        train: Digest of the training images; None in files of earlier versions.
    """

    row: Mapping[str, Any]
    images: str
    correct: np.ndarray
    train: str | None = None


def keep_per_image(folder: Path, measurements: Sequence[PerImage]) -> None:
    """Add measurements to a run folder's file, in place of those with the same settings.

    Args:
        folder: The run folder; hold its `results_lock`.
        measurements: To keep.

    Raises:
        UserError: if the file cannot be written.
    """
    if not measurements:
        return
    entries: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):  # a damaged file is begun anew
        entries = [asdict(entry) for entry in _entries(folder)]
    for each in measurements:
        measured = json.loads(json.dumps(settings_of(each.row)))
        entries = [entry for entry in entries if entry["measured"] != measured]
        packed = np.packbits(np.asarray(each.correct, bool)).tobytes()
        entries.append(
            {
                "measured": measured, "top1": each.row["top1"], "images": each.images,
                "count": len(each.correct), "correct": base64.b64encode(packed).decode(),
                "train": each.train,
            }
        )  # fmt: skip
    text = json.dumps({"schema": _SCHEMA, "rows": entries}, ensure_ascii=False) + "\n"
    atomic_write(Path(folder) / FILE, json_bytes(text))


def per_image(folder: Path, row: Evaluation) -> PerImage:
    """What was kept of a row of `results.json`.

    Raises:
        UserError: with the reason in a clause, if there is nothing.
    """
    plain = {"protocol": row.protocol, "epoch": row.epoch, "top1": row.top1, **row.details}
    try:
        entries = _entries(folder)
        found = next((e for e in entries if e.measured == settings_of(plain)), None)
        if found is not None:
            packed = np.frombuffer(base64.b64decode(found.correct), np.uint8)
            if len(packed) != -(-found.count // 8):
                raise ValueError("another number of images")
            correct = np.unpackbits(packed, count=found.count).astype(bool)
            kept = PerImage(plain, found.images, correct, found.train)
    except FileNotFoundError:
        found = None
    except (OSError, ValueError):
        raise UserError(f"its {FILE} is damaged") from None
    if found is None:
        raise UserError("it kept no predictions of single images")
    # A version that kept none may have measured the row again.
    if len(correct) == 0 or abs(100 * correct.mean() - row.top1) > _CLOSE:
        raise UserError(f"its {FILE} is of another measurement")
    return kept


@dataclass(frozen=True)
class _Entry:
    """A row of the file."""

    measured: Mapping[str, Any]
    images: str
    count: Annotated[int, Between(1, 1e9)]
    correct: str
    top1: Percent | None = None
    train: str | None = None


@dataclass(frozen=True)
class _Content:
    """What the file must hold."""

    schema: Literal[1]
    rows: list[_Entry]


def _entries(folder: Path) -> list[_Entry]:
    path = Path(folder) / FILE
    return checked(_Content, read_json(path), path).rows
