"""Numbers, durations, and names of methods and measures, as all output has them."""

from __future__ import annotations

import math
import re
import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unmix.names import shown

__all__ = [
    "DASH",
    "QUALITY",
    "Answer",
    "counted",
    "duration",
    "mean_and_std",
    "measure_name",
    "measure_title",
    "memory",
    "method_name",
    "number",
    "padded",
    "percent",
    "percents",
    "points",
    "quality_line",
    "rate",
    "ratio",
    "run_label",
    "text_width",
    "value_text",
]


@dataclass(frozen=True)
class Answer:
    """What the page opens with, in whole sentences.

    Attributes:
        headline: Which condition is better, and by how much; or that nothing is known yet.
        sure: How sure: interval, seeds, p-value.
        cost: At what extra cost.
        others: The other comparisons, one sentence each.
    """

    headline: str
    sure: str = ""
    cost: str = ""
    others: Sequence[str] = ()


DASH = "–"
"""What a table shows where there is no value."""

_METHODS = {
    "all4one": "All4One",
    "barlow": "Barlow Twins",
    "byol": "BYOL",
    "cmc": "CMC",
    "deepclusterv2": "DeepCluster-v2",
    "densecl": "DenseCL",
    "dino": "DINO",
    "distill": "Distillation",
    "ibot": "iBOT",
    "ijepa": "I-JEPA",
    "insdis": "InsDis",
    "lejepa": "LeJEPA",
    "mae": "MAE",
    "moco": "MoCo",
    "mocov3": "MoCo v3",
    "nnbyol": "NNBYOL",
    "nnclr": "NNCLR",
    "pirl": "PIRL",
    "ressl": "ReSSL",
    "simclr": "SimCLR",
    "simdino": "SimDINO",
    "simmim": "SimMIM",
    "simsiam": "SimSiam",
    "swav": "SwAV",
    "tico": "TiCo",
    "vicreg": "VICReg",
    "wmse": "W-MSE",
}
_MEASURES = {
    "knn": "kNN",
    "linear": "linear",
    "cmc": "linear (CMC)",
    "moco": "linear (MoCo)",
    "rankme": "RankMe",
    "alpha_req": "alpha-ReQ",
    "lidar": "LiDAR",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "whitening": "linear (W-MSE)",
    "swav": "linear (SwAV)",
    "barlow": "linear (Barlow Twins)",
    "vicreg": "linear (VICReg)",
    "dino": "linear (DINO)",
    "knn-euclidean": "kNN (Euclidean)",
    "top1": "top-1",
    "top5": "top-5",
    "images_per_second": "images/s",
    "norm": "L2 norm",
    "max": "maximum",
    "max_share": "largest share",
    "participation_ratio": "participation ratio",
    "peak_memory_bytes": "peak memory",
    "total_seconds": "with evaluations",
    "seconds": "training time",
}

_TRAINED = {"finetune": "fine-tuned", "scratch": "from scratch"}
"""Protocols that train the encoder too, on labels: all, or those that the name ends in."""


def method_name(method: str) -> str:
    """A method's name as in the literature; an unknown one unchanged."""
    return _METHODS.get(re.sub(r"[^a-z0-9]", "", method.lower()), method)


def run_label(method: str, mixture: str) -> str:
    """`MoCo` for a baseline, and `MoCo + IM` for a run with a mixture."""
    name = method_name(method)
    return name if mixture == "none" else f"{name} + {mixture}"


QUALITY = {"rankme": 1, "lidar": 1, "alpha_req": 2, "alignment": 3, "uniformity": 2}
"""The measures that need no labels, each with its decimals."""


def quality_line(found: Mapping[str, Any]) -> str:
    """The measures that need no labels: "RankMe 43.1, LiDAR 30.2, alpha-ReQ 1.12, ..."."""
    return ", ".join(
        f"{measure_name(name)} {found[name]:.{decimals}f}"
        for name, decimals in QUALITY.items()
        if isinstance(found.get(name), int | float)
    )


def measure_name(word: str) -> str:
    """The name of a measure or an evaluation protocol within a sentence.

    Args:
        word: As in `results.json`: "knn", "participation_ratio", "images_per_second"; or a
            protocol on other data, "knn on digits", or of a layer, "knn on digits, layer conv1".
    """
    word, comma, layer = word.partition(", ")
    name, on, data = word.partition(" on ")
    rest = on + data + comma + layer
    for start, trained in _TRAINED.items():
        if name.startswith(start):
            part = name.removeprefix(start).strip("-").replace("-", " ")
            return (f"{trained} ({part})" if part else trained) + rest
    return (_MEASURES.get(name) or name.replace("_", " ")) + rest


def measure_title(word: str) -> str:
    """The name of a measure as a heading: its first letter is a capital one, except in kNN."""
    name = measure_name(word)
    kept = name[:1] == "k" and name[1:2].isupper()
    return name if kept else name[:1].upper() + name[1:]


def duration(seconds: float) -> str:
    """A duration: 0.85 s, 4.2 s, 42 s, 3:07 min, 5:12 h."""
    if not math.isfinite(seconds) or seconds < 0:
        return DASH
    if round(seconds, 1) < 10:
        return f"{seconds:.2g} s" if 0 < seconds < 0.95 else f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def percent(accuracy: float) -> str:
    """A percentage, without its sign: 62.1."""
    return f"{accuracy:.1f}"


def points(difference: float) -> str:
    """A difference of two percentages: +1.2."""
    return f"{difference:+.1f}"


def percents(accuracies: Sequence[float]) -> str:
    """Mean and standard deviation (n - 1) of percentages over seeds: 62.1 ± 0.4.

    A single one has no deviation; without any it is a dash.
    """
    if not accuracies:
        return DASH
    mean = percent(statistics.fmean(accuracies))
    spread = "" if len(accuracies) == 1 else f" ± {statistics.stdev(accuracies):.1f}"
    return mean + spread


def mean_and_std(mean: float, std: float) -> str:
    """A mean with its standard deviation, which has two significant digits: 1,220 ± 110."""
    if not (math.isfinite(mean) and math.isfinite(std)):
        return DASH
    if std == 0:
        return f"{number(mean)} ± 0"
    decimals = 1 - math.floor(math.log10(abs(std)))
    if decimals > 8:  # far below what a reader can use
        return f"{number(mean)} ± {number(std)}"
    mean, std = round(mean, decimals), round(std, decimals)
    return f"{mean:,.{max(0, decimals)}f} ± {std:,.{max(0, decimals)}f}"


def number(x: float, digits: int = 4) -> str:
    """A number with some significant digits and no exponent where it can be read without one.

    Args:
        x: Such as 1219.7 (1,220), 0.85413 (0.8541), 0.06 (0.06), 3 (3), 1e-9 (1e-09).
        digits: Significant digits of a number that is not whole.
    """
    if not math.isfinite(x):
        return str(x)
    if x == int(x) and abs(x) < 1e15:
        return f"{int(x):,}"
    if abs(x) < 1e-4:
        return f"{x:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(x))))
    text = f"{x:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rate(images_per_second: float) -> str:
    """Images per second with the digits that tell: 1,234, 56, 7.8, 0.034."""
    if images_per_second >= 10:
        return f"{images_per_second:,.0f}"
    return f"{images_per_second:.1f}" if images_per_second >= 1 else f"{images_per_second:.2g}"


def ratio(times: float) -> str:
    """How many times as much: 1.75x, 12x."""
    return f"{times:,.0f}x" if times >= 10 else f"{times:.2f}x"


def memory(size: float) -> str:
    """Bytes: 1.2 GB, 340 MB, 12 kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.{0 if size >= 10 * unit else 1}f} {name}"
    return f"{size / 1e3:.0f} kB"


def padded(text: str, width: int, right: bool = False) -> str:
    """A text with the blanks that it lacks, at its end or before it.

    Args:
        text: One line.
        width: Columns of a terminal.
        right: Whether it is at the right, as numbers are.
    """
    blanks = " " * (width - text_width(text))
    return blanks + text if right else text + blanks


def text_width(text: str) -> int:
    """The columns of a terminal that a text takes: two for a wide letter, as of Chinese."""
    if text.isascii():
        return len(text)
    marks = sum(unicodedata.category(letter) in ("Mn", "Me", "Cf") for letter in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def counted(n: int, what: str, plural: str | None = None) -> str:
    """A number of things: 1 run, 1,234 images.

    Args:
        n: How many.
        what: One of them.
        plural: Of them; by default with an s.
    """
    return f"{n:,} {what if n == 1 else plural or what + 's'}"


def value_text(x: Any, name: str = "") -> str:
    """The value of a setting or of a record, as one line.

    Args:
        x: A number, text, list or mapping of a run's settings or results.
        name: Of it, which says what a number is: seconds, bytes, images per second.
    """
    if x is None:
        return DASH
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, int | float):
        return _measured(x, name)
    if isinstance(x, list | tuple):
        return " ".join(value_text(item, name) for item in x)
    return shown(x)


def _measured(x: float, name: str) -> str:
    if name == "seconds" or name.endswith("_seconds"):
        return duration(x)
    if name == "bytes" or name.endswith("_bytes"):
        return memory(x)
    if name == "images_per_second":
        return rate(x)
    if name in ("seed", "year") or (isinstance(x, int) and abs(x) < 10_000):
        return str(x)
    return number(x)
