"""Image mixtures: draw, then apply. Tensors in, tensors out, on any device."""

from unmix.mixtures.boxes import box_area, box_mask, clipped_boxes
from unmix.mixtures.draws import Draw, EraseDraw, ImageSpaceDraw, MixtureDraw, PairDraw
from unmix.mixtures.erasing import Cutout, RandomErasing
from unmix.mixtures.operators import GlobalMixture, ImageMixture, Operator, RegionMixture, UnMix
from unmix.mixtures.settings import IM_TYPES, MixtureSettings

__all__ = [
    "IM_TYPES",
    "Cutout",
    "Draw",
    "EraseDraw",
    "GlobalMixture",
    "ImageMixture",
    "ImageSpaceDraw",
    "MixtureDraw",
    "MixtureSettings",
    "Operator",
    "PairDraw",
    "RandomErasing",
    "RegionMixture",
    "UnMix",
    "box_area",
    "box_mask",
    "clipped_boxes",
]
