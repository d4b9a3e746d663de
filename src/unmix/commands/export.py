"""`unmix export`: an encoder in the format of another tool."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unmix import __version__
from unmix.commands.checkpoints import epoch_of
from unmix.commands.embed import check_new
from unmix.commands.finished import FinishedRun, Say
from unmix.commands.reading import short_names
from unmix.config import Settings, field_names
from unmix.display import counted, measure_title, method_name, value_text
from unmix.errors import UserError, check_choice
from unmix.evaluation.classifier import HEAD_FILE, read_head
from unmix.export import TARGETS, Card, Source, Target
from unmix.export.card import ResultLine
from unmix.files import as_path
from unmix.names import in_words, shown
from unmix.results import DamagedResultsError, Evaluation, RunResults, load_results
from unmix.rows import OF_IMAGES, measure_of, settings_of
from unmix.studies.cells import NO_RESULT, result_settings
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.run.folder import RunFolder

__all__ = ["export"]

_NO_SETTING = {"protocol", "data", "classes", "epoch", "start"}
_PLACES = {
    "data", "data_dir", "run", "train_folder", "test_folder", "init", "init_sha256", "max_pixels",
    "strict", "teacher", "teacher_sha256",
}  # fmt: skip


def export(
    run: Path | str,
    *,
    to: str,
    out: Path | str | None = None,
    opset: int | None = None,
    pixels: bool = False,
    classifier: bool = False,
    checkpoint: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
    say: Say = print_line,
) -> Path:
    """Write a run's encoder in the format of another tool, and print how to load it.

    Where another network or a graph is made of it, its features are compared with the encoder's.
    Tools that cannot represent a network are refused with the reason.

    Args:
        run: Run folder, or an encoder file alone.
        to: torchvision, timm, lightly (state dicts); safetensors; onnx; torch-export; detectron2
            (a pickle and a YAML file); or hub, a folder in the layout of the Hugging Face Hub with
            a model card.
        out: The file or folder; by default in export/ of the run, or export/CHECKPOINT/.
        opset: Opset of an ONNX file, 18 to 23.
        pixels: The graph of onnx or torch-export takes RGB in [0, 1], and normalizes it or
            converts its colors itself.
        classifier: The graph of onnx or torch-export gives the logits of the classifier that
            `finetune` trained, instead of features; `run` is the folder of the fine-tuning.
        checkpoint: The encoder of a kept checkpoint, such as epoch-0010, or of last, also of a run
            that is not complete; with `--to safetensors` a file for every other command.
        license: License on the model card, as apache-2.0.
        overwrite: Replace the file, or the folder's files, if they exist.
        say: Prints a line.

    Returns:
        The file or folder.

    Raises:
        UserError: if it exists or cannot be written, the target does not know the network, its
            package is missing, an option does not apply to it or to the run, or there is no such
            checkpoint.
    """
    check_choice("to", to, TARGETS)
    _check_options(to, opset, pixels, classifier, license)
    quiet_libraries()
    finished = FinishedRun.open(run, "cpu", checkpoint)
    kind = TARGETS[to]
    place = finished.folder.path / "export" / (checkpoint or "")
    path = as_path(out) if out is not None else place / kind.default
    name = finished.folder.path.absolute().name
    card = _card(finished, name, license or "unknown", checkpoint)
    finished.encoder.backbone.to("cpu")
    head = read_head(finished.folder.path, finished.encoder) if classifier else None
    source = Source(finished.encoder, name, card, opset=opset, pixels=pixels, classifier=head)
    target = kind(source)
    folder = path if target.folder else path.parent
    _check_place(path, folder, target, overwrite)
    with _staged(folder) as stage:
        target.write(stage, path)
        # The main file comes last.
        for file in sorted(stage.iterdir(), key=lambda each: each.name == path.name):
            os.replace(file, folder / file.name)
    say(f"{to}: {shown(path)}")
    takes = "RGB in [0, 1]" if pixels else target.source.normalization
    say("; ".join([f"it takes {takes}", *target.source.preparation.values()]))
    if head is not None:
        say(f"it gives the logits of {len(head.classes):,} classes; its metadata has their names")
    elif finished.alone and (finished.folder.path / HEAD_FILE).is_file():
        left_out = f"the classifier that was trained with it, in {HEAD_FILE}, is left out"
        say(f"it gives features: {left_out}; --to onnx --classifier takes it along")
    say("to load it:")
    for line in target.usage(path):
        say(f"  {line}")
    return path


def _check_options(
    to: str, opset: int | None, pixels: bool, classifier: bool, license_: str | None
) -> None:
    """Refuse options that the target does not have."""
    graphs = ("onnx", "torch-export")
    for name, given, targets in (
        ("opset", opset is not None, ("onnx",)),
        ("pixels", pixels, graphs),
        ("classifier", classifier, graphs),
        ("license", license_ is not None, ("hub",)),
    ):
        if given and to not in targets:
            raise UserError(f"applies to {in_words(targets)}, not to {to}.", parameter=name)


def _check_place(path: Path, folder: Path, target: Target, overwrite: bool) -> None:
    """Check that nothing is overwritten unasked, and that tools will know the file by its name.

    Raises:
        UserError: if they will not, or something would be.
    """
    if target.folder:
        if path.is_dir() and any(path.iterdir()):
            check_new(path, overwrite)
        elif path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; give a folder.", parameter="out")
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file.", parameter="out")
    if path.suffix.lower() not in target.endings:
        raise UserError(
            f"{path} has another extension; give a file that ends in "
            f"{in_words(target.endings, 'or')}, such as {path.with_suffix(target.endings[0])}.",
            parameter="out",
        )
    for name in target.names(path):
        check_new(folder / name, overwrite)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder within `folder` for files that are not complete yet.

    Raises:
        UserError: if a file cannot be written.
    """
    stage = None
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
            yield stage
        finally:
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)
            for each in missing:  # of what was made here, what is still empty
                with suppress(OSError):
                    each.rmdir()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"{folder}: cannot be written ({reason}).", parameter="out") from None


def _card(finished: FinishedRun, name: str, license_: str, checkpoint: str | None) -> Card:
    """The model card of a run, or of one of its checkpoints; of a file alone, of its facts."""
    facts = finished.encoder.facts
    network = f"{facts['backbone']} of width {facts['width']:g}"
    method = method_name(facts["method"])
    if finished.alone:
        if isinstance(tuned := facts.get("fine_tuned"), Mapping):
            return _fine_tuned(tuned, network, method, name, license_)
        about = f"An encoder ({network}), pretrained by {method} with unmix {__version__}."
        return Card(name, license_, about)
    settings = finished.settings
    with suppress(DamagedResultsError, UserError):
        results = load_results(finished.folder.path)
        if results.imported:
            return _imported(finished, results, name, license_)
        about = _about(results, settings, network, method, checkpoint)
        epoch = results.epochs if checkpoint is None else epoch_of(checkpoint)
        return Card(
            name, license_, about, _data(finished),
            _recipe(settings), () if epoch is None else _lines(finished, results, epoch),
            {k: v for k, v in results.versions.items() if isinstance(v, str)},
        )  # fmt: skip
    length = "" if checkpoint is None else _length(checkpoint, settings.run.epochs)
    about = f"An encoder ({network}), pretrained by {method}{length} with unmix {__version__}."
    return Card(name, license_, about, _data(finished), _recipe(settings))


def _length(checkpoint: str | None, epochs: int) -> str:
    """How long an encoder was trained, in words."""
    if checkpoint is None:
        return f" for {counted(epochs, 'epoch')}"
    if (epoch := epoch_of(checkpoint)) is None:
        return f" (checkpoint {checkpoint} of a run of {counted(epochs, 'epoch')})"
    return f" for {epoch} of {counted(epochs, 'epoch')}"


def _fine_tuned(
    tuned: Mapping[str, Any], network: str, method: str, name: str, license_: str
) -> Card:
    """The card of an encoder that was trained on labels, which its file says."""
    scratch = tuned.get("start") == "random"
    start = f"pretrained by {method}, then fine-tuned"
    start = "trained from random weights" if scratch else start
    data, classes, images = (tuned.get(key) for key in ("data", "classes", "train_images"))
    many = f" in {len(classes):,} classes" if isinstance(classes, Sequence) else ""
    about = (
        f"An encoder ({network}), {start} on the labels of {value_text(images)} images of "
        f"{shown(str(data))}{many}, with unmix."
    )
    recipe = {k: v for k, v in settings_of(tuned).items() if k not in _NO_SETTING}
    top1, lines = tuned.get("top1"), []
    if isinstance(top1, int | float):
        title = measure_title(measure_of(str(tuned.get("protocol")), tuned))
        lines.append(ResultLine(title, str(data), float(top1), (float(top1),)))
    return Card(name, license_, about, recipe=recipe, results=lines)


def _imported(finished: FinishedRun, results: RunResults, name: str, license_: str) -> Card:
    """The card of weights that were trained elsewhere: what is known, and what is not."""
    facts, imported = finished.encoder.facts, results.training
    method = "" if results.method == "imported" else f" by {method_name(results.method)}"
    about = (
        f"An encoder ({facts['backbone']} of width {facts['width']:g}, images of {results.size} "
        f"px), pretrained{method} elsewhere, and imported into unmix from "
        f"{_file_name(imported['imported'])} (SHA-256 {imported['sha256']}). Its license is that "
        "of its authors."
    )
    if "fine_tuned" in facts:
        about += " It had been fine-tuned on labels."
    data = "What it was pretrained on, and how, is not recorded here."
    return Card(name, license_, about, data, {}, _lines(finished, results, None))


def _file_name(init: str) -> str:
    """The name of weights, without where they were."""
    return shown(Path(init).name)


def _about(
    results: RunResults, settings: Settings, network: str, method: str, checkpoint: str | None
) -> str:
    mixture = "" if results.baseline else f" with the image mixture {results.mixture}"
    init, sha256 = settings.model.init, settings.model.init_sha256
    start = f", starting from {_file_name(init)} (SHA-256 {sha256})" if init is not None else ""
    # Weights to start from may have been trained on labels, which their file need not say.
    free = "" if init else " without labels"
    return (
        f"An encoder ({network}, images of {results.size} px), pretrained{free} by "
        f"{method}{mixture}{_length(checkpoint, settings.run.epochs)}{start}, with unmix."
    )


def _data(finished: FinishedRun) -> str:
    """What the run was trained on; of a folder its own name alone, not where it was."""
    own = finished.settings.run
    parts = [Path(own.data).name or own.data]
    if finished.record is not None:
        for split, seen in finished.record.splits.items():
            classes = "" if seen.classes is None else f" in {len(seen.classes):,} classes"
            parts.append(f"{split}: {seen.images:,} images{classes}")
    if own.limit is not None:
        parts.append(f"of the training images {own.limit:,} were used")
    return "; ".join(map(shown, parts)) + "."


def _recipe(settings: Settings) -> dict[str, Any]:
    """The settings that a result depends on: those that apply, without places on this machine."""
    mixture, views, schedule = settings.mixture, settings.views, settings.optimizer.schedule
    unused = {*field_names("machine"), *field_names("evaluation"), *_PLACES, *NO_RESULT}
    if not views.local_crops:
        unused |= {name for name in field_names("views") if name.startswith("local_")}
    if schedule != "step":
        unused |= {"milestones", "gamma"}
    if settings.optimizer.optimizer not in ("lars", "larc"):
        unused.add("trust")
    if settings.optimizer.optimizer not in ("lars", "larc", "sgd"):
        unused.add("momentum")
    default = asdict(type(mixture)())
    for name, value in asdict(mixture).items():
        if value == default[name]:
            unused.add(name)
    empty: tuple[Any, ...] = (None, False, (), [], "")
    return {k: v for k, v in settings.flat().items() if k not in unused and v not in empty}


def _key(row: Evaluation) -> tuple[Any, ...]:
    """What runs share that measured alike."""
    return (row.measure, *(row.details.get(name) for name in (*OF_IMAGES, "features", "k")))


def _finals(results: RunResults, epoch: int | None) -> dict[tuple[Any, ...], Evaluation]:
    """The last evaluation of each kind after an epoch; of weights from elsewhere None."""
    rows = results.evaluations
    return {_key(row): row for row in rows if epoch is None or row.epoch == epoch}


def _lines(finished: FinishedRun, results: RunResults, epoch: int | None) -> tuple[ResultLine, ...]:
    """The results after an epoch, with those of the runs that differ in their seed alone."""
    others = [_finals(each, epoch) for each in _siblings(finished)]
    finals = _finals(results, epoch)
    data = {key: str(row.details.get("data") or results.data) for key, row in finals.items()}
    names = short_names(list(dict.fromkeys(data.values())))
    lines = []
    for key, row in finals.items():
        values = [row.top1, *(other[key].top1 for other in others if key in other)]
        projector = row.details.get("features") == "projector"
        title = measure_title(row.measure) + (", projector features" if projector else "")
        parts = [str(row.details[part]) for part in OF_IMAGES[1:] if row.details.get(part)]
        which = f" ({', '.join(parts)})" if parts else ""
        lines.append(ResultLine(title, names[data[key]] + which, row.top1, tuple(values)))
    return tuple(lines)


def _siblings(finished: FinishedRun) -> Iterator[RunResults]:
    """The finished runs in the same folder with the same settings but the seed."""
    own = finished.folder.path.absolute()
    wanted, seeds = result_settings(finished.settings), {finished.settings.run.seed}
    for path in sorted(own.parent.iterdir()):
        folder = RunFolder(path)
        if path == own or not folder.config.is_file() or not folder.results.is_file():
            continue
        with suppress(DamagedResultsError, UserError, OSError):
            theirs = folder.settings()
            same = {**result_settings(theirs), "seed": wanted["seed"]} == wanted
            if same and theirs.run.seed not in seeds:
                seeds.add(theirs.run.seed)
                yield load_results(path)
