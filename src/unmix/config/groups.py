"""The groups of a run's settings: each field is a flag, with its default, text and bounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from unmix.config.catalog import catalog
from unmix.config.mixtures import MixtureSettings
from unmix.config.views import INTERPOLATIONS, ViewSettings
from unmix.errors import UserError, check_choice, check_given, check_number
from unmix.synonyms import called_value, nearest, timm_models

__all__ = [
    "CHOICES",
    "GROUPS",
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
    "compile": _YES_NO_AUTO,
    "device": ("auto", "cpu", "cuda", "mps"),
    "features": ("backbone", "projector"),
    **dict.fromkeys(
        ("interpolation", "local_interpolation", "second_interpolation"), INTERPOLATIONS
    ),
    "logger": ("tensorboard", "wandb", "mlflow", "trackio", "none"),
    "optimizer": ("sgd", "adam", "adamw", "lars", "larc"),
    "precision": ("auto", "32", "bf16", "16"),
    "resident": _YES_NO_AUTO,
    "schedule": ("cosine", "step", "constant"),
}
"""What a setting may be, by its name."""


@dataclass(frozen=True)
class RunSettings:
    """What is trained on what.

    Args:
        method: Self-supervised method, such as moco, simclr or byol; `unmix methods` lists them.
        data: Data set by name, or a folder of images.
        data_dir: Where the data set lies (for the names that need files).
        train_folder: Folder of the training images, relative to --data; by default found by the
            usual names, such as train/. A dot takes every folder for a class.
        test_folder: Folder of the images to evaluate on, likewise; by default val/, else test/.
        run: Run folder; give it again to resume. By default
            runs/METHOD-DATA-MIXTURE-seedSEED.
        epochs: Passes over the training images.
        batch_size: Images in a batch.
        drop_last: Leave out the last batch of an epoch where it is short.
        size: Side of the views in pixels; by default the data set's own.
        limit: Use only this many of the training images, evenly spaced.
        mean: Normalise by this RGB mean in [0, 1] instead of the data set's own.
        std: Normalise by this RGB standard deviation instead of the data set's own.
        max_pixels: Images of more pixels than this are not decoded, for what they would cost.
        bit_depth: Bits that images of more than 8 bits really use, such as 12; by default their
            range is that of the data set.
        range: Values that become black and white in images of more than 8 bits, instead.
        seed: Same seed, same run.
        strict: Stop at the first broken image instead of skipping it.
        download: Download the data set where torchvision can.
    """

    method: str = "moco"
    data: str = "photos"
    data_dir: str | None = None
    train_folder: str | None = None
    test_folder: str | None = None
    run: str | None = None
    epochs: int = 20
    batch_size: int = 128
    drop_last: bool = False
    size: int | None = None
    limit: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    max_pixels: int = 178_956_970
    bit_depth: int | None = None
    range: tuple[float, float] | None = None
    seed: int = 0
    strict: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "data_dir", "run"):
            check_given(name, getattr(self, name))
        check_choice("method", self.method, catalog().methods)
        check_number("epochs", self.epochs, at_least=1)
        check_number("seed", self.seed, at_least=0, at_most=2**63 - 1)
        if self.batch_size < 2:
            raise UserError(
                f"--batch_size: {self.batch_size} is too small; batch norm and mixtures need at "
                "least 2 images."
            )
        if self.size is not None:
            check_number("size", self.size, at_least=1)
        for name, values in (("mean", self.mean), ("std", self.std)):
            for value in values or ():
                check_number(name, value, at_least=0, at_most=1)
            if name == "std" and 0 in (values or ()):
                raise UserError("--std: 0 cannot be divided by; each must be greater than 0.")
        if self.limit is not None:
            check_number("limit", self.limit, at_least=2)
        check_number("max_pixels", self.max_pixels, at_least=1)
        self._check_range()

    def _check_range(self) -> None:
        if self.bit_depth is not None:
            check_number("bit_depth", self.bit_depth, at_least=1, at_most=32)
            if self.range is not None:
                raise UserError("--bit_depth: goes without --range, which says the same.")
        if self.range is not None:
            for value in self.range:
                check_number("range", value)
            if self.range[0] >= self.range[1]:
                raise UserError(
                    f"--range: {self.range[0]:g} {self.range[1]:g} must rise, such as 0 4095."
                )

    @property
    def limits(self) -> tuple[float, float] | None:
        """What becomes black and white in images of more than 8 bits, if that is settled."""
        return self.range if self.bit_depth is None else (0.0, 2.0**self.bit_depth - 1)


@dataclass(frozen=True)
class ModelSettings:
    """The encoder.

    Args:
        backbone: resnet10, 18, 34, 50, 101 or 152, alexnet, or timm:NAME.
        width: Factor on the channels; for CMC of each half-encoder.
        stem: First layers: small (3x3, no pooling), medium, large, or auto by the view size.
        patch: Side in pixels of the patches of one of timm's vision transformers; by default the
            model's own.
        zero_init_residual: ResNets: start the last batch norm of each block at 0, so that a block
            is the identity at first.
    """

    backbone: str = "resnet18"
    width: float = 1.0
    stem: str = "auto"
    patch: int | None = None
    zero_init_residual: bool = False

    def __post_init__(self) -> None:
        words = catalog().words
        if not self.backbone.startswith(TIMM):
            _check_backbone(self.backbone, words["backbones"])
        check_number("width", self.width, above=0)
        check_choice("stem", self.stem, words["stems"])
        if self.patch is not None:
            check_number("patch", self.patch, at_least=1)


def _check_backbone(name: str, ours: list[str]) -> None:
    if name in ours:
        return
    theirs = timm_models()
    if name.split(".")[0] in theirs:
        raise UserError(f"--backbone: {name!r} is one of timm's; give {TIMM}{name}.")
    near = called_value("backbone", name) or nearest(name, [*theirs, *ours])
    if near is not None and near not in ours:
        near = TIMM + near.removeprefix(TIMM)
        raise UserError(
            f"--backbone: {name!r} is unknown. Did you mean {near!r}? Known: {', '.join(ours)}, "
            f"and those of timm as {TIMM}NAME."
        )
    check_choice("backbone", name, ours)


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimiser and schedule.

    Args:
        optimizer: sgd, adam, adamw, lars, or larc: SwAV's form of lars, which also scales biases
            and norms.
        lr: Learning rate, of the batch size given (it is not scaled).
        final_lr: Learning rate at the end of the cosine.
        momentum: Of sgd, lars and larc.
        trust: Trust coefficient of lars and larc.
        weight_decay: L2 penalty; with adamw decoupled from the gradient.
        decay_all: Whether biases and norms (parameters of one dimension) have weight decay too; by
            default with sgd, adam and larc, not with adamw and lars.
        final_weight_decay: Weight decay at the end, towards which it goes by a cosine; by default
            it stays.
        schedule: cosine, step or constant; counted in steps.
        milestones: Epochs after which a step schedule multiplies the rate by gamma.
        gamma: Factor of the step schedule.
        warmup_epochs: Epochs in which the rate rises linearly.
        warmup_start_lr: Learning rate that the warm-up starts from.
    """

    optimizer: str = "sgd"
    lr: float = 0.06
    final_lr: float = 0.0
    momentum: float = 0.9
    trust: float = 0.001
    weight_decay: float = 5e-4
    decay_all: bool | None = None
    final_weight_decay: float | None = None
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    warmup_start_lr: float = 0.0

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, CHOICES["optimizer"])
        check_choice("schedule", self.schedule, CHOICES["schedule"])
        check_number("lr", self.lr, above=0)
        check_number("final_lr", self.final_lr, at_least=0)
        if self.final_lr and self.schedule != "cosine":
            raise UserError(
                f"--final_lr: {self.final_lr:g} is the end of --schedule cosine, not of "
                f"{self.schedule}."
            )
        check_number("momentum", self.momentum, at_least=0, at_most=1)
        check_number("trust", self.trust, above=0)
        check_number("weight_decay", self.weight_decay, at_least=0)
        if self.final_weight_decay is not None:
            check_number("final_weight_decay", self.final_weight_decay, at_least=0)
        check_number("gamma", self.gamma, above=0)
        check_number("warmup_epochs", self.warmup_epochs, at_least=0)
        check_number("warmup_start_lr", self.warmup_start_lr, at_least=0)
        if self.warmup_start_lr and not self.warmup_epochs:
            raise UserError(
                f"--warmup_start_lr: {self.warmup_start_lr:g} is where a warm-up starts, and there "
                "is none; give --warmup_epochs too."
            )
        if self.schedule == "step" and not self.milestones:
            raise UserError(
                "--milestones: a step schedule needs them, such as --milestones 120 160."
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"--milestones: {list(self.milestones)} must rise, such as 120 160.")


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured on the way and at the end.

    Args:
        knn_every: Epochs between kNN evaluations; 0 for none on the way.
        knn_k: Neighbours that vote.
        knn_temperature: T of their weights exp(similarity / T).
        linear_every: Epochs between linear probes; 0 for none on the way.
        features: Evaluate the backbone's pooled features, or the projector's.
        evaluate: Evaluate kNN and the linear probe at the end.
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
    """Where and how it is computed; may differ when a run is resumed.

    Args:
        device: auto, cpu, cuda or mps.
        precision: auto (what the device is fast at), 32, bf16 or 16.
        devices: Devices of a machine that train together; each takes an equal part of a batch.
        nodes: Machines of so many devices, for a cluster's launcher.
        threads: Threads that compute on a CPU; by default as many as there are free cores when the
            run begins, and the same when it is resumed, for the last digits depend on it.
        workers: Processes that decode files; by default from the number of cores.
        resident: Hold the training images as uint8 on the device: yes, no, or auto: if they take
            at most resident_share of its free memory. Files can be held if all are of one size.
        resident_share: Largest share of the device's free memory for them, in (0, 1].
        compile: Compile with torch.compile: yes (encoders and views), no, or auto: on CUDA the
            views, if that is measured to be quicker at the start.
        checkpoint_every: Epochs between checkpoints that are kept; 0 keeps the last one only.
        checkpoint_steps: Steps between saves of the last checkpoint within an epoch; 0 for none.
        logger: Where metrics go beside CSV: tensorboard, wandb, mlflow, trackio or none.
    """

    device: str = "auto"
    precision: str = "auto"
    devices: int = 1
    nodes: int = 1
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
        """How many processes train together."""
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
    """The words of a group."""
    return [f.name for f in dataclasses.fields(GROUPS[group])]
