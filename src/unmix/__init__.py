"""Self-supervised pretraining of vision models with image mixtures.

Pretrain an encoder and use it:

    unmix.pretrain(method="moco", data="photos", unmix=True, run="runs/first")
    encoder = unmix.load_encoder("runs/first")
    features = encoder.encode(["a.jpg", "b.jpg"])  # (2, encoder.feature_dim)

A mixture in a training loop of your own, for a loss between queries and targets:

    draw = unmix.UnMix().draw(x1.shape, generator)
    loss = criterion(f(x1), targets)
    loss = loss + unmix.shared_loss(criterion, f(draw.apply(x1)), targets, draw)

Runs: pretrain, load_encoder, and load_classifier of a fine-tuning; UserError is a mistake in what
was given, told in one line, and PretrainSettings the types of the settings, for type checkers.

Methods: METHODS by name; All4One, BYOL, BarlowTwins, CMC, DINO, DeepClusterV2, DenseCL, Distill,
IBOT, IJEPA, InsDis, LeJEPA, MAE, MoCo, MoCoV3, NNBYOL, NNCLR, PIRL, ReSSL, SimCLR, SimDINO,
SimMIM, SimSiam, SwAV, TiCo, VICReg, WMSE; their base Method. Stepper is a method with its
schedules, mixture and memory in a loop of yours; objective, with a Mixture, is the loss of a step.

Mixtures: MIXTURES by name; UnMix, MixUp, CutMix, ResizeMix, GridMix, RegionSwap, FMix, MixMask,
SmoothMix, SaliencyMix, AttentiveMix, PatchMixture, DirichletMixture, ManifoldMixture, ScaleMix,
CropMix; of image space ImageMixture, Cutout, RandomErasing. Each is an Operator; mixup, cutmix, or
mix with an operator, mix a batch in one call.
Weight is a distribution of lambda, PairDraw what was drawn, mixed_at mixes a layer's output,
MixedBatch is a collate function, and DrawnBatch what it gives. GlobalMixture and RegionMixture are
MixUp and CutMix with random partners per sample.

Mixing rules: RULES by name, rule gives one with changes, shared_loss; their base Rule.

Your own: register_method and register_mixture give a class of yours a name, for pretrain, the
command line and studies.

Packages: backbones, collate, commands, credit, data, evaluation, figures, losses, memory, methods,
mixtures, statistics, views. help(unmix.mixtures), or help(unmix.UnMix), says more.
"""

import sys as _sys
from importlib import import_module as _import_module
from importlib import metadata as _metadata
from typing import TYPE_CHECKING
from typing import Any as _Any

# What is public, by the module that it is from; "" is this package's own subpackages and modules.
# There is no `__all__`: `help(unmix)` would document every class of it, in 20,000 lines.
_PUBLIC = {
    "": (
        "backbones collate commands credit data evaluation figures losses memory methods mixtures "
        "statistics views"
    ),
    "collate": "DrawnBatch MixedBatch",
    "credit": "RULES Rule rule shared_loss",
    "config.keywords": "PretrainSettings",
    "errors": "UserError",
    "evaluation": "load_classifier load_encoder",
    "methods": (
        "METHODS All4One BYOL BarlowTwins CMC DINO DeepClusterV2 DenseCL Distill IBOT IJEPA InsDis "
        "LeJEPA MAE Method MoCo MoCoV3 NNBYOL NNCLR PIRL ReSSL SimCLR SimDINO SimMIM SimSiam SwAV "
        "TiCo VICReg WMSE"
    ),
    "mixtures": (
        "MIXTURES AttentiveMix CropMix CutMix Cutout DirichletMixture FMix GlobalMixture GridMix "
        "ImageMixture ManifoldMixture MixMask MixUp Operator PairDraw PatchMixture RandomErasing "
        "RegionMixture RegionSwap ResizeMix SaliencyMix ScaleMix SmoothMix UnMix Weight cutmix mix "
        "mixed_at mixup"
    ),
    "plugins": "register_method register_mixture",
    "step": "Mixture objective",
    "stepper": "Stepper",
    "training": "pretrain",
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names.split()}

try:
    __version__ = _metadata.version("unmix")
except _metadata.PackageNotFoundError:  # read from a checkout that is not installed
    __version__ = "0+unknown"


if not TYPE_CHECKING:  # with `__getattr__` a type checker would take every name

    def __getattr__(name: str) -> _Any:
        # PyTorch takes seconds to import; `unmix --help` and `unmix recipes` do without it.
        if name not in _HOMES:
            text = f"module 'unmix' has no attribute {name!r}"
            raise AttributeError(text, name=name, obj=_sys.modules[__name__])
        home = _HOMES[name]
        module = _import_module(f"unmix.{home or name}")
        return getattr(module, name) if home else module


def __dir__() -> list[str]:
    return sorted(_HOMES)


if TYPE_CHECKING:
    from unmix import backbones as backbones
    from unmix import collate as collate
    from unmix import commands as commands
    from unmix import credit as credit
    from unmix import data as data
    from unmix import evaluation as evaluation
    from unmix import figures as figures
    from unmix import losses as losses
    from unmix import memory as memory
    from unmix import methods as methods
    from unmix import mixtures as mixtures
    from unmix import statistics as statistics
    from unmix import views as views
    from unmix.collate import DrawnBatch as DrawnBatch
    from unmix.collate import MixedBatch as MixedBatch
    from unmix.config.keywords import PretrainSettings as PretrainSettings
    from unmix.credit import RULES as RULES
    from unmix.credit import Rule as Rule
    from unmix.credit import rule as rule
    from unmix.credit import shared_loss as shared_loss
    from unmix.errors import UserError as UserError
    from unmix.evaluation import load_classifier as load_classifier
    from unmix.evaluation import load_encoder as load_encoder
    from unmix.methods import BYOL as BYOL
    from unmix.methods import CMC as CMC
    from unmix.methods import DINO as DINO
    from unmix.methods import IBOT as IBOT
    from unmix.methods import IJEPA as IJEPA
    from unmix.methods import MAE as MAE
    from unmix.methods import METHODS as METHODS
    from unmix.methods import NNBYOL as NNBYOL
    from unmix.methods import NNCLR as NNCLR
    from unmix.methods import PIRL as PIRL
    from unmix.methods import WMSE as WMSE
    from unmix.methods import All4One as All4One
    from unmix.methods import BarlowTwins as BarlowTwins
    from unmix.methods import DeepClusterV2 as DeepClusterV2
    from unmix.methods import DenseCL as DenseCL
    from unmix.methods import Distill as Distill
    from unmix.methods import InsDis as InsDis
    from unmix.methods import LeJEPA as LeJEPA
    from unmix.methods import Method as Method
    from unmix.methods import MoCo as MoCo
    from unmix.methods import MoCoV3 as MoCoV3
    from unmix.methods import ReSSL as ReSSL
    from unmix.methods import SimCLR as SimCLR
    from unmix.methods import SimDINO as SimDINO
    from unmix.methods import SimMIM as SimMIM
    from unmix.methods import SimSiam as SimSiam
    from unmix.methods import SwAV as SwAV
    from unmix.methods import TiCo as TiCo
    from unmix.methods import VICReg as VICReg
    from unmix.mixtures import MIXTURES as MIXTURES
    from unmix.mixtures import AttentiveMix as AttentiveMix
    from unmix.mixtures import CropMix as CropMix
    from unmix.mixtures import CutMix as CutMix
    from unmix.mixtures import Cutout as Cutout
    from unmix.mixtures import DirichletMixture as DirichletMixture
    from unmix.mixtures import FMix as FMix
    from unmix.mixtures import GlobalMixture as GlobalMixture
    from unmix.mixtures import GridMix as GridMix
    from unmix.mixtures import ImageMixture as ImageMixture
    from unmix.mixtures import ManifoldMixture as ManifoldMixture
    from unmix.mixtures import MixMask as MixMask
    from unmix.mixtures import MixUp as MixUp
    from unmix.mixtures import Operator as Operator
    from unmix.mixtures import PairDraw as PairDraw
    from unmix.mixtures import PatchMixture as PatchMixture
    from unmix.mixtures import RandomErasing as RandomErasing
    from unmix.mixtures import RegionMixture as RegionMixture
    from unmix.mixtures import RegionSwap as RegionSwap
    from unmix.mixtures import ResizeMix as ResizeMix
    from unmix.mixtures import SaliencyMix as SaliencyMix
    from unmix.mixtures import ScaleMix as ScaleMix
    from unmix.mixtures import SmoothMix as SmoothMix
    from unmix.mixtures import UnMix as UnMix
    from unmix.mixtures import Weight as Weight
    from unmix.mixtures import cutmix as cutmix
    from unmix.mixtures import mix as mix
    from unmix.mixtures import mixed_at as mixed_at
    from unmix.mixtures import mixup as mixup
    from unmix.plugins import register_method as register_method
    from unmix.plugins import register_mixture as register_mixture
    from unmix.step import Mixture as Mixture
    from unmix.step import objective as objective
    from unmix.stepper import Stepper as Stepper
    from unmix.training import pretrain as pretrain
