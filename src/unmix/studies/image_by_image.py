"""Two runs on the same test images, image by image."""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from unmix.errors import UserError
from unmix.per_image import per_image
from unmix.results import ON, Evaluation
from unmix.rows import OF_IMAGES
from unmix.statistics import FEWEST_VALUES, compare_single_runs
from unmix.studies.comparisons import command_of

if TYPE_CHECKING:
    from unmix.studies.grouping import ComparedRun

__all__ = ["other_images", "single_runs"]


def other_images(a: ComparedRun, b: ComparedRun, protocol: str) -> bool:
    """Whether it is known that two runs were measured on other test images."""
    digests = []
    for run in (a, b):
        row = run.final(protocol)
        with suppress(UserError):
            digests.append(_per_image(run, row).images if row is not None else None)
    return len(digests) == 2 and None not in digests and digests[0] != digests[1]


def _per_image(run: ComparedRun, row: Evaluation) -> Any:
    """What a run kept of a row; its file has rows as they were measured."""
    protocol = row.protocol.partition(ON)[0]
    data = run.results.transfers.get(row.protocol)
    details = row.details if data is None else {**row.details, "data": data}
    return per_image(run.folder, Evaluation(protocol, row.epoch, row.top1, row.top5, details))


def single_runs(a: ComparedRun, b: ComparedRun, protocol: str) -> str:
    """Two encoders on the same test images, or why they cannot be compared image by image."""
    found = []
    for run in (a, b):
        row = run.final(protocol)
        assert row is not None
        try:
            found.append(_per_image(run, row))
        except UserError as error:
            if row.protocol.startswith("finetune"):
                return (
                    f"no test image by image, for {run.name}: {error} (the same `unmix finetune` "
                    "with --overwrite measures them)"
                )
            kind, data = row.protocol.partition(ON)[0], run.results.transfers.get(row.protocol)
            words = [*command_of(kind), str(run.folder), *(["--data", data] if data else [])]
            words += ["--from_scratch"] if row.details.get("start") == "random" else []
            for key in (*OF_IMAGES, "layer"):
                words += [f"--{key}", str(row.details[key])] if row.details.get(key) else []
            return (
                f"no test image by image, for {run.name}: {error} "
                f"({shlex.join(words)} measures them)"
            )
    if found[0].images != found[1].images:
        return "no test image by image: their test images differ"
    if len(found[0].correct) < FEWEST_VALUES:
        return f"no test image by image: it needs {FEWEST_VALUES} test images or more"
    return str(compare_single_runs(found[0].correct, found[1].correct))
