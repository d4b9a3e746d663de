"""unmix: self-supervised pretraining of vision models with image mixtures.

In anyone's training loop:

    draw = unmix.UnMix().draw(x1.shape, generator)
    loss = criterion(f(x1), targets)
    loss = loss + unmix.shared_loss(criterion, f(draw.apply(x1)), targets, draw)
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmix.collate import DrawnBatch, MixedBatch
    from unmix.credit import RULES, rule, shared_loss
    from unmix.errors import UserError
    from unmix.evaluation import load_encoder
    from unmix.methods import (
        BYOL,
        CMC,
        DINO,
        METHODS,
        NNCLR,
        PIRL,
        WMSE,
        BarlowTwins,
        DeepClusterV2,
        InsDis,
        MoCo,
        MoCoV3,
        SimCLR,
        SimSiam,
        SwAV,
        VICReg,
    )
    from unmix.mixtures import (
        CropMix,
        Cutout,
        DirichletMixture,
        FMix,
        GlobalMixture,
        GridMix,
        ImageMixture,
        ManifoldMixture,
        PairDraw,
        PatchMixture,
        RandomErasing,
        RegionMixture,
        ResizeMix,
        ScaleMix,
        UnMix,
        Weight,
        mixed_at,
    )
    from unmix.step import Mixture, objective
    from unmix.stepper import Stepper
    from unmix.training.run.pretrain import pretrain

__all__ = [
    "BYOL",
    "CMC",
    "DINO",
    "METHODS",
    "NNCLR",
    "PIRL",
    "RULES",
    "WMSE",
    "BarlowTwins",
    "CropMix",
    "Cutout",
    "DeepClusterV2",
    "DirichletMixture",
    "DrawnBatch",
    "FMix",
    "GlobalMixture",
    "GridMix",
    "ImageMixture",
    "InsDis",
    "ManifoldMixture",
    "MixedBatch",
    "Mixture",
    "MoCo",
    "MoCoV3",
    "PairDraw",
    "PatchMixture",
    "RandomErasing",
    "RegionMixture",
    "ResizeMix",
    "ScaleMix",
    "SimCLR",
    "SimSiam",
    "Stepper",
    "SwAV",
    "UnMix",
    "UserError",
    "VICReg",
    "Weight",
    "load_encoder",
    "mixed_at",
    "objective",
    "pretrain",
    "rule",
    "shared_loss",
]

try:
    __version__ = metadata.version("unmix")
except metadata.PackageNotFoundError:  # read from a checkout that is not installed
    __version__ = "0+unknown"

_ELSEWHERE = {
    "DrawnBatch": "collate",
    "MixedBatch": "collate",
    "UserError": "errors",
    **dict.fromkeys(("Mixture", "objective"), "step"),
    "Stepper": "stepper",
    "load_encoder": "evaluation",
    "pretrain": "training",
    **dict.fromkeys(("RULES", "rule", "shared_loss"), "credit"),
    **dict.fromkeys(
        (
            "BYOL",
            "CMC",
            "DINO",
            "METHODS",
            "NNCLR",
            "PIRL",
            "WMSE",
            "BarlowTwins",
            "DeepClusterV2",
            "InsDis",
            "MoCo",
            "MoCoV3",
            "SimCLR",
            "SimSiam",
            "SwAV",
            "VICReg",
        ),
        "methods",
    ),
}


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import; `unmix --help` and `unmix recipes` do without it.
    if name not in __all__:
        raise AttributeError(f"module 'unmix' has no attribute {name!r}")
    return getattr(import_module(f"unmix.{_ELSEWHERE.get(name, 'mixtures')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
