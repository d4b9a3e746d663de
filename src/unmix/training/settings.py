"""All settings of a run, in groups; flat on the command line and in YAML, with the same words."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from unmix.errors import UserError, check_choice, check_number
from unmix.methods import METHODS, method_class
from unmix.mixtures import MixtureSettings
from unmix.views import ViewSettings

__all__ = [
    "GROUPS",
    "EvaluationSettings",
    "MachineSettings",
    "ModelSettings",
    "OptimizerSettings",
    "RunSettings",
    "Settings",
    "field_names",
    "method_options",
    "methods_with",
]

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "32", "bf16", "16")
YES_NO_AUTO = ("auto", "yes", "no")


@dataclass(frozen=True)
class RunSettings:
    """What is trained on what.

    Args:
        method: Self-supervised method, such as moco, simclr or byol; `unmix methods` lists them.
        data: Data set by name, or a folder of images.
        data_dir: Where the data set lies (for the names that need files).
        run: Run folder; give it again to resume. By default runs/METHOD-DATA-MIXTURE.
        epochs: Passes over the training images.
        batch_size: Images in a batch.
        size: Side of the views in pixels; by default the data set's own.
        limit: Use only this many of the training images, evenly spaced.
        mean: Normalise by this RGB mean in [0, 1] instead of the data set's own.
        std: Normalise by this RGB standard deviation instead of the data set's own.
        seed: Same seed, same run.
        strict: Stop at the first broken image instead of skipping it.
        download: Download the data set where torchvision can.
    """

    method: str = "moco"
    data: str = "photos"
    data_dir: str | None = None
    run: str | None = None
    epochs: int = 20
    batch_size: int = 128
    size: int | None = None
    limit: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    seed: int = 0
    strict: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        method_class(self.method)
        check_number("--epochs", self.epochs, at_least=1)
        check_number("--seed", self.seed, at_least=0, at_most=2**63 - 1)
        if self.batch_size < 2:
            raise UserError(
                f"--batch_size: {self.batch_size} is too small; batch norm and mixtures need at "
                "least 2 images."
            )
        if self.size is not None:
            check_number("--size", self.size, at_least=1)
        for name, values in (("mean", self.mean), ("std", self.std)):
            for value in values or ():
                check_number(f"--{name}", value, at_least=0, at_most=1)
            if name == "std" and 0 in (values or ()):
                raise UserError("--std: 0 cannot be divided by; each must be greater than 0.")
        if self.limit is not None:
            check_number("--limit", self.limit, at_least=2)


@dataclass(frozen=True)
class ModelSettings:
    """The encoder.

    Args:
        backbone: resnet10, 18, 34, 50, 101 or 152, alexnet, or timm:NAME.
        width: Factor on the channels; for CMC of each half-encoder.
        stem: First layers: small (3x3, no pooling), medium, large, or auto by the view size.
        patch: Side in pixels of the patches of one of timm's vision transformers; by default the
            model's own.
    """

    backbone: str = "resnet18"
    width: float = 1.0
    stem: str = "auto"
    patch: int | None = None


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimiser and schedule.

    Args:
        optimizer: sgd, adam, adamw or lars.
        lr: Learning rate, of the batch size given (it is not scaled).
        final_lr: Learning rate at the end of the cosine.
        momentum: Of SGD and LARS.
        trust: Trust coefficient of LARS.
        weight_decay: L2 penalty; with adamw decoupled from the gradient. Adamw and lars leave
            biases and norms (parameters of one dimension) without it.
        final_weight_decay: Weight decay at the end, towards which it goes by a cosine; by default
            it stays.
        schedule: cosine, step or constant; counted in steps.
        milestones: Epochs after which a step schedule multiplies the rate by gamma.
        gamma: Factor of the step schedule.
        warmup_epochs: Epochs in which the rate rises linearly from 0.
    """

    optimizer: str = "sgd"
    lr: float = 0.06
    final_lr: float = 0.0
    momentum: float = 0.9
    trust: float = 0.001
    weight_decay: float = 5e-4
    final_weight_decay: float | None = None
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        check_choice("--optimizer", self.optimizer, ("sgd", "adam", "adamw", "lars"))
        check_choice("--schedule", self.schedule, ("cosine", "step", "constant"))
        check_number("--lr", self.lr, above=0)
        check_number("--final_lr", self.final_lr, at_least=0)
        if self.final_lr and self.schedule != "cosine":
            raise UserError(
                f"--final_lr: {self.final_lr:g} is the end of --schedule cosine, not of "
                f"{self.schedule}."
            )
        check_number("--momentum", self.momentum, at_least=0, at_most=1)
        check_number("--trust", self.trust, above=0)
        check_number("--weight_decay", self.weight_decay, at_least=0)
        if self.final_weight_decay is not None:
            check_number("--final_weight_decay", self.final_weight_decay, at_least=0)
        check_number("--gamma", self.gamma, above=0)
        check_number("--warmup_epochs", self.warmup_epochs, at_least=0)
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
        check_number("--knn_every", self.knn_every, at_least=0)
        check_number("--knn_k", self.knn_k, at_least=1)
        check_number("--knn_temperature", self.knn_temperature, above=0)
        check_number("--linear_every", self.linear_every, at_least=0)
        check_choice("--features", self.features, ("backbone", "projector"))


@dataclass(frozen=True)
class MachineSettings:
    """Where and how it is computed; may differ when a run is resumed.

    Args:
        device: auto, cpu, cuda or mps.
        precision: auto (what the device is fast at), 32, bf16 or 16.
        devices: Devices of a machine that train together; each takes an equal part of a batch.
        nodes: Machines of so many devices, for a cluster's launcher.
        workers: Processes that decode files; by default from the number of cores.
        resident: Hold the training images as uint8 on the device: yes, no, or auto: if they take
            at most resident_share of its free memory. Files can be held if all are of one size.
        resident_share: Largest share of the device's free memory for them, in (0, 1].
        compile: Compile with torch.compile: yes (encoders and views), no, or auto: on CUDA the
            views, if that is measured to be quicker at the start.
        checkpoint_every: Epochs between checkpoints that are kept; 0 keeps the last one only.
        checkpoint_steps: Steps between saves of the last checkpoint within an epoch; 0 for none.
        logger: Where metrics go beside CSV: tensorboard, wandb, mlflow or none.
    """

    device: str = "auto"
    precision: str = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int | None = None
    resident: str = "auto"
    resident_share: float = 0.25
    compile: str = "auto"
    checkpoint_every: int = 0
    checkpoint_steps: int = 0
    logger: str = "tensorboard"

    def __post_init__(self) -> None:
        check_choice("--device", self.device, DEVICES)
        check_choice("--precision", str(self.precision), PRECISIONS)
        check_number("--devices", self.devices, at_least=1)
        check_number("--nodes", self.nodes, at_least=1)
        if self.workers is not None:
            check_number("--workers", self.workers, at_least=0)
        check_choice("--resident", self.resident, YES_NO_AUTO)
        check_choice("--compile", self.compile, YES_NO_AUTO)
        check_number("--resident_share", self.resident_share, above=0, at_most=1)
        check_number("--checkpoint_every", self.checkpoint_every, at_least=0)
        check_number("--checkpoint_steps", self.checkpoint_steps, at_least=0)
        check_choice("--logger", self.logger, ("tensorboard", "wandb", "mlflow", "none"))

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


def method_options(method: str) -> dict[str, inspect.Parameter]:
    """The options of a method: the keyword arguments of its class."""
    parameters = inspect.signature(method_class(method)).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


@dataclass(frozen=True)
class Settings:
    """Everything that makes a run, in groups.

    `Settings.of(**words)` takes the words of the command line; `flat()` gives them back.
    """

    run: RunSettings = field(default_factory=RunSettings)
    method: dict[str, Any] = field(default_factory=dict)
    model: ModelSettings = field(default_factory=ModelSettings)
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Settings:
        """Sort flat words into their groups.

        Raises:
            UserError: for a word that no group and not the method has, with the nearest match, or
                a value of another type, or one that its group refuses.
        """
        method = words.get("method", RunSettings.method)
        options = method_options(method)
        hints = get_type_hints(method_class(method).__init__)
        for kind in GROUPS.values():
            hints.update(get_type_hints(kind))
        known = {name: group for group in GROUPS for name in field_names(group)}
        sorted_: dict[str, dict[str, Any]] = {group: {} for group in (*GROUPS, "method")}
        for name, value in words.items():
            group = known.get(name) or ("method" if name in options else None)
            if group is None:
                raise UserError(unknown_word(name, [*known, *options], method))
            sorted_[group][name] = fitting(name, value, hints[name])
        defaults = {name: option.default for name, option in options.items()}
        groups = {group: GROUPS[group](**sorted_[group]) for group in GROUPS}
        return cls(method={**defaults, **sorted_["method"]}, **groups)

    def flat(self) -> dict[str, Any]:
        """All settings as flat words, in the order of the groups; plain lists and numbers."""
        words: dict[str, Any] = {}
        for group in ("run", "method", *list(GROUPS)[1:]):
            value = getattr(self, group)
            items = value if isinstance(value, dict) else dataclasses.asdict(value)
            words.update({k: list(v) if isinstance(v, tuple) else v for k, v in items.items()})
        return words

    def with_words(self, **words: Any) -> Settings:
        """The same settings with some words changed."""
        return Settings.of({**self.flat(), **words})

    @property
    def folder(self) -> Path:
        """The run folder: `run`, or runs/METHOD-DATA-MIXTURE."""
        if self.run.run is not None:
            return Path(self.run.run)
        mixture = self.mixture.folder
        data = Path(self.run.data).name or "data"
        return Path("runs") / f"{self.run.method}-{data}-{mixture}"


def field_names(group: str) -> list[str]:
    """The words of a group."""
    return [f.name for f in dataclasses.fields(GROUPS[group])]


def methods_with(option: str) -> list[str]:
    """The methods that have an option of this name."""
    return [method for method in METHODS if option in method_options(method)]


def unknown_word(name: str, known: list[str], method: str) -> str:
    """The message for a word that means nothing, or something with other methods only."""
    if owners := methods_with(name):
        return f"--{name}: is for --method {' or '.join(owners)} only."
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    hint = f" Did you mean --{near[0]}?" if near else " See unmix pretrain --help."
    return f"--{name}: there is no such setting with --method {method}.{hint}"


_WANTED: dict[type, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a word"
}  # fmt: skip


def fitting(name: str, value: Any, hint: Any) -> Any:
    """A value as its type wants it, wherever it is from: Python, YAML or the command line.

    A text that reads as a number is one (YAML takes 1e-3 for a text), and a number is a word where
    a word is wanted (`precision: 32`).

    Raises:
        UserError: if the value is of another type.
    """
    args = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return None if value is None else fitting(name, value, args[0])
    if get_origin(hint) is tuple:
        return _fitting_tuple(name, value, args)
    kind = hint if hint in _WANTED else str
    converted = _convert(value, kind)
    if converted is None:
        raise UserError(f"--{name}: {value!r} is not {_WANTED[kind]}.")
    return converted


def _fitting_tuple(name: str, value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    count = None if Ellipsis in args else len(args)
    if not isinstance(value, (list, tuple)):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"--{name}: {value!r} is not a list of {wanted}.")
    if count is not None and len(value) != count:
        raise UserError(f"--{name}: {list(value)} must be {count} numbers.")
    return tuple(fitting(name, item, args[0]) for item in value)


def _convert(value: Any, kind: type) -> Any:
    """The value as `kind`, or None if it cannot be that without a loss."""
    if kind is str and isinstance(value, bool):
        return "yes" if value else "no"  # YAML takes these words for true and false
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is str:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        return str(value) if isinstance(value, (str, int, float)) else None
    if kind is int and isinstance(value, float):
        return None
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        return None
