"""Train a set of method x mixture cells and put what they reach into one table.

Every cell is a run of `unmix pretrain` in its own folder and process. A cell that is measured is
skipped, one that was stopped is gone on with, and each leaves one JSON: the settings' hash, the
command, the machine, the seed, minutes, images a second, and the accuracies at the last epoch.

    python benchmarks/matrix.py --data photos --out DIR
    python benchmarks/matrix.py --data cifar10 --data_dir DATA --methods moco simclr \
        --mixtures none unmix --seeds 0 1 2 --out DIR -- --epochs 200

A mixture is none, IM, a rule (unmix methods lists them), or RULE:MIXTURE, such as unmix:fmix.
What follows `--` goes to every run as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmix.cli import pretrain_words
from unmix.config import Settings
from unmix.credit import RULES
from unmix.errors import UserError, check_choice
from unmix.files import write_whole
from unmix.methods import METHODS, method_class
from unmix.results import load_results
from unmix.training.pretrain import settings_for

# What a run may differ in without another result: where it lies, and what computes it.
_ELSEWHERE = {
    "run", "data_dir", "device", "workers", "resident", "resident_share", "checkpoint_every",
    "checkpoint_steps", "logger", "download",
}  # fmt: skip
PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Cell:
    """A method with a mixture and a seed."""

    method: str
    mixture: str
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.method}-{self.mixture.replace(':', '-')}-{self.seed}"

    @property
    def flags(self) -> list[str]:
        """Of `unmix pretrain`."""
        words = ["--method", self.method, "--seed", str(self.seed)]
        if self.mixture == "none":
            return words
        if self.mixture == "IM":
            return [*words, "--IM"]
        rule, _, mixture = self.mixture.partition(":")
        words += ["--unmix", "--unmix_rule", rule]
        return [*words, "--unmix_mixture", mixture] if mixture else words

    @property
    def why_not(self) -> str | None:
        """Why there is no such cell, or None."""
        rule = self.mixture.partition(":")[0]
        return RULES[rule].why_not(method_class(self.method)) if rule in RULES else None


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and write the table; the exit status is 1 if a cell failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    more = words[words.index("--") + 1 :] if "--" in words else []
    options = _parser().parse_args(words[: words.index("--")] if "--" in words else words)
    base = ["--data", options.data]
    base += ["--data_dir", str(options.data_dir)] if options.data_dir else []
    try:
        plans = [plan_of(cell, [*base, *more]) for cell in cells_of(options)]
    except UserError as error:
        print(f"matrix: error: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda plan: run_cell(plan, options), plans))
    table = table_of(options.out, options.data)
    write_whole(options.out / "table.md", table.encode())
    print(table)
    return 0 if all(done) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="photos", help="data set by name, or a folder")
    parser.add_argument("--data_dir", type=Path, help="where the data set lies")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="default: all")
    parser.add_argument("--mixtures", nargs="+", default=["none", "IM", "unmix"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSONs and the table")
    parser.add_argument("--runs", type=Path, help="folder of the run folders; default OUT/runs")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, help="threads of each; default: all")
    return parser


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """The cells that were asked for, the quickest to compare first: by seed, method, mixture.

    Raises:
        UserError: for a method or a mixture that there is not.
    """
    for method in options.methods:
        method_class(method)
    for mixture in options.mixtures:
        check_choice("--mixtures", mixture.partition(":")[0], ["none", "IM", *RULES])
    return [Cell(m, x, s) for s in options.seeds for m in options.methods for x in options.mixtures]


def plan_of(cell: Cell, base: list[str]) -> tuple[Cell, list[str], str]:
    """A cell, its flags and its settings' hash; without a hash if there is no such cell.

    Raises:
        UserError: if the flags do not go together.
    """
    flags = [*cell.flags, *base]
    return cell, flags, config_hash(settings_of(flags)) if cell.why_not is None else ""


def run_cell(plan: tuple[Cell, list[str], str], options: argparse.Namespace) -> bool:
    """Train and measure one cell unless that was done; whether there is a result, or need be."""
    cell, flags, wanted = plan
    if cell.why_not is not None:
        print(f"{cell.name}: none, for {cell.why_not}", flush=True)
        return True
    file = options.out / f"{cell.name}.json"
    if file.exists() and json.loads(file.read_text())["config"] == wanted:
        print(f"{cell.name}: measured before", flush=True)
        return True
    folder = (options.runs or options.out / "runs") / f"{cell.name}-{wanted}"
    command = [sys.executable, "-m", "unmix", "pretrain", *flags, "--run", str(folder)]
    environment = dict(os.environ)
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    print(f"{cell.name}: {shlex.join(['unmix', *command[3:]])}", flush=True)
    start = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        lines = (ended.stderr or ended.stdout).strip().splitlines()
        print(f"{cell.name}: FAILED: {lines[-1] if lines else ended.returncode}", flush=True)
        return False
    found = result_of(cell, folder, wanted, flags, time.perf_counter() - start)
    write_whole(file, (json.dumps(found, indent=2) + "\n").encode())
    print(f"{cell.name}: kNN {_shown(found['knn'])}, linear {_shown(found['linear'])}", flush=True)
    return True


def settings_of(flags: list[str]) -> Settings:
    """The settings that `unmix pretrain` would take from these flags."""
    config, given = pretrain_words(flags)
    return settings_for(given, config)[0]


def config_hash(settings: Settings) -> str:
    """Twelve hexadecimal digits of everything that a result depends on."""
    words = {k: v for k, v in settings.flat().items() if k not in _ELSEWHERE}
    text = json.dumps(words, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def result_of(
    cell: Cell, folder: Path, config: str, flags: list[str], seconds: float
) -> dict[str, Any]:
    """What a cell's JSON holds."""
    found = load_results(folder)
    knn, linear = found.final("knn"), found.final("linear")
    return {
        "method": cell.method,
        "mixture": cell.mixture,
        "data": found.data,
        "backbone": found.backbone,
        "width": found.width,
        "size": found.size,
        "epochs": found.epochs,
        "seed": cell.seed,
        "config": config,
        "command": shlex.join(["unmix", "pretrain", *_without_places(flags)]),
        "knn": None if knn is None else knn.top1,
        "linear": None if linear is None else linear.top1,
        "minutes": found.training.get("seconds", 0.0) / 60,
        "minutes_with_evaluation": seconds / 60,
        "images_per_second": found.training.get("images_per_second"),
        "loss": found.training.get("loss"),
        "hardware": found.hardware,
        "versions": found.versions,
    }


def _without_places(flags: list[str]) -> list[str]:
    """Flags with DIR for folders of this machine."""
    shown = list(flags)
    for flag in ("--data_dir", "--run"):
        if flag in shown:
            shown[shown.index(flag) + 1] = "DIR"
    return shown


def table_of(out: Path, data: str) -> str:
    """A table of all JSONs of a folder: a row a method, mean and spread over the seeds."""
    cells = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
    cells = [cell for cell in cells if cell["data"] == data]
    mixtures = list(dict.fromkeys(cell["mixture"] for cell in sorted(cells, key=_order)))
    published = json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else []
    head = ["method", "epochs", "seeds"]
    head += [f"{m} {what}" for m in mixtures for what in ("kNN", "linear")]
    head += ["minutes", "published"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in [m for m in METHODS if any(c["method"] == m for c in cells)]:
        rows = [cell for cell in cells if cell["method"] == method]
        line = [method, _words({c["epochs"] for c in rows}), _words({c["seed"] for c in rows})]
        for mixture in mixtures:
            own = [c for c in rows if c["mixture"] == mixture]
            line += [_mean([c[what] for c in own]) for what in ("knn", "linear")]
        line.append(f"{statistics.mean(c['minutes'] for c in rows):.1f}")
        epochs = {c["epochs"] for c in rows}
        line.append(
            "; ".join(
                f"{p['mixture']} {p['value']} {p['protocol']} ({p['epochs']} epochs, {p['source']})"
                for p in published
                if p["method"] == method and p["data"] == data and p["epochs"] in epochs
            )
        )
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"


def _order(cell: dict[str, Any]) -> tuple[int, str]:
    first = ["none", "IM", *RULES]
    rule = cell["mixture"].partition(":")[0]
    return (first.index(rule), cell["mixture"])


def _words(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _mean(values: list[float | None]) -> str:
    """The mean, with the standard deviation between seeds where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    if len(known) == 1:
        return f"{known[0]:.1f}"
    return f"{statistics.mean(known):.1f} ± {statistics.stdev(known):.1f}"


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
