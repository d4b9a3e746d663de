"""The demonstration: MoCo and CMC with and without image mixtures, in minutes, on a laptop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from unmix.commands.compare import compare
from unmix.commands.finished import Say
from unmix.errors import check_number
from unmix.evaluation.baselines import accuracies, raw_pixels
from unmix.randomness import generator_for
from unmix.training.console import duration
from unmix.training.console import say as print_line
from unmix.training.run.parts import build_parts
from unmix.training.run.pretrain import pretrain, settings_for

__all__ = ["RUNS", "demo"]

RUNS: dict[str, dict[str, Any]] = {
    "moco": {"method": "moco"},
    "moco-im": {"method": "moco", "IM": True},
    "cmc": {"method": "cmc"},
    "cmc-im": {"method": "cmc", "IM": True},
}


def demo(
    *,
    run: str = "runs/demo",
    data: str = "photos",
    epochs: int = 6,
    seed: int = 0,
    device: str = "auto",
    say: Say = print_line,
) -> Path:
    """Train MoCo, MoCo + IM, CMC and CMC + IM; print one table, write figures and a report.

    Beside them stand raw pixels and an untrained encoder, measured in the same way. Runs that are
    complete already are not repeated.

    Args:
        run: Folder of the four run folders and the report.
        data: Data set with classes, by name or folder.
        epochs: Epochs of each run.
        seed: Of all runs.
        device: auto, cpu, cuda or mps.
        say: Prints a line.

    Returns:
        The folder.

    Raises:
        UserError: as `pretrain` and `compare` do.
    """
    check_number("epochs", epochs, at_least=1)
    start = time.perf_counter()
    folder = Path(run)
    every = max(1, epochs // 3)
    common: dict[str, Any] = {
        "data": data,
        "epochs": epochs,
        "seed": seed,
        "device": device,
        "knn_every": every,
        "linear_every": every,
    }
    for name, words in RUNS.items():
        say(f"\n[{name}]")
        pretrain(run=str(folder / name), **common, **words)
    say("")
    compare(
        [folder / name for name in RUNS],
        out=folder,
        device=device,
        baselines=untrained(data, seed, device),
        say=say,
    )
    say(f"took {duration(time.perf_counter() - start)}")
    return folder


def untrained(data: str, seed: int, device: str) -> dict[str, dict[str, float]]:
    """kNN and linear accuracy of raw pixels and of MoCo's encoder before its first step."""
    words = {"method": "moco", "data": data, "seed": seed, "device": device}
    parts = build_parts(settings_for(words)[0])
    module = parts.module.to(parts.machine.device)
    if parts.test is None:
        return {}
    found = {}
    for name, encode, dtype in (
        ("raw pixels", raw_pixels, None),
        ("untrained encoder", module.method.features, parts.machine.autocast),
    ):
        found[name] = accuracies(
            encode, parts.labeled, parts.test, module.views.plain, module.views.size,
            generator=generator_for(seed, "probe"), device=parts.machine.device, dtype=dtype,
        )  # fmt: skip
    return found
