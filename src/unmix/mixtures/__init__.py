"""Image mixtures: draw, then apply. Tensors in, tensors out, on any device."""

from unmix.mixtures.attentivemix import AttentiveMix
from unmix.mixtures.boxes import box_area, box_mask, clipped_boxes
from unmix.mixtures.crops import CropDraw, CropMix, ScaleMix
from unmix.mixtures.draws import Draw, MaskDraw, MixtureDraw, PairDraw
from unmix.mixtures.erasing import Cutout, EraseDraw, RandomErasing
from unmix.mixtures.fields import parameter
from unmix.mixtures.fourier import FMix
from unmix.mixtures.functional import cutmix, mix, mixup
from unmix.mixtures.grid import GridMix
from unmix.mixtures.image_space import ImageMixture, ImageSpaceDraw
from unmix.mixtures.manifold import ManifoldMixture, mixed_at
from unmix.mixtures.mixmask import MixMask
from unmix.mixtures.mixup import CutMix, GlobalMixture, MixUp, RegionMixture, UnMix
from unmix.mixtures.noise import MixupNoise
from unmix.mixtures.operators import MixtureOperator, Operator, PairOperator
from unmix.mixtures.own_draws import OwnDraw
from unmix.mixtures.pasting import PasteDraw, ResizeMix
from unmix.mixtures.patches import PatchDraw, PatchMixture
from unmix.mixtures.registry import IMAGE_SPACE, MIXTURES
from unmix.mixtures.saliency import SaliencyMix, spectral_residual
from unmix.mixtures.sampling import PAIRINGS, Weight
from unmix.mixtures.schedule import MixtureSchedule
from unmix.mixtures.smoothmix import SmoothMix
from unmix.mixtures.sums import DirichletMixture, SumDraw
from unmix.mixtures.swapping import RegionSwap

__all__ = [
    "IMAGE_SPACE",
    "MIXTURES",
    "PAIRINGS",
    "AttentiveMix",
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
    "MixMask",
    "MixUp",
    "MixtureDraw",
    "MixtureOperator",
    "MixtureSchedule",
    "MixupNoise",
    "Operator",
    "OwnDraw",
    "PairDraw",
    "PairOperator",
    "PasteDraw",
    "PatchDraw",
    "PatchMixture",
    "RandomErasing",
    "RegionMixture",
    "RegionSwap",
    "ResizeMix",
    "SaliencyMix",
    "ScaleMix",
    "SmoothMix",
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
    "parameter",
    "spectral_residual",
]
