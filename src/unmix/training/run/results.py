"""The results of a run: the content of `results.json`, and its accuracies in lines."""

from __future__ import annotations

from typing import Any

from unmix.busy import TAKEN
from unmix.data import ImageSet
from unmix.data.streams import ShardImages
from unmix.display import quality_line
from unmix.errors import UserError
from unmix.files import read_json
from unmix.hardware.devices import hardware, peak_memory, versions
from unmix.results import DamagedResultsError, RunResults, described, load_results, set_aside
from unmix.rows import settings_of
from unmix.training.console import say
from unmix.training.loop.callbacks import Reporter
from unmix.training.run.data_record import DataRecord
from unmix.training.run.extending import extensions
from unmix.training.run.folder import RunFolder
from unmix.training.run.parts import Parts

__all__ = [
    "kept_detection", "results_of", "say_accuracies", "say_quality", "why_not_evaluated",
    "with_earlier",
]  # fmt: skip


def with_earlier(folder: RunFolder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, after earlier ones with other settings, of a run that was completed before."""
    try:
        earlier = load_results(folder.path).flat
    except DamagedResultsError:
        say(f"warning: results.json was damaged; it is {set_aside(folder.results).name} now")
        return rows
    except UserError:
        return rows
    measured = [settings_of(row) for row in rows]
    return [*(row for row in earlier if settings_of(row) not in measured), *rows]


def kept_detection(folder: RunFolder) -> dict[str, Any]:
    """What `unmix detect` has added to `results.json`, of a run that was completed before."""
    try:
        found = read_json(folder.results).get("detection")
    except (OSError, ValueError, AttributeError):
        return {}
    return {"detection": found} if isinstance(found, list) else {}


def results_of(
    parts: Parts,
    record: DataRecord,
    folder: RunFolder,
    reporter: Reporter,
    rows: list[dict[str, Any]],
    command: str,
    seconds: float,
    taken: float | None = None,
) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
        parts: Of the run.
        record: Of its data.
        folder: The run folder.
        reporter: What was measured during training.
        rows: The evaluations.
        command: The command line.
        seconds: Duration of this call, with evaluations.
        taken: Cores that other programs took meanwhile.
    """
    settings = parts.settings
    return {
        "schema": 1,
        "name": folder.path.name,
        **{k: settings.flat()[k] for k in ("method", "backbone", "width", "size")},
        "data": record.typed,
        "mixture": settings.mixture.name,
        "epochs": settings.run.epochs,
        "seed": settings.run.seed,
        "command": command,
        "evaluations": rows,
        "training": {
            "seconds": reporter.train_seconds,
            "total_seconds": seconds,
            "images_per_second": reporter.samples / max(reporter.train_seconds, 1e-9),
            **({} if taken is None else {TAKEN: round(taken, 2)}),
            "peak_memory_bytes": peak_memory(parts.machine.device),
            "steps": parts.module.total_steps,
            "loss": reporter.loss,
            **record.changes,
            **extensions(folder, settings),
        },
        "hardware": {
            **hardware(parts.machine.device),
            "devices": settings.machine.processes,
            "precision": parts.machine.precision,
        },
        "versions": versions(),
    }


def say_quality(results: RunResults) -> None:
    """Print the measures that need no labels, of a run whose results have them."""
    if results.quality:
        say(f"without labels, {quality_line(results.quality)}")


def why_not_evaluated(labeled: ImageSet) -> str:
    """Why images have no kNN and no linear probe, behind their name."""
    if labeled.labels is None:
        return "has no classes"
    if isinstance(labeled, ShardImages):
        return "has no shards to evaluate on (--test_folder names some)"
    return "was given without test_data"


def say_accuracies(results: RunResults) -> None:
    """Print the accuracies at the end of a run on its own data, and the settings of each."""
    rows = [row for row in results.evaluations if row.epoch == results.epochs]
    for row in rows:
        if "data" not in row.details:
            top5 = "" if row.top5 is None else f"  top-5 {row.top5:.1f}%"
            say(f"{described(row)}: top-1 {row.top1:.1f}%{top5}")
