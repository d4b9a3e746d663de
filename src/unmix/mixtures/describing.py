"""What a label-space mixture does, in a line."""

from __future__ import annotations

from unmix.mixtures.crops import CropMix, ScaleMix
from unmix.mixtures.fourier import FMix
from unmix.mixtures.grid import GridMix
from unmix.mixtures.manifold import ManifoldMixture
from unmix.mixtures.operators import MixtureOperator
from unmix.mixtures.pasting import ResizeMix
from unmix.mixtures.patches import PatchMixture
from unmix.mixtures.sums import DirichletMixture
from unmix.mixtures.unmix import UnMix
from unmix.mixtures.weights import Weight

__all__ = ["described"]


def described(operator: MixtureOperator) -> tuple[str, str]:
    """What an operator mixes and by which law, and what it draws once a batch or a sample."""
    what, once = _kind(operator)
    pairing = getattr(operator, "pairing", "reverse")
    return what if pairing == "reverse" else f"{what}; partner by {pairing}", once


def _kind(operator: MixtureOperator) -> tuple[str, str]:
    if isinstance(operator, UnMix):
        law = operator.weight or Weight(beta=operator.beta)
        if operator.unmix_prob in (0, 1):
            kind = "global" if operator.unmix_prob else "region"
            return f"{kind}; {law}", "one weight"
        return (
            f"global with probability {operator.unmix_prob:g}, else region; {law}",
            "one weight and one coin",
        )
    if isinstance(operator, ResizeMix):
        low, high = operator.tau
        sides = f"sides times U({low:g}, {high:g})"
        return f"the whole partner, resized; {operator.weight or sides}", "one box"
    if isinstance(operator, GridMix):
        return f"{operator.cells} x {operator.cells} cells; {operator.weight}", "one grid"
    if isinstance(operator, FMix):
        decay = f"decay power {operator.decay_power:g}"
        return f"masks of low-frequency noise, {decay}; {operator.weight}", "one mask"
    if isinstance(operator, ScaleMix):
        return f"a box of another crop of the image; {operator.weight}", "one box"
    if isinstance(operator, CropMix):
        return f"{operator.images} crops of the image, {operator.operation}", "one order and weight"
    if isinstance(operator, PatchMixture):
        size = operator.patch_size
        return f"patches of {size} px from {operator.images} images", "one order of the patches"
    if isinstance(operator, DirichletMixture):
        shares = f"Dirichlet({operator.alpha:g}), at least {operator.main_at_least:g} of the own"
        return f"sums of {operator.images} images; {shares}", "one row of shares"
    if isinstance(operator, ManifoldMixture):
        return f"global, of the output of {operator.layer}; {operator.weight}", "one weight"
    return type(operator).__name__, "one draw"
