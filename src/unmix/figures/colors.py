"""Colors of methods and conditions, and how far apart they look, also to the color-blind.

Every color has a contrast of about 3 to 1 or more on white and on a dark page, so that a condition
has one color on both.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["PALETTE", "color_of", "difference", "distinct_colors"]

_METHODS: dict[str, str] = {
    "moco": "#CC3311",
    "cmc": "#0077BB",
    "distill": "#B4477F",
    "insdis": "#009966",
    "simclr": "#E06C20",
    "byol": "#AA3377",
    "swav": "#2A96BE",
    "simsiam": "#8A6A10",
    "vicreg": "#888800",
    "wmse": "#707070",
    "dino": "#A63A78",
    "barlow": "#6A5AD8",
    "mocov3": "#F05A5A",
    "nnclr": "#2A8A4A",
    "pirl": "#8872E8",
    "deepclusterv2": "#5078A0",
    "lejepa": "#B08010",
    "ressl": "#5F8F2F",
    "tico": "#C05A8A",
    "all4one": "#40907A",
    "densecl": "#D06030",
    "nnbyol": "#B8509A",
    "ibot": "#3F7FBF",
    "simdino": "#9A4FC0",
    "mae": "#A0522D",
    "ijepa": "#2E8B8B",
    "simmim": "#B07A30",
}

PALETTE = (
    "#85858A", "#CC3311", "#0077BB", "#30A854", "#CC8400", "#9078FC", "#C000A8", "#C03060",
)  # fmt: skip
"""Colors of conditions, the reference's gray first; pairs differ by 15 or more for everyone."""

_APART = 12.0

# Machado, Oliveira and Fernandes 2009, at full severity: from linear RGB to what is seen.
_DEFICIENCIES = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
_VISIONS = (np.eye(3), *map(np.array, _DEFICIENCIES.values()))
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip


def difference(one: str, other: str) -> float:
    """The smallest difference of two colors (CIE76) over normal and color-deficient vision.

    Args:
        one: As `#RRGGBB`.
        other: As `#RRGGBB`.
    """
    distances = np.linalg.norm(_seen(one) - _seen(other), axis=1)
    return float(distances.min())


def distinct_colors(wanted: Sequence[str]) -> list[str]:
    """Replace colors that look too much like an earlier one; few stay as they are.

    Args:
        wanted: Preferred colors, such as those of methods.
    """
    taken: list[str] = []
    for color in wanted:
        apart = {
            c: min((difference(c, other) for other in taken), default=np.inf)
            for c in (color, *PALETTE[1:], PALETTE[0])
        }
        good = [c for c, distance in apart.items() if distance >= _APART]
        taken.append(good[0] if good else max(apart, key=lambda c: apart[c]))
    return taken


def color_of(method: str) -> str:
    """Return a method's color: MoCo red, CMC blue, InsDis green, others from a fixed list.

    A version of a method (`moco-v2`) has that of the method.
    """
    plain = re.sub(r"[^a-z0-9]", "", method.lower())
    known = _METHODS.get(plain) or _METHODS.get(re.sub(r"v\d+$|\d+$", "", plain))
    others = PALETTE[1:]
    return known or others[zlib.crc32(plain.encode()) % len(others)]


def _seen(color: str) -> NDArray[np.float64]:
    """CIELAB coordinates of a color for each kind of vision, (4, 3)."""
    values = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.stack([vision @ linear for vision in _VISIONS]).clip(0, 1)
    ratios = seen @ _XYZ.T / _XYZ.sum(axis=1)
    f = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), (841 * ratios / 108) + 4 / 29)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
