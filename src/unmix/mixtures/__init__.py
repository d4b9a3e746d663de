"""Image mixtures: draw, then apply. Tensors in, tensors out, on any device."""

from unmix.mixtures.boxes import box_area, box_mask, clipped_boxes
from unmix.mixtures.crops import CropDraw, CropMix, ScaleMix
from unmix.mixtures.draws import Draw, MixtureDraw, PairDraw
from unmix.mixtures.erasing import Cutout, EraseDraw, RandomErasing
from unmix.mixtures.fourier import FMix
from unmix.mixtures.grid import GridMix
from unmix.mixtures.image_space import ImageMixture, ImageSpaceDraw
from unmix.mixtures.layers import mixed_at
from unmix.mixtures.manifold import ManifoldMixture
from unmix.mixtures.masks import MaskDraw
from unmix.mixtures.operators import GlobalMixture, MixtureOperator, Operator, RegionMixture
from unmix.mixtures.own import OwnDraw
from unmix.mixtures.pairing import PAIRINGS
from unmix.mixtures.pasting import PasteDraw, ResizeMix
from unmix.mixtures.patches import PatchDraw, PatchMixture
from unmix.mixtures.sums import DirichletMixture, SumDraw
from unmix.mixtures.unmix import UnMix
from unmix.mixtures.weights import Weight

__all__ = [
    "PAIRINGS",
    "CropDraw",
    "CropMix",
    "Cutout",
    "DirichletMixture",
    "Draw",
    "EraseDraw",
    "FMix",
    "GlobalMixture",
    "GridMix",
    "ImageMixture",
    "ImageSpaceDraw",
    "ManifoldMixture",
    "MaskDraw",
    "MixtureDraw",
    "MixtureOperator",
    "Operator",
    "OwnDraw",
    "PairDraw",
    "PasteDraw",
    "PatchDraw",
    "PatchMixture",
    "RandomErasing",
    "RegionMixture",
    "ResizeMix",
    "ScaleMix",
    "SumDraw",
    "UnMix",
    "Weight",
    "box_area",
    "box_mask",
    "clipped_boxes",
    "mixed_at",
]
