"""Image mixtures: draw, then apply. Tensors in, tensors out, on any device."""

from unmix.mixtures.boxes import box_area, box_mask, clipped_boxes
from unmix.mixtures.crops import CropDraw, CropMix, ScaleMix
from unmix.mixtures.draws import Draw, MaskDraw, MixtureDraw, PairDraw
from unmix.mixtures.erasing import Cutout, EraseDraw, RandomErasing
from unmix.mixtures.fourier import FMix
from unmix.mixtures.functional import cutmix, mix, mixup
from unmix.mixtures.grid import GridMix
from unmix.mixtures.image_space import ImageMixture, ImageSpaceDraw
from unmix.mixtures.manifold import ManifoldMixture, mixed_at
from unmix.mixtures.mixup import CutMix, GlobalMixture, MixUp, RegionMixture, UnMix
from unmix.mixtures.noise import MixupNoise
from unmix.mixtures.operators import MixtureOperator, Operator
from unmix.mixtures.own_draws import OwnDraw
from unmix.mixtures.pasting import PasteDraw, ResizeMix
from unmix.mixtures.patches import PatchDraw, PatchMixture
from unmix.mixtures.registry import IMAGE_SPACE, MIXTURES
from unmix.mixtures.sampling import PAIRINGS, Weight
from unmix.mixtures.schedule import MixtureSchedule
from unmix.mixtures.sums import DirichletMixture, SumDraw
from unmix.mixtures.swapping import RegionSwap

__all__ = [
    "IMAGE_SPACE",
    "MIXTURES",
    "PAIRINGS",
    "CropDraw",
    "CropMix",
    "CutMix",
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
    "MixUp",
    "MixtureDraw",
    "MixtureOperator",
    "MixtureSchedule",
    "MixupNoise",
    "Operator",
    "OwnDraw",
    "PairDraw",
    "PasteDraw",
    "PatchDraw",
    "PatchMixture",
    "RandomErasing",
    "RegionMixture",
    "RegionSwap",
    "ResizeMix",
    "ScaleMix",
    "SumDraw",
    "UnMix",
    "Weight",
    "box_area",
    "box_mask",
    "clipped_boxes",
    "cutmix",
    "mix",
    "mixed_at",
    "mixup",
]
