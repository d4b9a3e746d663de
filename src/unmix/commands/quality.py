"""`unmix quality`: measures of encoders that need no labels, and which of several runs to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from unmix.commands.finished import FinishedRun, Say, say_skipped
from unmix.config import ViewSettings
from unmix.data import ImageSet
from unmix.data.fingerprint import Fingerprint
from unmix.display import QUALITY, counted, measure_name, padded, text_width
from unmix.errors import UserError, check_choice, check_number
from unmix.evaluation import quality as measures
from unmix.evaluation.metrics import spread
from unmix.files import as_path
from unmix.hardware.threads import CoreMeter
from unmix.html import escaped, table
from unmix.names import in_words, shown
from unmix.randomness import generator_for
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.run.data_record import check_there, located_data
from unmix.training.run.parts import load_split
from unmix.views import Views

__all__ = ["Quality", "quality"]

# What says which run is better, and how: alignment and uniformity trade off, so neither does.
_BETTER = {"rankme": "higher", "lidar": "higher", "alpha_req": "closer to 1"}
_COLLAPSED = 0.05
_FEWEST = 4  # two in either half


@dataclass(frozen=True)
class Quality:
    """What was measured without labels, of one or several runs.

    Attributes:
        rows: For each run `run`, `rankme`, `lidar`, `alpha_req` (None if it cannot be fitted),
            `alignment`, `uniformity`, `dimension`, `images`.
        best: For each measure that ranks runs the name of the best one, or None if the halves of
            the images do not agree.
        keep: The run to keep, or None if the measures disagree.
        verdict: The same in words, with what to mind, in lines.
    """

    rows: Sequence[Mapping[str, Any]]
    best: Mapping[str, str | None] = field(default_factory=dict)
    keep: str | None = None
    verdict: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "runs": [dict(row) for row in self.rows], "best": dict(self.best), "keep": self.keep,
            "verdict": self.verdict,
        }  # fmt: skip

    def text(self) -> str:
        """The table, and the verdict under it."""
        cells = [["run", *map(measure_name, QUALITY), "D"], *map(_cells, self.rows)]
        widths = [max(map(text_width, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                padded(cell, w, right=i > 0)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        return "\n".join([*lines, *([f"\n{self.verdict}"] if self.verdict else [])])

    def _repr_html_(self) -> str:
        """In a notebook: the table and the verdict."""
        columns = ("run", *map(measure_name, QUALITY), "D")
        numeric = (False, *[True] * (len(columns) - 1))
        return f"{table(columns, list(map(_cells, self.rows)), numeric=numeric)}" + (
            "".join(f"<div>{escaped(line)}</div>" for line in self.verdict.splitlines())
        )


def quality(
    *runs: Path | str | Sequence[Path | str],
    data: str | None = None,
    data_dir: str | None = None,
    features: str = "backbone",
    images: int = 2048,
    viewed: int = 512,
    views: int = 10,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    say: Say = print_line,
) -> Quality:
    """Measure encoders without labels: RankMe, LiDAR, alpha-ReQ, alignment and uniformity.

    With several runs it says which one to keep, if the measures agree. All runs are measured on the
    same images, with the same augmentation: theirs, or the default one if theirs differ or is none.

    Args:
        runs: Run folders, or encoder files; one or more.
        data: A folder of images, or a data set by name; by default that of the first run. Labels
            are not used.
        data_dir: Folder of the data set's files, for the names that need it.
        features: The backbone's pooled features, or the projector's, for which RankMe was
            published.
        images: Images for RankMe, alpha-ReQ and uniformity, evenly spaced; or all of fewer.
        viewed: Images of which augmented views are encoded, for LiDAR and alignment.
        views: Views of each of them.
        seed: Seed of the augmentation.
        device: auto, cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        say: Prints a line.

    Returns:
        The measures of every run, and the verdict.

    Raises:
        UserError: if a run is not complete, the data cannot be read, or a value is out of range.
    """
    check_choice("features", features, ("backbone", "projector"))
    for name, value in (("images", images), ("viewed", viewed)):
        check_number(name, value, at_least=_FEWEST)
    check_number("views", views, at_least=2)
    quiet_libraries()
    cores = CoreMeter()
    paths = [as_path(p) for run in runs for p in ([run] if isinstance(run, str | Path) else run)]
    if not paths:
        raise UserError("give at least one run folder.", parameter="runs", flag="RUN")
    finished = [FinishedRun.open(path, device) for path in paths]
    names = _names(paths)
    found = []
    shared = _shared_views(finished, say)
    pictures = _images(finished[0], data, data_dir)
    if len(pictures) < _FEWEST:
        raise UserError(
            f"{shown(pictures.name)} has {counted(len(pictures), 'image')}; the measures, of all "
            f"and of either half of them, need {_FEWEST} or more.",
            parameter="data",
        )
    for name, run in zip(names, finished, strict=True):
        with run.computing(threads, cores, say):
            found.append(
                _measured(name, run, pictures, shared, features, (images, viewed, views), seed)
            )
    say_skipped(say, pictures)
    result = _judged(found)
    say(result.text())
    return result


@dataclass(frozen=True)
class _Found:
    """The measures of a run on all images, and on each half of them."""

    row: dict[str, Any]
    halves: tuple[dict[str, float], dict[str, float]]


def _measured(
    name: str,
    run: FinishedRun,
    pictures: ImageSet,
    augmentation: ViewSettings,
    features: str,
    counts: tuple[int, int, int],
    seed: int,
) -> _Found:
    encode = run.subject(features).encode
    images, viewed, views = counts
    plain = run.features(encode, pictures.evenly(images)).features
    prepared, facts = run.encoder.views, run.encoder.facts
    augment = Views(
        augmentation, prepared.size, tuple(facts["mean"]), tuple(facts["std"]), 1,
        facts["color_space"], channels_last=run.machine.channels_last,
    )  # fmt: skip
    seen = measures.augmented_features(
        encode, pictures.evenly(viewed), augment, views, generator_for(seed, "quality"),
        device=run.machine.device, dtype=run.machine.autocast, workers=run.machine.workers,
    )  # fmt: skip
    row = {
        "run": name, **dict.fromkeys(QUALITY), **_of(plain, seen), "dimension": plain.shape[1],
        "images": len(plain), "viewed_images": len(seen), "views": views, "features": features,
        "spread": spread(plain), "method": facts["method"],
    }  # fmt: skip
    return _Found(row, (_of(plain[::2], seen[::2]), _of(plain[1::2], seen[1::2])))


def _of(plain: Tensor, seen: Tensor) -> dict[str, float]:
    return {**measures.of_features(plain), **measures.of_views(seen)}


def _images(first: FinishedRun, data: str | None, data_dir: str | None) -> ImageSet:
    """The training images, or those that are given; each encoder normalizes them as its own."""
    own = first.settings.run
    if data is not None:
        return load_split(
            replace(own, data=located_data(data), data_dir=data_dir, limit=None,
                    train_folder=None, test_folder=None),
            "pretrain", elsewhere=True,
        )  # fmt: skip
    if first.alone:
        raise UserError(
            "an encoder file does not say what it was trained on; give the images to measure on.",
            parameter="data",
        )
    check_there(own.data)
    seen: dict[str, Fingerprint] = {}
    pictures = load_split(own if data_dir is None else replace(own, data_dir=data_dir), "pretrain",
                          seen)  # fmt: skip
    first.check_own(seen)
    return pictures


def _shared_views(runs: Sequence[FinishedRun], say: Say) -> ViewSettings:
    settings = [run.settings.views for run in runs if not run.alone]
    if settings and len(settings) == len(runs) and all(s == settings[0] for s in settings):
        if not settings[0].of_view("first").changes_nothing:
            return settings[0]
        say(
            "note: trained without augmentation, which would make all views of an image the same; "
            "LiDAR and alignment are measured with the default one"
        )
        return ViewSettings()
    if len(runs) > 1:
        say("note: the runs were trained with different views; all are measured with the default")
    return ViewSettings()


def _names(paths: Sequence[Path]) -> list[str]:
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _cells(row: Mapping[str, Any]) -> list[str]:
    values = [
        "–" if row[name] is None else f"{row[name]:.{decimals}f}"
        for name, decimals in QUALITY.items()
    ]
    return [str(row["run"]), *values, str(row["dimension"])]


def _judged(found: Sequence[_Found]) -> Quality:
    """The measures, and which run they favor."""
    rows = [one.row for one in found]
    if len(rows) < 2:
        return Quality(rows)
    best: dict[str, str | None] = {}
    for name in _BETTER:
        if all(one.row[name] is not None for one in found):
            best[name] = _best(found, name)
    names = {winner for winner in best.values() if winner is not None}
    agree = len(names) == 1 and len(best) >= 2 and list(best.values()).count(None) <= 1
    caveats = _caveats(rows)
    keep = next(iter(names)) if agree and not any(stops for _, stops in caveats) else None
    said = [*_verdict(best, keep, bool(caveats)), *(text for text, _ in caveats)]
    return Quality(rows, best, keep, "\n".join(said))


def _best(found: Sequence[_Found], name: str) -> str | None:
    """The best run by a measure, if both halves of the images say so."""

    def winner(values: Sequence[float | None]) -> int | None:
        if any(value is None for value in values):
            return None
        signed = [-abs(v - 1) if name == "alpha_req" else v for v in values if v is not None]
        return max(range(len(signed)), key=signed.__getitem__)

    whole = winner([one.row[name] for one in found])
    halves = [winner([one.halves[half].get(name) for one in found]) for half in (0, 1)]
    agreed = whole is not None and all(half in (None, whole) for half in halves)
    return found[whole].row["run"] if agreed and whole is not None else None


def _verdict(best: Mapping[str, str | None], keep: str | None, limited: bool) -> list[str]:
    """The verdict in lines: what to do, what each measure says, and what would decide."""
    by_run: dict[str | None, list[str]] = {}
    for name, run in best.items():
        by_run.setdefault(run, []).append(measure_name(name))
    undecided = by_run.pop(None, None)
    said = [f"- {in_words(names)}: {run} is best" for run, names in by_run.items()]
    if undecided:
        said.append(f"- {in_words(undecided)}: undecided, since halves of the images disagree")
    if not said:
        said = ["- No measure can be taken of all runs."]
    if keep is not None:
        return [
            f"Keep {keep}:", *said,
            "This is evidence, not proof; a few hundred labels and `unmix knn` decide better.",
        ]  # fmt: skip
    how = "No recommendation" if limited else "The measures disagree, so no recommendation"
    return [f"{how}:", *said, "Label a few hundred images, and let `unmix knn` decide."]


def _caveats(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """What forbids a comparison (True), or weakens it (False), in sentences."""
    found: list[tuple[str, bool]] = []
    if len({row["dimension"] for row in rows}) > 1:
        found.append(
            ("Ranks are bounded by the dimension of the features, which differs between these "
             "runs, so they cannot be compared.", True)
        )  # fmt: skip
    collapsed = [str(row["run"]) for row in rows if row["spread"] < _COLLAPSED]
    if collapsed:
        found.append(
            (f"{', '.join(collapsed)} gives all images nearly the same features: collapsed.", False)
        )
    if len({row["method"] for row in rows}) > 1:
        found.append(
            ("RankMe and alpha-ReQ were validated between runs of one method; across methods "
             "they often mislead.", False)
        )  # fmt: skip
    few = min(row["images"] for row in rows)
    if few < max(row["dimension"] for row in rows):
        found.append(
            (f"{counted(few, 'image')} {'is' if few == 1 else 'are'} fewer than the features have "
             "dimensions, which bounds the ranks.", False)
        )  # fmt: skip
    return found
