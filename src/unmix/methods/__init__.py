"""Self-supervised methods, one file each."""

from inspect import signature
from typing import Any

from torch.nn.parameter import is_lazy

from unmix.errors import UserError, check_choice
from unmix.methods.all4one import All4One
from unmix.methods.barlow import BarlowTwins
from unmix.methods.base import Encoder, InstanceDiscrimination, Method, Pair, Progress
from unmix.methods.byol import BYOL
from unmix.methods.cmc import CMC
from unmix.methods.deepclusterv2 import DeepClusterV2
from unmix.methods.densecl import DenseCL
from unmix.methods.dino import DINO
from unmix.methods.distill import Distill
from unmix.methods.ibot import IBOT
from unmix.methods.ijepa import IJEPA
from unmix.methods.insdis import InsDis
from unmix.methods.lejepa import LeJEPA
from unmix.methods.mae import MAE
from unmix.methods.moco import MoCo
from unmix.methods.mocov3 import MoCoV3
from unmix.methods.nnbyol import NNBYOL
from unmix.methods.nnclr import NNCLR
from unmix.methods.pirl import PIRL
from unmix.methods.ressl import ReSSL
from unmix.methods.simclr import SimCLR
from unmix.methods.simdino import SimDINO
from unmix.methods.simmim import SimMIM
from unmix.methods.simsiam import SimSiam
from unmix.methods.swav import SwAV
from unmix.methods.teacher import Teacher
from unmix.methods.tico import TiCo
from unmix.methods.vicreg import VICReg
from unmix.methods.wmse import WMSE

__all__ = [
    "BYOL",
    "CMC",
    "DINO",
    "IBOT",
    "IJEPA",
    "MAE",
    "METHODS",
    "NNBYOL",
    "NNCLR",
    "PIRL",
    "WMSE",
    "All4One",
    "BarlowTwins",
    "DeepClusterV2",
    "DenseCL",
    "Distill",
    "Encoder",
    "InsDis",
    "InstanceDiscrimination",
    "LeJEPA",
    "Method",
    "MoCo",
    "MoCoV3",
    "Pair",
    "Progress",
    "ReSSL",
    "SimCLR",
    "SimDINO",
    "SimMIM",
    "SimSiam",
    "SwAV",
    "Teacher",
    "TiCo",
    "VICReg",
    "build",
    "method_class",
]

METHODS: dict[str, type[Method]] = {
    "all4one": All4One,
    "barlow": BarlowTwins,
    "byol": BYOL,
    "cmc": CMC,
    "deepclusterv2": DeepClusterV2,
    "densecl": DenseCL,
    "dino": DINO,
    "distill": Distill,
    "ibot": IBOT,
    "ijepa": IJEPA,
    "insdis": InsDis,
    "lejepa": LeJEPA,
    "mae": MAE,
    "moco": MoCo,
    "mocov3": MoCoV3,
    "nnbyol": NNBYOL,
    "nnclr": NNCLR,
    "pirl": PIRL,
    "ressl": ReSSL,
    "simclr": SimCLR,
    "simdino": SimDINO,
    "simmim": SimMIM,
    "simsiam": SimSiam,
    "swav": SwAV,
    "tico": TiCo,
    "vicreg": VICReg,
    "wmse": WMSE,
}
"""The methods by the name that `method` takes."""


def method_class(name: str) -> type[Method]:
    """The class of a method by its name, such as "moco".

    Raises:
        UserError: if there is no such method, with the nearest match.
    """
    return METHODS[check_choice("method", name, METHODS)]


def build(name: str, backbone: Any, n_data: int, **options: Any) -> Method:
    """Build a method by its name.

    Args:
        name: Such as "moco".
        backbone: What it trains; for CMC two half-encoders.
        n_data: Number of training images, for the methods whose class takes it.
        options: Keyword arguments of the class, with `teacher` for those that have one.

    Raises:
        UserError: if there is no such method, or as its class does.
    """
    kind: Any = method_class(name)
    parameters = signature(kind).parameters
    if "n_data" in parameters:
        options["n_data"] = n_data
    if "teacher" in parameters and options.get("teacher") is None:
        raise UserError(
            f"is required by {name!r}: the trained network that it learns from.",
            parameter="teacher",
        )
    method: Method = kind(backbone, **options)
    lazy = next((n for n, p in method.named_parameters() if is_lazy(p)), None)
    if lazy is not None:  # optimizers and momentum copies need its size before the first batch
        raise UserError(
            f"{lazy} has no size yet; give its layer the length of the features, "
            "unmix.backbones.feature_dim(backbone), in place of a lazy one.",
            parameter="method",
        )
    return method
