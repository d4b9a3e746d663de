"""unmix: self-supervised pretraining of vision models with image mixtures.

In anyone's training loop:

    draw = unmix.UnMix().draw(x1.shape, generator)
    loss = criterion(f(x1), targets)
    loss = loss + unmix.shared_loss(criterion, f(draw.apply(x1)), targets, draw)
"""

from importlib import metadata

from unmix.credit import shared_loss
from unmix.errors import UserError
from unmix.methods import CMC, InsDis, MoCo
from unmix.mixtures import (
    Cutout,
    GlobalMixture,
    ImageMixture,
    PairDraw,
    RandomErasing,
    RegionMixture,
    UnMix,
)
from unmix.objective import objective

__all__ = [
    "CMC",
    "Cutout",
    "GlobalMixture",
    "ImageMixture",
    "InsDis",
    "MoCo",
    "PairDraw",
    "RandomErasing",
    "RegionMixture",
    "UnMix",
    "UserError",
    "objective",
    "shared_loss",
]

try:
    __version__ = metadata.version("unmix")
except metadata.PackageNotFoundError:  # read from a checkout that is not installed
    __version__ = "0+unknown"
