"""Types of settings as keyword arguments, written by `python -m unmix.catalog`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import TypedDict

__all__ = ["PretrainSettings", "ViewOverrides"]


class ViewOverrides(TypedDict, total=False):
    """Settings of one kind of view, for `second_view=` and `local_view=`."""

    crop_scale_min: float
    crop_scale_max: float
    crop_ratio: Sequence[float]
    interpolation: Literal["bilinear", "bicubic"]
    flip_p: float
    jitter: Sequence[float]
    jitter_p: float
    gray_p: float
    blur_p: float
    blur_sigma: Sequence[float]
    blur_kernel: int
    solarize_p: float


class PretrainSettings(TypedDict, total=False):
    """Every setting of a run, as keyword arguments of `unmix.pretrain`.

    What each is, and its default: `unmix pretrain --method METHOD --help`. Those of a method go
    with that method alone.
    """

    second_view: ViewOverrides
    local_view: ViewOverrides
    method: Literal["all4one", "barlow", "byol", "cmc", "deepclusterv2", "densecl", "dino", "distill", "ibot", "ijepa", "insdis", "lejepa", "mae", "moco", "mocov3", "nnbyol", "nnclr", "pirl", "ressl", "simclr", "simdino", "simmim", "simsiam", "swav", "tico", "vicreg", "wmse"]
    data: Any
    data_dir: str | os.PathLike[str] | None
    train_folder: str | os.PathLike[str] | None
    test_folder: str | os.PathLike[str] | None
    image_column: str | None
    label_column: str | None
    split_column: str | None
    run: str | os.PathLike[str] | None
    epochs: int
    batch_size: int
    drop_last: bool
    size: int | None
    limit: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    max_pixels: int
    bit_depth: int | None
    range: Sequence[float] | None
    augmentation: Literal["recipe", "none", "crop-flip", "moco-v1", "moco-v2", "moco-v3", "moco-cifar", "byol", "cmc", "dino", "simclr-cifar", "swav-cifar", "swav-imagenet"]
    seed: int
    shuffle_buffer: int
    interleave: int | None
    cache_dir: str | None
    cache_size: str
    manifest: bool
    strict: bool
    download: bool
    backbone: str
    init: str | os.PathLike[str] | None
    init_sha256: str | None
    width: float
    stem: Literal["auto", "small", "medium", "large", "padded"]
    patch: int | None
    heads: int | None
    depth: int | None
    registers: int | None
    class_token: bool | None
    pooling: Literal["class", "average"] | None
    drop_path: float | None
    drop_path_uniform: bool
    zero_init_residual: bool
    mix_from_epoch: int
    mix_ramp_epochs: int
    IM: bool
    IM_type: Literal["IM", "global", "region", "Cutout", "RandomErasing", "DACL"]
    g_alpha: float
    g_num: int
    g_prob: float
    r_beta: float
    r_prob: float
    r_num: int
    r_pixel_decay: float
    mask_size: int | None
    cutout_p: float
    cutout_inside: bool
    mask_color: float
    area_ratio_range: Sequence[float]
    random_erasing_prob: float
    min_aspect_ratio: float
    max_attempt: int
    dacl_alpha: float
    unmix: bool
    unmix_prob: float | None
    beta: float | None
    unmix_per: Literal["batch", "sample"] | None
    unmix_pairing: Literal["reverse", "permutation", "random", "halves", "neighbor", "second_view"] | None
    unmix_joint: bool | None
    unmix_rule: Literal["unmix", "replace", "imix", "mixco", "sdmp", "mixbt", "image_space", "exact", "sdmp_released", "swav_released", "esvit", "regioncl", "patchmix"]
    unmix_mixture: str | None
    unmix_shares: Sequence[float] | None
    unmix_weight: Literal["beta", "uniform"] | None
    unmix_larger: bool | None
    unmix_layer: str | None
    unmix_images: int | None
    unmix_patch: int | None
    unmix_align: int | None
    unmix_every_crop: bool | None
    unmix_share: float | None
    unmix_temperature: float | None
    crop_scale_min: float
    crop_scale_max: float
    crop_ratio: Sequence[float]
    interpolation: Literal["bilinear", "bicubic"]
    flip_p: float
    jitter: Sequence[float]
    jitter_p: float
    gray_p: float
    blur_p: float
    blur_sigma: Sequence[float]
    blur_kernel: int
    solarize_p: float
    second_crop_scale_min: float | None
    second_crop_scale_max: float | None
    second_crop_ratio: Sequence[float] | None
    second_interpolation: Literal["bilinear", "bicubic"] | None
    second_flip_p: float | None
    second_jitter: Sequence[float] | None
    second_jitter_p: float | None
    second_gray_p: float | None
    second_blur_p: float | None
    second_blur_sigma: Sequence[float] | None
    second_blur_kernel: int | None
    second_solarize_p: float | None
    local_crops: int
    local_size: int | None
    local_scale_min: float
    local_scale_max: float
    local_ratio: Sequence[float] | None
    local_interpolation: Literal["bilinear", "bicubic"] | None
    local_flip_p: float | None
    local_jitter: Sequence[float] | None
    local_jitter_p: float | None
    local_gray_p: float | None
    local_blur_p: float | None
    local_blur_sigma: Sequence[float] | None
    local_blur_kernel: int | None
    local_solarize_p: float | None
    optimizer: Literal["sgd", "adam", "adamw", "lars", "larc"]
    lr: float
    final_lr: float
    momentum: float
    trust: float
    trust_clip: bool
    weight_decay: float
    lr_decay: float
    patch_embed_lr_mult: float
    clip_grad: float
    clip_grad_by: Literal["all", "network", "parameter"]
    freeze_backbone_epochs: int
    decay_all: bool | None
    final_weight_decay: float | None
    schedule: Literal["cosine", "step", "constant"]
    milestones: Sequence[int]
    gamma: float
    restarts: Sequence[int]
    warmup_epochs: float
    warmup_start_lr: float
    knn_every: int
    knn_k: int
    knn_temperature: float
    linear_every: int
    features: Literal["backbone", "projector"]
    evaluate: bool
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "32", "bf16", "16", 32, 16]
    devices: int
    nodes: int
    strategy: Literal["ddp", "fsdp"]
    accumulate: int
    checkpoint_activations: bool
    engine: Literal["lightning", "ray"]
    threads: int | None
    workers: int | None
    resident: bool | Literal["auto", "yes", "no"]
    resident_share: float
    compile: bool | Literal["auto", "yes", "no"]
    checkpoint_every: int
    checkpoint_steps: int
    logger: Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]
    dim: int
    hidden: int
    predictor_hidden: int
    temperature: float
    centroid_temperature: float
    centroid_neighbors: int
    transformer_heads: int
    transformer_layers: int
    dropout: float
    neighbor: float
    centroid: float
    redundancy: float
    queue_size: int
    encoder_momentum: float
    off_diagonal: float
    scale: float
    unbiased: bool
    view: Literal["Lab", "YCbCr"]
    negatives: int | None
    bank_momentum: float
    contrast: Literal["softmax", "nce"]
    prototypes: Sequence[int] | int
    kmeans_iterations: int
    freeze_prototypes_steps: int
    dense: float
    bn_splits: int
    shuffle_bn: bool
    bottleneck: int
    teacher_temperature: float
    warmup_teacher_temperature: float
    warmup_teacher_epochs: int
    center_momentum: float
    freeze_last_epochs: int
    normalize_last: bool
    head_bn: bool
    teacher: str | os.PathLike[str] | None
    teacher_sha256: str | None
    teacher_backbone: str | None
    teacher_size: int | None
    teacher_mean: Sequence[float] | None
    teacher_std: Sequence[float] | None
    match: Literal["features", "similarities"]
    separate_heads: bool
    centering: Literal["mean", "sinkhorn"]
    patch_weight: float
    koleo: float
    masks: Literal["block", "random"]
    mask_share: float
    mask_ratio_min: float
    mask_ratio_max: float
    predictor_dim: int
    predictor_depth: int
    predictor_heads: int | None
    target_blocks: int
    target_scale_min: float
    target_scale_max: float
    target_ratio_min: float
    target_ratio_max: float
    context_scale_min: float
    context_scale_max: float
    min_keep: int
    sigreg: float
    slices: int
    knots: int
    t_max: float
    mask_ratio: float
    norm_pix: bool
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    mixed_tokens: bool
    head: Literal["linear", "mlp"]
    symmetric: bool
    synthetic_negatives: Literal["none", "mochi", "synco"]
    hard_negatives: int | None
    synthetic_counts: Sequence[int]
    synthetic_from_epoch: int | None
    freeze_patch_embedding: bool
    predictor_bias: bool
    jigsaw_weight: float
    grid: int
    constant_momentum: bool
    layers: int
    joint_head: bool
    mmix_threshold: float
    decoupled: Literal["none", "dcl", "dclw"]
    epsilon: float
    coding_rate: float
    smooth: bool
    mask_side: int
    fix_predictor_rate: bool
    sinkhorn_iterations: int
    queue_from_epoch: int
    covariance: float
    covariance_momentum: float
    invariance: float
    variance: float
    views: int
    sub_batch: int
    iterations: int
