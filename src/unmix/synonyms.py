"""Flags, commands and values of other tools, each with its equivalent here.

From the command lines of MoCo's main_moco.py, DINO, SwAV, VICReg, the whitening code, lightly,
solo-learn, timm's train.py, torchvision's references and Lightning.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = [
    "COMMANDS", "FLAGS", "SETTINGS", "SPELLINGS", "VALUES", "called", "called_value", "hint",
    "nearest", "timm_models",
]  # fmt: skip

# Our flag (of several, the first that the command has), a remark, and the other tools' flags.
_FLAGS: tuple[tuple[str, str, str], ...] = (
    ("devices", "the number of devices per machine",
     "gpus num_gpus n_gpus ngpus num_gpu gpus_per_node ngpus_per_node nproc_per_node nproc ngpu "
     "num_devices world_size num_processes distributed multiprocessing_distributed ddp "
     "dist_url dist_backend rank local_rank"),
    ("nodes", "", "num_nodes nnodes n_nodes num_machines"),
    ("device", "cuda, cpu or mps", "gpu gpu_id gpu_ids cuda accelerator use_cuda no_cuda use_gpu"),
    ("backbone", "", "arch a model net network encoder backbone_name encoder_name base_encoder "
     "model_name arch_name architecture base_model cnn resnet"),
    ("patch", "side of the patches of a ViT", "patch_size vit_patch_size"),
    ("heads", "attention heads of a ViT", "num_heads n_heads vit_heads"),
    ("depth", "blocks of a ViT", "num_layers n_layers num_blocks vit_depth"),
    ("registers", "register tokens of a ViT", "reg_tokens num_registers num_register_tokens "
     "n_registers register_tokens"),
    ("class_token", "the class token of a ViT", "cls_token use_cls_token with_cls_token"),
    ("pooling", "features of a ViT: class token or average of patch tokens", "global_pool pool "
     "pool_type pooling_type use_mean_pooling"),
    ("drop_path", "stochastic depth of a ViT", "drop_path_rate stochastic_depth "
     "stochastic_depth_prob droppath"),
    ("drop_path_uniform", "the same stochastic depth in every block", "uniform_drop_path "
     "drop_uniform"),
    ("init", "weights to start the encoder from",
     "pretrained pretrained_weights pretrained_path pretrained_checkpoint weights init_weights "
     "init_from initial_checkpoint pretrained_model finetune_from encoder_weights"),
    ("run", "give a run's folder again to resume it",
     "resume resume_from resume_path resume_from_checkpoint auto_resume ckpt ckpt_path load_from "
     "from_checkpoint checkpoint_path restore"),
    ("run", "the folder of a run", "output output_dir out out_dir outdir log_dir logdir save_dir "
     "save_path save_folder checkpoint_dir exp_dir exp_name experiment experiment_name name "
     "run_name run_dir run_folder work_dir workdir default_root_dir results_dir dump_path project"),
    ("batch_size", "total of all devices",
     "bs b batch batchsize bsz batch_size_per_gpu batch_size_per_device per_device_batch_size "
     "train_batch_size minibatch_size mini_batch_size"),
    ("accumulate", "parts of a batch: `batch_size` is that of all parts together",
     "accumulate_grad_batches gradient_accumulation_steps grad_accum_steps accum_iter "
     "accumulation_steps grad_accumulation gradient_accumulation grad_accum accum_steps "
     "update_freq accumulate_steps"),
    ("checkpoint_activations", "activations of the backbone's blocks are computed again",
     "grad_checkpointing gradient_checkpointing use_checkpoint activation_checkpointing "
     "use_grad_checkpointing with_cp checkpointing"),
    ("lr", "not scaled with the batch size",
     "learning_rate base_lr blr base_learning_rate init_lr initial_lr lr0 eta learningrate"),
    ("final_lr", "the end of the cosine",
     "min_lr lr_min end_lr lr_end eta_min final_learning_rate"),
    ("weight_decay", "", "wd weightdecay decay l2 weight_decay_rate wdecay"),
    ("final_weight_decay", "", "weight_decay_end final_wd wd_end"),
    ("optimizer", "", "opt optim optimiser opt_name optimizer_name"),
    ("trust", "the trust coefficient of LARS", "trust_coefficient lars_eta eta_lars trust_coef"),
    ("schedule", "cosine, step or constant",
     "scheduler lr_scheduler lr_schedule sched cos cosine lr_policy"),
    ("milestones", "the epochs of `schedule=step`",
     "lr_decay_epochs lr_steps decay_epochs lr_decay_steps lr_milestones lr_drop steps_lr"),
    ("gamma", "the factor of `schedule=step`",
     "lr_gamma lr_decay_rate decay_rate lr_drop_rate"),
    ("lr_decay", "of the learning rate, from a layer to the one before",
     "layer_decay layerwise_lr_decay layer_wise_lr_decay layer_lr_decay llrd layerwise_decay"),
    ("patch_embed_lr_mult", "", "patch_embed_lr patch_embed_lr_scale patch_embedding_lr_mult"),
    ("clip_grad", "the largest norm of the gradients",
     "gradient_clip_val gradient_clip clip_grad_norm grad_clip grad_clip_norm max_grad_norm "
     "clip_norm clip_gradients gradient_clipping max_norm clip"),
    ("clip_grad_by", "all, network or parameter", "clip_mode gradient_clip_algorithm"),
    ("freeze_backbone_epochs", "",
     "freeze_backbone freeze_encoder freeze_epochs frozen_epochs freeze_encoder_epochs "
     "unfreeze_after unfreeze_epoch"),
    ("warmup_epochs", "",
     "warmup warm_up warm warmup_epoch lr_warmup_epochs warmup_steps linear_warmup_epochs"),
    ("epochs", "", "max_epochs num_epochs n_epochs nb_epochs nepochs num_train_epochs "
     "total_epochs train_epochs max_epoch epoch max_steps"),
    ("workers", "", "j num_workers n_workers nworkers num_worker nb_workers data_workers cpus "
     "num_data_workers dataloader_num_workers"),
    ("data", "a name, or a folder of images",
     "dataset data_set dataset_name data_name train_dataset data_path dataset_path train_dir "
     "train_data train_data_path train_data_dir train_path imagenet_path image_folder input"),
    ("data_dir", "for a named set; `data` takes a folder of images",
     "root data_root dataset_root dataroot datadir dataset_dir data_folder"),
    ("config", "a recipe or a YAML file",
     "cfg conf config_file config_name config_path c recipe yaml preset"),
    ("method", "", "algorithm algo method_name ssl_method ssl framework method_class"),
    ("size", "side of the views in pixels",
     "image_size img_size input_size crop_size imsize img_dim image_dim resolution img "
     "train_crop_size global_crops_size"),
    ("local_crops", "",
     "local_crops_number n_local_crops num_local_crops num_small_crops nmb_crops num_crops"),
    ("local_size", "", "local_crops_size local_crop_size size_crops"),
    ("local_scale_min", "and `local_scale_max`", "local_crops_scale local_crop_scale"),
    ("crop_scale_min", "and `crop_scale_max`",
     "global_crops_scale min_scale min_crop_scale rrc_scale crop_min crop_size_min crop_scale "
     "min_scale_crops"),
    ("crop_scale_max", "", "max_scale crop_size_max max_crop_scale max_scale_crops"),
    ("second_jitter_p", "and the other --second_ flags, one for each setting of a view",
     "second_view view2 second_transform target_transform weak weak_view"),
    ("local_crops", "and the other --local_ flags, one for each setting of a view", "local_view"),
    ("jitter", "brightness, contrast, saturation and hue",
     "color_jitter colour_jitter cj_strength brightness contrast_jitter saturation hue "
     "jitter_d color_jitter_strength"),
    ("jitter_p", "", "color_jitter_prob cj_prob jitter_prob colour_jitter_prob"),
    ("gray_p", "", "gray_scale_prob grayscale_prob gray_prob random_gray_scale grayscale "
     "gray_scale"),
    ("blur_p", "", "gaussian_prob gaussian_blur gaussian_blur_prob blur blur_prob aug_plus"),
    ("solarize_p", "", "solarization_prob solarize solarization solarize_prob"),
    ("flip_p", "", "hflip hflip_prob horizontal_flip_prob hf_prob horizontal_flip flip flip_prob"),
    ("mean", "", "norm_mean img_mean"),
    ("std", "", "norm_std img_std"),
    ("temperature", "", "temp tau t moco_t nce_t softmax_temperature student_temp "
     "student_temperature ntxent_temp"),
    ("queue_size negatives", "", "moco_k queue queue_len queue_length memory_bank_size "
     "memory_size bank_size"),
    ("negatives queue_size", "", "nce_k num_negatives n_negatives"),
    ("encoder_momentum", "of the momentum encoder",
     "moco_m m ema ema_momentum ema_decay momentum_teacher base_tau base_tau_momentum tau_base "
     "base_momentum target_momentum momentum_ema model_ema_decay"),
    ("bank_momentum", "", "nce_m memory_momentum"),
    ("dim", "dimension of the projector's output",
     "moco_dim proj_dim out_dim feat_dim proj_output_dim projection_dim output_dim feature_dim "
     "embed_dim low_dim embedding_dim"),
    ("hidden", "width of the projector", "proj_hidden_dim hidden_dim hidden_mlp mlp_dim "
     "moco_mlp_dim hidden_size"),
    ("predictor_hidden", "", "pred_hidden_dim pred_dim"),
    ("head", "linear or mlp", "mlp projector proj_head"),
    ("prototypes", "", "nmb_prototypes num_prototypes n_prototypes"),
    ("epsilon", "", "sinkhorn_eps"),
    ("sinkhorn_iterations", "", "sinkhorn_iters"),
    ("teacher_temperature", "", "teacher_temp"),
    ("warmup_teacher_temperature", "", "warmup_teacher_temp"),
    ("warmup_teacher_epochs", "", "warmup_teacher_temp_epochs"),
    ("freeze_last_epochs", "", "freeze_last_layer"),
    ("off_diagonal", "", "lambd lamb lambda_bt"),
    ("invariance", "", "sim_coeff sim_loss_weight"),
    ("variance", "", "std_coeff var_loss_weight std_loss_weight"),
    ("covariance", "", "cov_coeff cov_loss_weight"),
    ("symmetric", "", "moco_symmetric symmetric_loss"),
    ("precision", "32, bf16 or 16", "fp16 amp half bf16 use_fp16 use_amp mixed_precision dtype "
     "amp_dtype fp32"),
    ("compile", "yes, no or auto", "torchcompile compile_model torch_compile"),
    ("seed", "", "random_seed manual_seed rng_seed randomseed"),
    ("limit", "the number of training images", "subset num_samples max_samples limit_train_batches "
     "train_subset fraction"),
    ("checkpoint_every", "", "save_freq saveckp_freq checkpoint_freq save_every save_interval "
     "save_frequency checkpoint_interval"),
    ("knn_every", "", "knn_freq knn_interval eval_freq eval_every val_freq eval_interval "
     "val_interval check_val_every_n_epoch knn_eval_freq"),
    ("knn_k k", "", "num_neighbors n_neighbors knn_neighbors nb_knn neighbors neighbours nn"),
    ("knn_temperature temperature", "", "knn_t knn_temp"),
    ("evaluate", "", "eval val validate do_eval"),
    ("logger", "tensorboard, wandb, mlflow, trackio or none",
     "wandb use_wandb tensorboard log_with report_to mlflow trackio"),
    ("beta", "with `unmix`", "alpha mixup_alpha cutmix_alpha"),
    ("unmix", "with `unmix_mixture=global` for mixup, `unmix_mixture=region` for CutMix",
     "mixup cutmix un_mix mixing"),
    ("unmix_prob", "with `unmix`", "mixup_prob cutmix_prob mixup_switch_prob"),
    ("random_erasing_prob", "with `IM` and `IM_type=RandomErasing`",
     "random_erase reprob random_erasing"),
    ("protocol", "", "eval_type probe_type"),
    ("k", "", "knn"),
    ("json", "", "output_json to_json"),
)  # fmt: skip

FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    word: (tuple(targets.split()), remark)
    for targets, remark, words in _FLAGS
    for word in words.split()
}
"""Flags of other tools, each with the equivalent flags here and a remark."""

COMMANDS = {
    "train": "pretrain", "fit": "pretrain", "main": "pretrain", "pretraining": "pretrain",
    "eval": "knn", "evaluate": "knn", "test": "knn", "linear": "probe", "lincls": "probe",
    "linear_probe": "probe", "report": "compare",
    "figure": "plot", "figures": "plot", "tsne": "plot", "umap": "plot", "draw": "plot",
    "table": "compare", "benchmark": "bench", "profile": "bench", "show": "preview",
    "visualize": "preview", "configs": "recipes", "config": "recipes", "list": "methods",
    "models": "methods", "convert": "import", "load": "import",
    "import_weights": "import", "classify": "predict", "inference": "predict", "infer": "predict",
}  # fmt: skip
"""Commands of other tools, each with ours."""

SETTINGS = {"unmix_from_epoch": "mix_from_epoch", "unmix_ramp_epochs": "mix_ramp_epochs"}
"""Other names of settings, which are accepted."""

SPELLINGS = {"neighbours": "neighbors"}
"""British spellings of commands, which are accepted."""

VALUES: dict[str, dict[str, str]] = {
    "device": {"gpu": "cuda", "gpus": "cuda", "nvidia": "cuda", "0": "cuda", "metal": "mps"},
    "precision": {
        "fp32": "32", "float32": "32", "32-true": "32", "full": "32", "float": "32",
        "fp16": "16", "float16": "16", "16-mixed": "16", "half": "16", "amp": "16",
        "bfloat16": "bf16", "bf16-mixed": "bf16", "mixed": "bf16",
    },
    "method": {
        "mocov1": "moco", "moco-v1": "moco", "mocov2": "moco", "moco-v2": "moco",
        "moco_v2": "moco", "mocov2plus": "moco", "moco-v3": "mocov3", "moco_v3": "mocov3",
        "barlow_twins": "barlow", "barlowtwins": "barlow", "barlow-twins": "barlow",
        "npid": "insdis", "instdisc": "insdis", "instance_discrimination": "insdis",
        "deepcluster": "deepclusterv2", "deepcluster_v2": "deepclusterv2", "w-mse": "wmse",
        "w_mse": "wmse", "whitening": "wmse", "dinov1": "dino", "nn-clr": "nnclr",
        "i-jepa": "ijepa", "i_jepa": "ijepa", "jepa": "ijepa", "simdinov2": "simdino",
    },
    "optimizer": {"momentum": "sgd", "adam_w": "adamw", "larc": "lars"},
    "schedule": {
        "cos": "cosine", "cosineannealing": "cosine", "warmup_cosine": "cosine",
        "multistep": "step", "steplr": "step", "none": "constant", "fixed": "constant",
    },
    "pooling": {
        "token": "class", "cls": "class", "cls_token": "class", "class_token": "class",
        "avg": "average", "mean": "average", "gap": "average",
    },
    "stem": {"cifar": "small", "cifar_stem": "small", "imagenet": "large", "3x3": "small"},
    "logger": {"tb": "tensorboard", "csv": "none", "weights_and_biases": "wandb"},
    "compile": {"true": "yes", "false": "no", "on": "yes", "off": "no"},
    "resident": {"true": "yes", "false": "no", "on": "yes", "off": "no"},
    "data": {"imagenet1k": "imagenet", "ilsvrc": "imagenet", "in1k": "imagenet", "c10": "cifar10"},
    "backbone": {
        "vit": "timm:vit_small_patch16_224", "vit_tiny": "timm:vit_tiny_patch16_224",
        "vit_small": "timm:vit_small_patch16_224", "vit_base": "timm:vit_base_patch16_224",
        "vit_large": "timm:vit_large_patch16_224", "vit_s_16": "timm:vit_small_patch16_224",
        "vit_b_16": "timm:vit_base_patch16_224", "vit_l_16": "timm:vit_large_patch16_224",
        "wide_resnet50_2": "timm:wide_resnet50_2",
    },
    "unmix_mixture": {"mixup": "global", "cutmix": "region", "un-mix": "coin"},
    "mix": {"mixup": "global", "cutmix": "region", "un-mix": "coin"},
    "unmix_rule": {"un-mix": "unmix", "i-mix": "imix", "mix-bt": "mixbt"},
    "protocol": {"lincls": "moco"},
}  # fmt: skip
"""Values of other tools, each with ours, by the flag."""


def called(word: str, known: Collection[str]) -> tuple[str, str] | None:
    """The known flag that is the equivalent of another tool's.

    Args:
        word: The other tool's, without leading dashes, in any case, with dashes or underscores.
        known: Names of flags, without dashes.

    Returns:
        The flag's name and a remark; None if there is no known equivalent.
    """
    targets, remark = FLAGS.get(word.lower().replace("-", "_"), ((), ""))
    return next(((target, remark) for target in targets if target in known), None)


def called_value(name: str, value: object) -> str | None:
    """Our word for a value of another tool, such as "gpu" of `device`; None if there is none."""
    text = str(value).lower()
    if name == "device" and re.fullmatch(r"(cuda|gpu):?\d+", text):
        return "cuda"
    return VALUES.get(name, {}).get(text)


def nearest(word: object, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The name that is most similar to a word, ignoring case; None if none is similar."""
    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), list(folded), n=1, cutoff=cutoff)
    return folded[near[0]] if near else None


def hint(word: str, known: Collection[str]) -> str:
    """A suggestion for an unknown setting: a sentence with a leading space, or an empty string.

    Args:
        word: The unknown name, without leading dashes.
        known: Names of settings. In the suggestion they are in backticks; see `unmix.errors`.
    """
    if found := called(word, known):
        remark = f" ({found[1]})" if found[1] else ""
        return f" Use `{found[0]}`{remark}."
    if len(word) == 1 and word.lower() not in known:
        return ""
    near = nearest(f"--{word}", [f"--{name}" for name in known], cutoff=0.6)
    return f" Did you mean `{near.removeprefix('--')}`?" if near else ""


def timm_models() -> frozenset[str]:
    """The names of timm's models, read from its source; empty where it is not installed.

    Importing timm takes seconds. A name that is not found here may still be one of its models.
    """
    try:
        spec = find_spec("timm")
    except ValueError:  # a stand-in module
        spec = None
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    return _models_in(Path(spec.submodule_search_locations[0], "models"))


@cache
def _models_in(folder: Path) -> frozenset[str]:
    found: set[str] = set()
    for file in folder.glob("*.py"):
        text = file.read_text(encoding="utf-8", errors="replace")
        found.update(re.findall(r"@register_model\s+def (\w+)\(", text))
    return frozenset(found)
