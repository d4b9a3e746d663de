"""The demo: where images cannot be augmented, does mixing help? A small study with a verdict."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmix.commands.finished import Say
from unmix.commands.study_page import results_table, write_page
from unmix.config.compatibility import check_data
from unmix.display import duration
from unmix.errors import UserError, check_choice, check_number
from unmix.files import as_path
from unmix.names import shown_lines
from unmix.studies import Study, read_study, run_study
from unmix.studies.stale import STALE
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line

__all__ = ["demo", "demo_study"]

PLAIN = "MoCo, no augmentation"
MIXED = "MoCo + Un-Mix, no augmentation"
AUGMENTED = "MoCo, full augmentation"

# The whole image, as it is.
_NONE = {"crop_scale_min": 1, "crop_ratio": [1, 1], "flip_p": 0, "jitter_p": 0, "gray_p": 0}
_MOCO = {"method": "moco", "queue_size": 512, "bn_splits": 1}
_CMC = {"method": "cmc", "contrast": "softmax", "negatives": 511, "seeds": "0-2"}
_STUDY: Mapping[str, Any] = {
    "about": (
        "MoCo without augmentation, with Un-Mix in place of augmentation, and with the usual "
        "augmentation; and CMC with and without IM. Few images, many epochs."
    ),
    "base": {
        "data": "photos", "limit": 512, "size": 16, "backbone": "resnet10", "width": 0.25,
        "batch_size": 64, "epochs": 40, "knn_every": 0, "logger": "none",
    },
    "conditions": {
        PLAIN: {**_MOCO, **_NONE},
        MIXED: {**_MOCO, **_NONE, "unmix": True},
        AUGMENTED: _MOCO,
        "CMC, crop and flip": _CMC,
        "CMC + IM, crop and flip": {**_CMC, "IM": True},
    },
    # A question each, so that six seeds can answer it.
    "comparisons": {
        "mixing instead of nothing": [[MIXED, PLAIN]],
        "mixing instead of augmentation": [[MIXED, AUGMENTED]],
    },
    "seeds": "0-5",
    "baselines": True,
}  # fmt: skip


def demo(
    *,
    run: str = "runs/demo",
    data: str = "photos",
    epochs: int = 40,
    seed: int = 0,
    jobs: int = 2,
    device: str = "auto",
    stale: str = "refuse",
    say: Say = print_line,
) -> Path:
    """Train 24 small encoders, and say whether mixing helps where images are not augmented.

    MoCo without augmentation, MoCo with Un-Mix in its place and MoCo with augmentation, six paired
    seeds each; CMC with and without IM, three seeds each, without a verdict; beside them raw pixels
    and untrained encoders. Three to thirteen minutes on two cores. The first line is the verdict; a
    table, a figure and report.html follow. The same command goes on where it was stopped, and shows
    the result again when it is done. It is `unmix study` with a plan that ships.

    Args:
        run: Folder of the study, the figure and the report.
        data: Data set with classes, by name or folder; 512 of its images are trained on.
        epochs: Epochs of each run.
        seed: The first of the six.
        jobs: Runs at a time.
        device: auto, cpu, cuda or mps.
        stale: What is done with runs of other settings, data or code: refuse, keep or rerun.
        say: Prints the result; progress goes to the standard error.

    Returns:
        The folder.

    Raises:
        UserError: as `study` does.
    """
    check_data(data)
    check_number("epochs", epochs, at_least=1)
    check_number("seed", seed, at_least=0)
    check_number("jobs", jobs, at_least=1)
    check_choice("stale", stale, STALE)
    start = time.perf_counter()
    quiet_libraries()
    folder = as_path(run)
    planned = demo_study(data, epochs, seed)
    failed = run_study(
        planned, folder, jobs=jobs, stale=stale, here={"device": device}, flag="--run", say=_note
    )
    found = read_study(folder)
    for line in (*found.verdicts(), *found.notes()):
        say(line)
    say("")
    say(results_table(found).text())
    say(f"report: {write_page(found, folder)}")
    say(f"took {duration(time.perf_counter() - start)}")
    if failed:
        raise UserError(
            f"{len(failed)} runs failed, such as {failed[0]}; the reasons are above. The same "
            "command tries them again."
        )
    return folder


def demo_study(data: str = "photos", epochs: int = 40, seed: int = 0) -> Study:
    """The plan of the demo.

    Args:
        data: Data set.
        epochs: Of each run.
        seed: The first.
    """
    conditions = {
        name: {k: _moved(v, seed) if k == "seeds" else v for k, v in settings.items()}
        for name, settings in _STUDY["conditions"].items()
    }
    base = {**_STUDY["base"], "data": data, "epochs": epochs}
    seeds = _moved(_STUDY["seeds"], seed)
    content = {**_STUDY, "base": base, "conditions": conditions, "seeds": seeds}
    return Study.of(content, "demo", "demo")


def _moved(seeds: str, first: int) -> str:
    low, high = map(int, seeds.split("-"))
    return f"{low + first}-{high + first}"


def _note(text: str) -> None:
    print(shown_lines(text), file=sys.stderr, flush=True)
