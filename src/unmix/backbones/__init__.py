"""Backbones with a stem for small images, CMC's half-encoders, heads and split batch norm."""

from unmix.backbones.alexnet import AlexNet
from unmix.backbones.attention import attention_map
from unmix.backbones.base import STEMS, Backbone, check_stem
from unmix.backbones.build import BACKBONES, POOLINGS, VIT_SHAPE, build, is_vit, patch_side
from unmix.backbones.checkpointing import checkpoint_activations
from unmix.backbones.half_encoders import HalfEncoders
from unmix.backbones.heads import linear_head, mlp, mlp_head
from unmix.backbones.layers import layer_numbers, layer_scales, parameter_groups
from unmix.backbones.maps import check_feature_map, dense_features, feature_map
from unmix.backbones.measuring import feature_dim
from unmix.backbones.parts import pooled_apart, why_not_in_parts
from unmix.backbones.resnet import RESNETS, ResNet
from unmix.backbones.sizes import takes_size
from unmix.backbones.split_batch_norm import (
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    convert_split_batch_norm,
    encode_in_splits,
    has_batch_norm,
)
from unmix.backbones.stochastic import draws_in_training, without_drop_path
from unmix.backbones.tokens import TokenEncoder, Tokens, patches_of, sine_cosine_positions

__all__ = [
    "BACKBONES",
    "POOLINGS",
    "RESNETS",
    "STEMS",
    "VIT_SHAPE",
    "AlexNet",
    "Backbone",
    "HalfEncoders",
    "ResNet",
    "SplitBatchNorm1d",
    "SplitBatchNorm2d",
    "TokenEncoder",
    "Tokens",
    "attention_map",
    "build",
    "check_feature_map",
    "check_stem",
    "checkpoint_activations",
    "convert_split_batch_norm",
    "dense_features",
    "draws_in_training",
    "encode_in_splits",
    "feature_dim",
    "feature_map",
    "has_batch_norm",
    "is_vit",
    "layer_numbers",
    "layer_scales",
    "linear_head",
    "mlp",
    "mlp_head",
    "parameter_groups",
    "patch_side",
    "patches_of",
    "pooled_apart",
    "sine_cosine_positions",
    "takes_size",
    "why_not_in_parts",
    "without_drop_path",
]
