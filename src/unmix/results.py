"""What a run measured, read from and written to its folder's `results.json`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unmix.busy import cores_missed, machine_of
from unmix.display import DASH, counted, duration, measure_name, method_name, number, value_text
from unmix.errors import UserError
from unmix.files import as_path, atomic_write, read_json
from unmix.html import chart, escaped, table
from unmix.names import json_bytes
from unmix.rows import measure_of
from unmix.schema import Count, Epoch, Integer, Percent, checked, excerpt

__all__ = [
    "SCHEMA",
    "DamagedResultsError",
    "Evaluation",
    "RunResults",
    "described",
    "details_in_words",
    "finite",
    "is_transfer",
    "load_results",
    "protocols_of",
    "set_aside",
    "write_results",
]

SCHEMA = 1
FILE = "results.json"

# The order of tables; other protocols follow.
_FIRST = (
    "knn", "linear", "cmc", "moco", "whitening", "swav", "barlow", "vicreg", "dino",
    "knn-euclidean",
)  # fmt: skip
ON = " on "
"""Between a protocol and the other data that it was measured on, in the protocol's name."""


class DamagedResultsError(UserError):
    """A `results.json` that exists but cannot be parsed."""


@dataclass(frozen=True)
class Evaluation:
    """One measurement of an encoder.

    Attributes:
        protocol: A name of `unmix.evaluation.PROTOCOLS`, or `finetune` and which labels.
        epoch: Pretraining epochs that were complete when it was measured.
        top1: Accuracy in percent.
        top5: The same for the five best classes; None where it was not measured.
        details: Everything else in the row: `k`, `temperature`, `features`, `train_images`, ...
    """

    protocol: str
    epoch: int
    top1: float
    top5: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measure(self) -> str:
        """What tables call it; see `unmix.rows.measure_of`."""
        return measure_of(self.protocol, self.details)


@dataclass(frozen=True)
class RunResults:
    """A run's `results.json`; docs/architecture.md describes the fields.

    Attributes:
        mixture: `none` (a baseline), an image-space mixture's name, or `Un-Mix`.
        width: Multiple of the backbone's channels.
        size: Side of the training images in pixels.
        epochs: Pretraining epochs of the whole run.
        evaluations: In the order of their epochs; empty where the images have no labels.
        training: `seconds`, `images_per_second`, `peak_memory_bytes`, `steps`, `loss`.
        quality: What needs no labels: `rankme`, `alpha_req`, `lidar`, `alignment`, `uniformity`,
            and on what; empty in results of earlier versions.
        complete_epochs: Of a run that has not ended; None for one that has.
        running: Whether a process trains it, as far as can be seen from this machine.
        transfers: By protocols such as "knn on digits", the data as rows of `results.json` name it;
            see `is_transfer`.
    """

    name: str
    method: str
    mixture: str
    data: str
    backbone: str
    width: float
    size: int
    epochs: int
    seed: int
    command: str
    evaluations: tuple[Evaluation, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    complete_epochs: int | None = None
    running: bool = False
    transfers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether all epochs of the run are complete, and their results known."""
        return self.complete_epochs is None

    @property
    def progress(self) -> str:
        """How far it is: "20", or "running, 3 of 20", "stopped, 3 of 20"."""
        if self.complete_epochs is None:
            return str(self.epochs)
        state = "running" if self.running else "stopped"
        return f"{state}, {self.complete_epochs} of {self.epochs}"

    @property
    def busy(self) -> float | None:
        """Cores that other processes took, where that slowed the training down; else None."""
        return cores_missed(self.training, self.hardware)

    @property
    def machine(self) -> str:
        """What it was trained on; "" if that is not known."""
        return machine_of(self.hardware)

    @property
    def imported(self) -> bool:
        """Whether its weights were trained elsewhere: `unmix import`."""
        return "imported" in self.training

    @property
    def baseline(self) -> bool:
        """Whether the run was trained without a mixture."""
        return self.mixture == "none"

    def of(self, measure: str) -> tuple[Evaluation, ...]:
        """Return the evaluations of a measure, as "knn", in the order of their epochs."""
        return tuple(row for row in self.evaluations if row.measure == measure)

    @property
    def flat(self) -> list[dict[str, Any]]:
        """The evaluations as rows of `results.json`."""
        rows = []
        for e in self.evaluations:
            data = self.transfers.get(e.protocol)
            protocol = e.protocol if data is None else e.protocol.partition(ON)[0]
            row = {"protocol": protocol, "epoch": e.epoch, "top1": e.top1, "top5": e.top5}
            rows.append({**row, **e.details, **({} if data is None else {"data": data})})
        return rows

    def final(self, measure: str) -> Evaluation | None:
        """Return a measure's evaluation at its last epoch, or None if there is none."""
        rows = self.of(measure)
        return rows[-1] if rows else None

    def _repr_html_(self) -> str:
        """In a notebook: what was run, what was measured, and the course of the accuracies."""
        seconds, loss = self.training.get("seconds"), self.training.get("loss")
        facts = [
            ("method", method_name(self.method)),
            ("mixture", self.mixture),
            ("data", self.data),
            ("encoder", f"{self.backbone}, width {self.width:g}, images of {self.size} px"),
            ("epochs", f"{self.epochs}, seed {self.seed}"),
            ("loss", number(loss) if isinstance(loss, int | float) else DASH),
            ("training", duration(seconds) if isinstance(seconds, int | float) else DASH),
        ]
        parts = [f"<b>{escaped(self.name)}</b>", table((), facts)]
        if self.evaluations:
            rows = [
                (
                    measure_name(row.measure), str(row.epoch), f"{row.top1:.2f}",
                    DASH if row.top5 is None else f"{row.top5:.2f}",
                    details_in_words(row.details),
                )
                for row in self.evaluations
            ]  # fmt: skip
            columns = ("protocol", "epoch", "top-1 %", "top-5 %", "how")
            parts.append(table(columns, rows, numeric=(False, True, True, True, False)))
        own = [row for row in self.evaluations if "data" not in row.details]
        courses: dict[str, list[tuple[float, float]]] = {}
        for row in own:
            courses.setdefault(measure_name(row.measure), []).append((float(row.epoch), row.top1))
        return "".join([*parts, chart("top-1 in % by epoch", courses)])


def protocols_of(results: Sequence[RunResults]) -> list[str]:
    """The measures by which runs were evaluated: kNN and linear probes first, other data last."""
    seen = {row.measure: None for run in results for row in run.evaluations}
    own = [*(name for name in _FIRST if name in seen), *(n for n in seen if n not in _FIRST)]
    return sorted(own, key=is_transfer)


def is_transfer(protocol: str) -> bool:
    """Whether a protocol is one on other data than the run's own."""
    return ON in protocol


def details_in_words(details: Mapping[str, Any]) -> str:
    """Everything that a row says beside its accuracies: `k 200, train images 4,000`."""
    return ", ".join(f"{measure_name(key)} {value_text(x, key)}" for key, x in details.items())


def described(row: Evaluation | Mapping[str, Any]) -> str:
    """How something was measured: `kNN, k 200, T 0.1, backbone features`.

    Args:
        row: An evaluation, or a row of `results.json`.
    """
    if isinstance(row, Evaluation):
        row = {"protocol": row.protocol, **row.details}
    name, _, data = str(row["protocol"]).partition(ON)
    kinds = {"knn": "kNN", "knn-euclidean": "Euclidean kNN"}
    parts = [kinds.get(name, f"{name} probe")]
    if name.startswith("finetune"):
        labels = name.removeprefix("finetune").replace("-", " ").strip()
        parts = [f"fine-tuned{f' on {labels}' if labels else ''} ({row.get('settings')})"]
        if row.get("start") == "random":
            parts[0] = parts[0].replace("fine-tuned", "trained from scratch")
    if data or row.get("data") is not None:
        parts[0] += f" on {data or row['data']} (transfer)"
    if "k" in row:
        parts.append(f"k {row['k']}")
    if isinstance(row.get("temperature"), float | int):
        parts.append(f"T {row['temperature']:g}")
    if isinstance(row.get("epochs"), int):
        rate = f" at lr {row['lr']:g}" if isinstance(row.get("lr"), float | int) else ""
        parts.append(f"{counted(row['epochs'], 'epoch')}{rate}")
    if row.get("mix") is not None:
        beta = f" with beta {row['beta']:g}" if isinstance(row.get("beta"), float | int) else ""
        parts.append(f"mixed by {row['mix']}{beta}")
    if isinstance(row.get("chosen"), Mapping):
        rates = {k: x for k, x in row["chosen"].items() if isinstance(x, float | int)}
        chosen = ", ".join(f"{key} {value:g}" for key, value in rates.items())
        parts.append(f"{chosen} (chosen on held-out training images)")
    if row.get("layer") is not None:
        parts.append(f"layer {row['layer']}")
    elif "features" in row:
        parts.append(f"{row['features']} features")
    return ", ".join(parts)


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that nothing of it is lost; gives its new name.

    Raises:
        UserError: if it cannot be renamed.
    """
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise UserError(f"{path}: cannot be set aside ({error.strerror}).") from error
    return aside


def load_results(folder: Path) -> RunResults:
    """Read a run folder's `results.json`.

    Args:
        folder: The run folder.

    Raises:
        DamagedResultsError: if the file is not JSON, or a field is missing or invalid.
        UserError: if the file is missing, unreadable, or of another schema.
    """
    path = as_path(folder) / FILE
    try:
        data = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{path}: there is no such file; a run folder has one once its run has finished; "
            f"to finish it: unmix pretrain --run {shlex.quote(str(folder))}"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DamagedResultsError(f"{error} {_remedy(folder)}") from error
    newer = data.get("schema") if isinstance(data, Mapping) else None
    if isinstance(newer, int) and newer != SCHEMA:
        raise UserError(f"{path}: has schema {newer}; this version of unmix reads {SCHEMA}.")
    try:
        return _parse(path, data)
    except UserError as error:
        raise DamagedResultsError(f"{str(error).rstrip('.')}. {_remedy(folder)}") from None


def _remedy(folder: Path) -> str:
    return (
        f"`unmix knn {shlex.quote(str(folder))}` measures the run, sets the damaged file aside and "
        "writes a new one."
    )


def write_results(path: Path, data: Mapping[str, Any]) -> None:
    """Write `results.json` atomically.

    Numbers that JSON has no word for (NaN, infinity) become null.

    Args:
        path: The file.
        data: The content as docs/architecture.md describes it.

    Raises:
        UserError: if `load_results` would refuse the content, or the file cannot be written.
    """
    plain = finite(data)
    _parse(Path(path), plain)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(Path(path), json_bytes(text))


def finite(value: Any) -> Any:
    """Copy nested mappings and sequences, with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class _Row:
    """What every row of evaluations must have; the rest is kept as it is."""

    protocol: str
    epoch: Epoch
    top1: Percent
    top5: Percent | None = None


@dataclass(frozen=True)
class _Content:
    """What `results.json` must hold."""

    schema: Literal[1]
    name: str
    method: str
    mixture: str
    data: str
    backbone: str
    width: float
    size: Count
    epochs: Epoch
    seed: Integer
    command: str
    evaluations: Sequence[Any] | None = None
    training: Mapping[str, Any] | None = None
    hardware: Mapping[str, Any] | None = None
    versions: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] | None = None
    detection: Sequence[Mapping[str, Any]] | None = None


def _parse(path: Path, data: Any) -> RunResults:
    """Check the content of `results.json` and make the record of it."""
    if isinstance(data, Mapping) and data.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: has schema {excerpt(data.get('schema'))}; this version of unmix reads "
            f"{SCHEMA}."
        )
    content = checked(_Content, data, path)
    rows = [_evaluation(path, i, row) for i, row in enumerate(content.evaluations or ())]
    known: dict[str, Any] = {key: getattr(content, key) for key in _SAME}
    known |= {key: getattr(content, key) or {} for key in _GROUPS}
    return RunResults(
        **known,
        evaluations=tuple(sorted(rows, key=lambda row: row.epoch)),
    )


_SAME = (
    "name", "method", "mixture", "data", "backbone", "width", "size", "epochs", "seed", "command",
)  # fmt: skip
_GROUPS = ("training", "hardware", "versions", "quality")


def _evaluation(path: Path, i: int, row: Any) -> Evaluation:
    if not isinstance(row, Mapping):
        raise UserError(f"{path}: evaluations[{i}] is {excerpt(row)}; it must be an object.")
    found = checked(_Row, row, f"{path}: evaluations[{i}]")
    named = {"protocol", "epoch", "top1", "top5"}
    details = {key: value for key, value in row.items() if key not in named}
    return Evaluation(found.protocol, found.epoch, found.top1, found.top5, details)
