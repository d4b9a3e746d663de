"""The groups of a run's settings: each field is a flag, with its default, text and bounds."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from unmix.config.catalog import catalog
from unmix.config.mixtures import MixtureSettings
from unmix.config.run import RunSettings
from unmix.config.views import INTERPOLATIONS, ViewSettings
from unmix.errors import UserError, check_choice, check_given, check_number
from unmix.synonyms import called_value, nearest, timm_models

__all__ = [
    "CHOICES",
    "GROUPS",
    "TEXTS",
    "EvaluationSettings",
    "MachineSettings",
    "ModelSettings",
    "OptimizerSettings",
    "RunSettings",
    "field_names",
]

TIMM = "timm:"
_YES_NO_AUTO = ("auto", "yes", "no")
CHOICES: dict[str, tuple[str, ...]] = {
    "clip_grad_by": ("all", "network", "parameter"),
    "compile": _YES_NO_AUTO,
    "device": ("auto", "cpu", "cuda", "mps"),
    "engine": ("lightning", "ray"),
    "features": ("backbone", "projector"),
    **dict.fromkeys(
        ("interpolation", "local_interpolation", "second_interpolation"), INTERPOLATIONS
    ),
    "logger": ("tensorboard", "wandb", "mlflow", "trackio", "none"),
    "optimizer": ("sgd", "adam", "adamw", "lars", "larc"),
    "pooling": ("class", "average"),
    "precision": ("auto", "32", "bf16", "16"),
    "resident": _YES_NO_AUTO,
    "schedule": ("cosine", "step", "constant"),
    "strategy": ("ddp", "fsdp"),
}
"""The allowed values of settings, by name."""


TEXTS = frozenset({
    "cache_dir", "data_dir", "image_column", "init", "init_sha256", "label_column", "run",
    "split_column", "teacher", "teacher_sha256", "test_folder", "train_folder",
})  # fmt: skip
"""Settings that are paths or free text, so that "none" may be one."""


@dataclass(frozen=True)
class ModelSettings:
    """The encoder.

    Args:
        backbone: resnet10, 18, 34, 50, 101 or 152, alexnet, or timm:NAME.
        init: Weights to start the encoder from: a run folder, a checkpoint of another project,
            timm:NAME or torchvision:NAME; by default random weights.
        init_sha256: SHA-256 that the file of these weights must have; recorded when a run starts.
        width: Factor on the number of channels; for CMC of each half-encoder.
        stem: First layers: small (3x3, no pooling), medium, large, padded (as small, with a padding
            of 2, as solo-learn's), or auto by the view size.
        patch: Side in pixels of the patches of one of timm's vision transformers; by default the
            model's own.
        heads: Attention heads of one of timm's vision transformers; by default the model's own.
        depth: Blocks of one of timm's vision transformers; by default the model's own.
        registers: Register tokens of one of timm's vision transformers; by default the model's own.
        class_token: Whether one of timm's vision transformers has a class token; by default the
            model's own. Without one its patch tokens are averaged.
        pooling: Features of one of timm's vision transformers: its class token, or the average of
            its patch tokens; by default the model's own. Kept with the encoder.
        drop_path: Stochastic depth of one of timm's vision transformers: the probability, in
            [0, 1), with which its last block is left out for an image in training; earlier blocks
            less, momentum encoders never.
        drop_path_uniform: Whether every block has the probability of the last one.
        zero_init_residual: ResNets: initialize the last batch norm of each block to 0, so that a
            block starts as the identity.
    """

    backbone: str = "resnet18"
    init: str | None = None
    init_sha256: str | None = None
    width: float = 1.0
    stem: str = "auto"
    patch: int | None = None
    heads: int | None = None
    depth: int | None = None
    registers: int | None = None
    class_token: bool | None = None
    pooling: str | None = None
    drop_path: float | None = None
    drop_path_uniform: bool = False
    zero_init_residual: bool = False

    def __post_init__(self) -> None:
        choices = catalog().choices
        if not self.backbone.startswith(TIMM):
            _check_backbone(self.backbone, choices["backbones"])
        check_number("width", self.width, above=0)
        check_choice("stem", self.stem, choices["stems"])
        for name in ("patch", "heads", "depth"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, at_least=1)
        if self.registers is not None:
            check_number("registers", self.registers, at_least=0)
        if self.pooling is not None:
            check_choice("pooling", self.pooling, CHOICES["pooling"])
        if self.drop_path is not None:
            check_number("drop_path", self.drop_path, at_least=0, below=1)
        elif self.drop_path_uniform:
            raise UserError("applies to `drop_path`; give it too.", parameter="drop_path_uniform")
        check_given("init", self.init)
        if self.init_sha256 is not None:
            if self.init is None:
                raise UserError("applies to `init`; give it too.", parameter="init_sha256")
            if not re.fullmatch(r"[0-9a-f]{64}", self.init_sha256):
                raise UserError(
                    f"{self.init_sha256!r} is not a SHA-256; it has 64 hexadecimal digits.",
                    parameter="init_sha256",
                )


def _check_backbone(name: str, ours: list[str]) -> None:
    if name in ours:
        return
    theirs = timm_models()
    if name.split(".")[0] in theirs:
        raise UserError(f"{name!r} is a model of timm; give {TIMM}{name}.", parameter="backbone")
    near = called_value("backbone", name) or nearest(name, [*theirs, *ours])
    if near is not None and near not in ours:
        near = TIMM + near.removeprefix(TIMM)
        raise UserError(
            f"{name!r} is unknown. Did you mean {near!r}? Known: {', '.join(ours)}, and those of "
            f"timm as {TIMM}NAME.",
            parameter="backbone",
        )
    check_choice("backbone", name, ours)


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer and learning-rate schedule.

    Args:
        optimizer: sgd, adam, adamw, lars, or larc: SwAV's variant of lars, which also scales
            biases and norms.
        lr: Learning rate, not scaled with the batch size.
        final_lr: Learning rate at the end of the cosine.
        momentum: Momentum of sgd, lars and larc.
        trust: Trust coefficient of lars and larc.
        trust_clip: Cap the rate of each parameter of lars or larc at lr, as solo-learn's LARS and
            apex's LARC: the smaller of trust |w| / |g| and lr, instead of their product.
        weight_decay: L2 penalty; with adamw decoupled from the gradient.
        lr_decay: Factor on the learning rate from each layer of the backbone to the one before, in
            (0, 1]; transformers by block, ResNets by stage, as BEiT and MAE are fine-tuned.
        patch_embed_lr_mult: Further factor on the learning rate of a transformer's patch embedding.
        clip_grad: Largest L2 norm of a step's gradients, which are scaled down to it; 0 leaves them
            as they are.
        clip_grad_by: What has a norm of its own: all gradients together, each network (backbone,
            head), as in DINOv2, or each parameter, as in DINO and iBOT.
        freeze_backbone_epochs: Epochs at the start in which the backbone is not trained, only what
            follows it: neither weights nor statistics of batch norm change.
        decay_all: Whether weight decay also applies to biases and norms (parameters of one
            dimension); by default with sgd, adam and larc, not with adamw and lars.
        final_weight_decay: Weight decay at the end of a cosine schedule; by default it is constant.
        schedule: cosine, step or constant, per optimizer step.
        milestones: Epochs after which the step schedule multiplies the learning rate by gamma.
        gamma: Factor of the step schedule.
        restarts: Epochs at which the schedules start again, such as 200: the cosine with its
            warmup, those of weight decay and of momentum encoders; --extend adds one.
        warmup_epochs: Epochs of linear warmup of the learning rate.
        warmup_start_lr: Learning rate at the start of the warmup.
    """

    optimizer: str = "sgd"
    lr: float = 0.06
    final_lr: float = 0.0
    momentum: float = 0.9
    trust: float = 0.001
    trust_clip: bool = False
    weight_decay: float = 5e-4
    lr_decay: float = 1.0
    patch_embed_lr_mult: float = 1.0
    clip_grad: float = 0.0
    clip_grad_by: str = "all"
    freeze_backbone_epochs: int = 0
    decay_all: bool | None = None
    final_weight_decay: float | None = None
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    restarts: tuple[int, ...] = ()
    warmup_epochs: float = 0.0
    warmup_start_lr: float = 0.0

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, CHOICES["optimizer"])
        check_choice("schedule", self.schedule, CHOICES["schedule"])
        check_number("lr", self.lr, above=0)
        check_number("final_lr", self.final_lr, at_least=0)
        if self.final_lr and self.schedule != "cosine":
            raise UserError(
                f"{self.final_lr:g} applies only to `schedule=cosine`, not to {self.schedule}.",
                parameter="final_lr",
            )
        check_number("momentum", self.momentum, at_least=0, at_most=1)
        check_number("trust", self.trust, above=0)
        if self.trust_clip and self.optimizer not in ("lars", "larc"):
            raise UserError(
                f"applies only to `optimizer=lars` and larc, not to {self.optimizer}; leave it out "
                "(`trust_clip=False`).",
                parameter="trust_clip",
            )
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_number("lr_decay", self.lr_decay, above=0, at_most=1)
        check_number("patch_embed_lr_mult", self.patch_embed_lr_mult, above=0)
        check_number("clip_grad", self.clip_grad, at_least=0)
        check_choice("clip_grad_by", self.clip_grad_by, CHOICES["clip_grad_by"])
        check_number("freeze_backbone_epochs", self.freeze_backbone_epochs, at_least=0)
        if self.final_weight_decay is not None:
            check_number("final_weight_decay", self.final_weight_decay, at_least=0)
        check_number("gamma", self.gamma, above=0)
        check_number("warmup_epochs", self.warmup_epochs, at_least=0)
        check_number("warmup_start_lr", self.warmup_start_lr, at_least=0)
        if self.warmup_start_lr and not self.warmup_epochs:
            raise UserError(
                f"{self.warmup_start_lr:g} applies only to a warmup; give `warmup_epochs` too.",
                parameter="warmup_start_lr",
            )
        if self.schedule == "step" and not self.milestones:
            raise UserError("required by a step schedule, such as 120 160.", parameter="milestones")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(
                f"{list(self.milestones)} must be increasing, such as 120 160.",
                parameter="milestones",
            )
        if list(self.restarts) != sorted({n for n in self.restarts if n > 0}):
            raise UserError(
                f"{list(self.restarts)} must be increasing, and greater than 0, such as 200 300.",
                parameter="restarts",
            )


@dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation during training and at the end.

    Args:
        knn_every: Epochs between kNN evaluations; 0 for none during training.
        knn_k: Number of neighbors that vote.
        knn_temperature: T of the votes' weights exp(similarity / T).
        linear_every: Epochs between linear probes; 0 for none during training.
        features: Evaluate the backbone's pooled features, or the projector's.
        evaluate: Evaluate by kNN and a linear probe at the end.
    """

    knn_every: int = 5
    knn_k: int = 200
    knn_temperature: float = 0.1
    linear_every: int = 0
    features: str = "backbone"
    evaluate: bool = True

    def __post_init__(self) -> None:
        check_number("knn_every", self.knn_every, at_least=0)
        check_number("knn_k", self.knn_k, at_least=1)
        check_number("knn_temperature", self.knn_temperature, above=0)
        check_number("linear_every", self.linear_every, at_least=0)
        check_choice("features", self.features, CHOICES["features"])


@dataclass(frozen=True)
class MachineSettings:
    """Hardware and precision; may differ when a run is resumed.

    Args:
        device: auto, cpu, cuda or mps.
        precision: auto (by the device), 32, bf16 or 16.
        devices: Number of devices per machine; each takes an equal part of a batch.
        nodes: Number of machines, for a cluster's launcher.
        strategy: ddp: each device holds all weights; or fsdp: a part of the weights, of their
            gradients and of the optimizer's state, for transformers that are too large otherwise.
        accumulate: Parts in which the images of a batch are encoded, one after the other, for
            batches that do not fit in memory: the gradients of one optimizer step are averaged
            over them, so batch_size, learning rate and steps stay what they are.
        checkpoint_activations: Compute the activations within a block of the backbone again for its
            gradient instead of keeping them: less memory, about a third more time, same gradients.
        engine: What starts the processes: lightning (or torchrun, srun and submit, where they have
            started them), or ray, which starts devices x nodes workers anywhere on its cluster.
        threads: Number of CPU threads; by default the number of free cores when the run begins, and
            the same when it is resumed, because the last digits depend on it.
        workers: Number of processes that decode files for each device; by default from the number
            of cores.
        resident: Keep the training images as uint8 on the device: yes, no, or auto: if they take
            at most resident_share of its free memory. Files must all have one size.
        resident_share: Largest fraction of the device's free memory for them, in (0, 1].
        compile: Use torch.compile: yes (encoders and views), no, or auto: on CUDA for the views, if
            it is measured to be faster at the start.
        checkpoint_every: Epochs between checkpoints to keep; 0 keeps only the last.
        checkpoint_steps: Steps between saves of the last checkpoint within an epoch; 0 for none.
        logger: Logger of metrics beside CSV: tensorboard, wandb, mlflow, trackio or none.
    """

    device: str = "auto"
    precision: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "ddp"
    accumulate: int = 1
    checkpoint_activations: bool = False
    engine: str = "lightning"
    threads: int | None = None
    workers: int | None = None
    resident: str = "auto"
    resident_share: float = 0.25
    compile: str = "auto"
    checkpoint_every: int = 0
    checkpoint_steps: int = 0
    logger: str = "tensorboard"

    def __post_init__(self) -> None:
        check_choice("device", self.device, CHOICES["device"])
        check_choice("precision", str(self.precision), CHOICES["precision"])
        check_number("devices", self.devices, at_least=1)
        check_number("nodes", self.nodes, at_least=1)
        check_choice("strategy", self.strategy, CHOICES["strategy"])
        check_number("accumulate", self.accumulate, at_least=1)
        check_choice("engine", self.engine, CHOICES["engine"])
        if self.threads is not None:
            check_number("threads", self.threads, at_least=1)
        if self.workers is not None:
            check_number("workers", self.workers, at_least=0)
        check_choice("resident", self.resident, CHOICES["resident"])
        check_choice("compile", self.compile, CHOICES["compile"])
        check_number("resident_share", self.resident_share, above=0, at_most=1)
        check_number("checkpoint_every", self.checkpoint_every, at_least=0)
        check_number("checkpoint_steps", self.checkpoint_steps, at_least=0)
        check_choice("logger", self.logger, CHOICES["logger"])

    @property
    def processes(self) -> int:
        """The number of processes that train together."""
        return self.devices * self.nodes


GROUPS: dict[str, type] = {
    "run": RunSettings,
    "model": ModelSettings,
    "mixture": MixtureSettings,
    "views": ViewSettings,
    "optimizer": OptimizerSettings,
    "evaluation": EvaluationSettings,
    "machine": MachineSettings,
}


def field_names(group: str) -> list[str]:
    """The names of a group's settings."""
    return [f.name for f in dataclasses.fields(GROUPS[group])]
