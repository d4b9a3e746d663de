"""What stands beside a study's conditions: raw pixels, and encoders before their first step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from unmix.config import Settings
from unmix.errors import UserError
from unmix.evaluation.baselines import accuracies, raw_pixels
from unmix.files import atomic_write, read_json
from unmix.methods import method_class
from unmix.randomness import generator_for
from unmix.schema import Integer, Percent, checked
from unmix.studies.cells import result_settings
from unmix.studies.images import Digests, ImagesNow, unlike
from unmix.studies.plan import Study
from unmix.training.run.parts import build_parts

__all__ = ["FILE", "Baselines", "measure_baselines", "read_baselines"]

FILE = "baselines.json"
_SCHEMA = 1
# Settings that decide what an untrained encoder is, and how it is measured.
_KEYS = (
    "method", "view", "backbone", "width", "stem", "patch", "zero_init_residual", "data", "limit",
    "size", "features", "knn_k", "knn_temperature", "seed",
)  # fmt: skip
# The same, which are recorded where they are given: files of earlier versions have none of them.
_GIVEN = (
    "heads", "depth", "registers", "class_token", "pooling", "init", "train_folder", "test_folder",
    "image_column", "label_column", "split_column", "bit_depth", "range", "mean", "std",
)  # fmt: skip
_NO_IMAGES = {
    "method", "view", "backbone", "width", "stem", "patch", "zero_init_residual", "features",
    "seed", *_GIVEN[:6],
}  # fmt: skip
_PIXELS = "raw pixels"

Baselines = Mapping[str, Mapping[str, Mapping[int, float]]]
"""For each name and protocol, the accuracy in percent by seed."""


def measure_baselines(
    study: Study, folder: Path, images: ImagesNow | None, say: Callable[[str], None]
) -> None:
    """Measure raw pixels once and every method's untrained encoder with each seed; keep them.

    What the folder has of the same settings, data and evaluations is not measured again.

    Args:
        study: With `baselines`, else nothing is done.
        folder: Of the study.
        images: The data as it is now; None to keep what was measured on other data.
        say: Prints a line.

    Raises:
        UserError: if the data cannot be read or has no classes.
    """
    if not study.baselines:
        return
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = {
            label: {k: v for k, v in asdict(row).items() if v is not None}
            for label, row in _rows(folder).items()
        }
    rows: dict[str, Any] = {}
    for name, condition, seed in _planned(study):
        settings = study.resolved(condition, seed)
        key = json.dumps(_identity(settings), sort_keys=True)
        label = f"{name}, seed {seed}"
        now = None if images is None else images.of(settings.run)
        before = known.get(label, {})
        if (
            before.get("settings") == key
            and not unlike(before.get("data"), now)
            and set(study.protocols) <= before["accuracies"].keys()
        ):
            rows[label] = before
            continue
        if not any(row["name"] == name for row in rows.values()):
            say(f"measuring {name}")
        found = _measure(name, settings, study.protocols)
        measured = {"name": name, "seed": seed, "settings": key, "accuracies": found}
        rows[label] = {**measured, **({"data": dict(now)} if now else {})}
    text = json.dumps({"schema": _SCHEMA, "rows": rows}, indent=1) + "\n"
    atomic_write(folder / FILE, text.encode())


def _planned(study: Study) -> list[tuple[str, str, int]]:
    """Name, condition that stands for it, and seed of each measurement."""
    encoders: dict[str, str] = {}
    images: dict[str, dict[str, Any]] = {}
    pixels: dict[str, str] = {}
    for name in study.conditions:
        identity = {**_identity(study.resolved(name, study.seeds[0])), "seed": None}
        encoders.setdefault(json.dumps(identity, sort_keys=True), name)
        images[name] = {key: value for key, value in identity.items() if key not in _NO_IMAGES}
        pixels.setdefault(json.dumps(images[name], sort_keys=True), name)
    apart = _apart(images)
    found = [(_named(_PIXELS, apart[name]), name, study.seeds[0]) for name in pixels.values()]
    for condition in encoders.values():
        settings = study.resolved(condition, study.seeds[0])
        of = method_class(settings.run.method).__name__ if len(encoders) > 1 else ""
        word = "untrained encoder" if settings.model.init is None else "initial encoder"
        name = _named(word, of, apart[condition])
        if any(known == name for known, *_ in found):  # a method with two networks
            name = _named(word, condition)
        found += [(name, condition, seed) for seed in study.seeds_of(condition)]
    return found


def _named(word: str, *details: str) -> str:
    more = ", ".join(filter(None, details))
    return f"{word} ({more})" if more else word


def _apart(images: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """For each condition its images, as far as it takes to tell them from all others: "digits"."""
    keys = dict.fromkeys(key for own in images.values() for key in own)  # data first
    differing = [k for k in keys if len({str(own.get(k)) for own in images.values()}) > 1]
    told: dict[str, str] = dict.fromkeys(images, "")
    for key in differing:
        if len(set(told.values())) == len({str(own) for own in images.values()}):
            break
        for name, own in images.items():
            value = "default" if own.get(key) is None else own[key]
            told[name] += f"{', ' if told[name] else ''}{'' if key == 'data' else f'{key} '}{value}"
    return told


def _identity(settings: Settings) -> dict[str, Any]:
    kept = result_settings(settings)
    later = {key: kept[key] for key in _GIVEN if kept.get(key) is not None}
    return {**{key: kept.get(key) for key in _KEYS}, **later}


def _measure(name: str, settings: Settings, protocols: Sequence[str]) -> dict[str, float]:
    """Evaluate what needs no training, as `pretrain` evaluates what it trains."""
    parts = build_parts(settings)
    if parts.test is None or parts.labeled.classes is None:
        raise UserError(f"--data: {settings.run.data} has no classes, so nothing can be compared.")
    module, how = parts.module.to(parts.machine.device), settings.evaluation
    method, views = module.method, module.views
    pixels = name.startswith(_PIXELS)
    encode = method.features if how.features == "backbone" else method.projections
    return accuracies(
        raw_pixels if pixels else encode,
        parts.labeled, parts.test, views.plain, views.size, protocols,
        k=how.knn_k, temperature=how.knn_temperature,
        generator=generator_for(module.seed, "probe"), device=module.device,
        dtype=None if pixels else parts.machine.autocast,
    )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """One measurement."""

    name: str
    seed: Integer
    settings: str
    accuracies: Mapping[str, Percent]
    data: Digests | None = None


@dataclass(frozen=True)
class _Content:
    """What the file must hold."""

    schema: Literal[1]
    rows: Mapping[str, _Row]


def _rows(folder: Path) -> Mapping[str, _Row]:
    path = folder / FILE
    return checked(_Content, read_json(path), path).rows


def read_baselines(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    """The accuracies that a study's folder has of what needs no training.

    Raises:
        UserError: if its file is damaged.
    """
    path = folder / FILE
    found: dict[str, dict[str, dict[int, float]]] = {}
    try:
        for row in _rows(folder).values():
            for protocol, value in row.accuracies.items():
                found.setdefault(row.name, {}).setdefault(protocol, {})[row.seed] = value
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise UserError(
            f"{path}: is damaged; remove it, and the study measures it again."
        ) from None
    return found
