"""Self-supervised methods, one file each."""

from unmix.errors import check_choice
from unmix.methods.base import Encoder, Method, Pair, Progress
from unmix.methods.cmc import CMC
from unmix.methods.insdis import InsDis
from unmix.methods.moco import MoCo

__all__ = [
    "CMC",
    "METHODS",
    "Encoder",
    "InsDis",
    "Method",
    "MoCo",
    "Pair",
    "Progress",
    "method_class",
]

METHODS: dict[str, type[Method]] = {"moco": MoCo, "insdis": InsDis, "cmc": CMC}


def method_class(name: str) -> type[Method]:
    """The class of a method by its name, such as "moco".

    Raises:
        UserError: if there is no such method, with the nearest match.
    """
    return METHODS[check_choice("--method", name, METHODS)]
