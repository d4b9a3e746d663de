"""Self-supervised methods, one file each."""

from unmix.errors import check_choice
from unmix.methods.base import Encoder, Method, Pair, Progress
from unmix.methods.cmc import CMC
from unmix.methods.deepclusterv2 import DeepClusterV2
from unmix.methods.dino import DINO
from unmix.methods.insdis import InsDis
from unmix.methods.moco import MoCo
from unmix.methods.pirl import PIRL
from unmix.methods.swav import SwAV

__all__ = [
    "CMC",
    "DINO",
    "METHODS",
    "PIRL",
    "DeepClusterV2",
    "Encoder",
    "InsDis",
    "Method",
    "MoCo",
    "Pair",
    "Progress",
    "SwAV",
    "method_class",
]

METHODS: dict[str, type[Method]] = {
    "cmc": CMC,
    "deepclusterv2": DeepClusterV2,
    "dino": DINO,
    "insdis": InsDis,
    "moco": MoCo,
    "pirl": PIRL,
    "swav": SwAV,
}


def method_class(name: str) -> type[Method]:
    """The class of a method by its name, such as "moco".

    Raises:
        UserError: if there is no such method, with the nearest match.
    """
    return METHODS[check_choice("--method", name, METHODS)]
