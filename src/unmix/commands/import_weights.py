"""`unmix import`: a run folder made of the weights of another project."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmix.backbones import VIT_SHAPE
from unmix.commands.finished import Say
from unmix.commands.knn import knn
from unmix.commands.probe import probe
from unmix.config import MachineSettings, Settings
from unmix.data.fingerprint import Fingerprint
from unmix.data.registry import path_of
from unmix.errors import UserError, check_choice, check_given, check_number
from unmix.hardware.devices import choose_machine, hardware, versions
from unmix.methods import METHODS, method_class
from unmix.names import NO_DATA, shown
from unmix.results import load_results, write_results
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.run.command import flags_of
from unmix.training.run.data_record import DataRecord, absolute, located_data
from unmix.training.run.folder import RunFolder
from unmix.training.run.parts import load_split, measured_range
from unmix.weights import (
    Found,
    Network,
    Preparation,
    Weights,
    is_name,
    network_in,
    open_weights,
    settings_of,
    usual_preparation,
)

__all__ = ["import_weights"]

# The method whose class rebuilds an encoder that no method here has trained.
_ANY = "simclr"


def import_weights(
    file: str,
    *,
    run: Path | str,
    method: str | None = None,
    backbone: str | None = None,
    width: float | None = None,
    stem: str | None = None,
    patch: int | None = None,
    heads: int | None = None,
    class_token: bool | None = None,
    pooling: str | None = None,
    view: str | None = None,
    size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    bit_depth: int | None = None,
    range: tuple[float, float] | None = None,
    epochs: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    say: Say = print_line,
) -> Path:
    """Make a run folder of the weights of another project, to evaluate and compare like a run.

    The layout of the file is recognized by the names of its tensors; no code in it is run. With
    `data` the encoder is evaluated on it by kNN and a linear probe, as at the end of a run, so that
    `unmix compare` sets it beside runs on the same data.

    Args:
        file: A checkpoint of another project, a folder of Hugging Face, timm:NAME or
            torchvision:NAME.
        run: Folder to make; it must not exist, or be empty.
        method: Method that trained the weights; by default by the layout of the file.
        backbone: By default by the shapes of the tensors.
        width: Factor on the number of channels; likewise.
        stem: First layers, small, medium or large; likewise, small for a 3x3 convolution.
        patch: Side of a vision transformer's patches in pixels; likewise.
        heads: Attention heads of a vision transformer; by default the model's own.
        class_token: Whether a vision transformer has a class token; by default by the tensors.
        pooling: Features of a vision transformer: class (token), or the average of its patch
            tokens; by default the model's own. Kept with the encoder.
        view: Color space of cmc, Lab or YCbCr.
        size: Side of the images in pixels; by default as the source says, 32 with a 3x3 stem, else
            224.
        mean: RGB mean in [0, 1]; by default as the source says, CIFAR-10's with a 3x3 stem, else
            ImageNet's.
        std: RGB standard deviation, likewise.
        bit_depth: Bits that the images of more than 8 bits really used that the weights were
            trained on, such as 12. Kept with the encoder; by default as the source says, else the
            range of --data, else each data set is measured.
        range: Values that became black and white in these images, instead of bit_depth.
        epochs: Epochs that the weights were trained for; by default as the file says, else 1.
        data: Data set to evaluate the encoder on, by name or folder.
        data_dir: Folder of the data set's files, for the names that need it.
        train_folder: Folder of the training images, relative to --data, if its name is not usual.
        test_folder: Folder of the images to evaluate on, likewise.
        device: auto, cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        say: Prints a line.

    Returns:
        The run folder.

    Raises:
        UserError: if the file cannot be read, or its network is not one that is known here; if the
            folder exists, or a value is out of range.
    """
    typed = {k: v for k, v in locals().items() if v is not None and k not in ("file", "say")}
    typed = {k: v for k, v in typed.items() if (k, v) != ("device", "auto")}
    check_given("run", run)
    if method is not None:
        check_choice("method", method, METHODS)
    if epochs is not None:
        check_number("epochs", epochs, at_least=1)
    quiet_libraries()
    folder = RunFolder(run)
    _check_new(folder)
    with _named_file():
        opened = open_weights(file)
        found = opened.found()
    given: dict[str, Any] = {
        "backbone": backbone, "width": width, "stem": stem, "patch": patch, "heads": heads,
        "class_token": class_token, "pooling": pooling, "size": size, "mean": mean, "std": std,
        "method": method, "view": view, "bit_depth": bit_depth, "range": range,
    }  # fmt: skip
    trained = _epochs(opened) if epochs is None else epochs
    settings = Settings.of({
        **_settings(opened, found, {k: v for k, v in given.items() if v is not None}),
        **({} if data is None else _data(data, data_dir, train_folder, test_folder)),
        "epochs": trained or 1, "device": device, "run": None,
        "init": file if is_name(file) else absolute(file), "init_sha256": opened.sha256,
    })  # fmt: skip
    seen: dict[str, Fingerprint] = {}
    labeled = False
    if data is not None:
        settings, labeled = _read(settings, seen)
    with _named_file():
        encoder, line = _encoder(settings, opened)
    say(line)
    say(_about(settings, opened, found, trained, given))
    record = None if data is None else DataRecord.of(data, seen)
    command = shlex.join(["unmix", "import", file, *flags_of(typed)])
    kept = {name: opened.facts[name] for name in ("fine_tuned",) if name in opened.facts}
    _write(folder, settings, encoder, record, command, method or _method(opened, found), kept)
    say(f"run folder: {shown(folder.path)}")
    if labeled:
        knn(folder.path, device=device, threads=threads, say=say)
        probe(folder.path, device=device, threads=threads, say=say)
    else:
        say(_not_evaluated(folder, data))
    return folder.path


def _not_evaluated(folder: RunFolder, data: str | None) -> str:
    """Why the encoder was not evaluated, and how to do so."""
    if data is not None:
        return f"{shown(data)} has no classes, so it is not evaluated"
    name = shlex.quote(str(folder.path))
    return f"to evaluate it: unmix knn {name} --data DATA, or give --data to unmix import"


@contextmanager
def _named_file() -> Iterator[None]:
    """Name the file in errors as it is given here."""
    try:
        yield
    except UserError as error:
        if error.parameter != "init":
            raise
        raise UserError(error.message, parameter="file", flag="FILE") from None


def _check_new(folder: RunFolder) -> None:
    """Check that nothing would be overwritten.

    Raises:
        UserError: if the folder is a run already, or holds other files.
    """
    if folder.has_run():
        raise UserError(
            f"{shown(folder.path)} is a run already; give a new folder.", parameter="run"
        )


def _settings(opened: Weights, found: Found, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the encoder: what is given, else by the source, the layout and the shapes.

    Raises:
        UserError: if the backbone is not known.
    """
    network = network_in(found)
    words: dict[str, Any] = {"method": _method(opened, found) or _ANY}
    if opened.facts:
        own = {**settings_of(opened.facts), "range": opened.facts.get("range")}
        words |= {k: v for k, v in own.items() if v is not None}
    elif opened.backbone is not None:
        words["backbone"] = opened.backbone
    elif network is not None:
        words |= network.settings()
    if "backbone" not in {**words, **given}:
        title = "a network that is not known here" if network is None else f"a {network.title}"
        raise UserError(
            f"{opened.name} is of {title}; give the name of the one that takes its weights, such "
            "as timm:NAME.",
            parameter="backbone",
        )
    if "backbone" in given and given["backbone"] != words.get("backbone"):
        words = {k: v for k, v in words.items() if k not in VIT_SHAPE}
        words |= {"width": 1.0, "stem": words.get("stem", "auto")}
    if str(given.get("backbone", words["backbone"])).startswith("timm:"):
        words |= {"width": 1.0, "stem": "auto"}
    if (heads := found.attention_heads) is not None:
        words["heads"] = heads
    if network is not None and network.halves:
        words["method"] = "cmc"
        if opened.facts:
            words["view"] = opened.facts["color_space"]
    prepared = _preparation(opened, network)
    if "bit_depth" in given:
        words.pop("range", None)  # the source's
    words |= {
        "data": NO_DATA,
        "size": prepared.size,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
    }
    return {**words, **{k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}}


def _method(opened: Weights, found: Found) -> str | None:
    """The method that trained the weights, as far as the file says."""
    own = opened.method if opened.method in METHODS else None
    return own or found.layout.method


def _preparation(opened: Weights, network: Network | None) -> Preparation:
    """How images are prepared: as the source says, else as usual for the stem."""
    usual, theirs = usual_preparation(network), opened.preparation
    if theirs is None:
        return usual
    return Preparation(theirs.mean, theirs.std, theirs.size or usual.size, theirs.source)


def _epochs(opened: Weights) -> int | None:
    """The number of epochs that a checkpoint says that it was trained for."""
    beside = opened.checkpoint.path.parent
    if opened.method is not None:
        with suppress(UserError):
            return load_results(beside).epochs
    epoch = opened.checkpoint.content.get("epoch")
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        return None
    counts_from_0 = "pytorch-lightning_version" in opened.checkpoint.content
    return epoch + counts_from_0 or None


def _data(
    data: str, data_dir: str | None, train_folder: str | None, test_folder: str | None
) -> dict[str, Any]:
    """The settings of the data, with absolute paths."""
    return {
        "data": located_data(data),
        "data_dir": None if data_dir is None else absolute(data_dir),
        "train_folder": train_folder,
        "test_folder": test_folder,
    }


def _read(settings: Settings, seen: dict[str, Fingerprint]) -> tuple[Settings, bool]:
    """Read the data as a run does: the settings with its range, and whether it has classes."""
    chosen = settings.run
    path = path_of(chosen.data)
    if path is not None and not Path(path).exists():
        raise UserError(f"{shown(path)} does not exist.", parameter="data")
    images = load_split(chosen, "pretrain", seen)
    settings = settings.with_changes(**measured_range(images, chosen))
    if images.labels is None:
        images = load_split(chosen, "train", seen)
    if images.labels is not None:
        load_split(chosen, "test", seen)
    return settings, images.labels is not None


def _encoder(settings: Settings, opened: Weights) -> tuple[nn.Module, str]:
    """The encoder with the weights, and the line that says what matched."""
    model = settings.model
    with torch.random.fork_rng(devices=[]):
        encoder = method_class(settings.run.method).build_backbone(
            model.backbone, width=model.width, stem=model.stem, size=settings.run.size,
            **{name: getattr(model, name) for name in VIT_SHAPE},
        )  # fmt: skip
    loaded = opened.load(encoder).complete(opened.name, model.backbone)
    return encoder.eval(), loaded.line(opened.name)


def _about(
    settings: Settings,
    opened: Weights,
    found: Found,
    epochs: int | None,
    given: Mapping[str, Any],
) -> str:
    """A line: what was made of the weights, and where each fact is from."""
    run, model = settings.run, settings.model
    prepared = _preparation(opened, network_in(found))
    parts = [f"encoder: {model.backbone}, width {model.width:g}"]
    if settings.run.method == "cmc":
        parts.append(f"images: {settings.method['view']}, {run.size} px")
    else:
        words = [" ".join(f"{value:.4g}" for value in each or ()) for each in (run.mean, run.std)]
        own = [name for name in ("mean", "std", "size") if given[name] is not None]
        source = prepared.source + (f"; {', '.join(own)} as given" if own else "")
        parts.append(f"images: {run.size} px, mean {words[0]}, std {words[1]} ({source})")
    if run.limits is not None:
        low, high = (f"{value:,.6g}" for value in run.limits)
        parts.append(f"more than 8 bits: {low} to {high} become black to white")
    if given["method"] is None and _method(opened, found) is None:
        parts.append("method: unknown, --method says otherwise")
    else:
        parts.append(f"method: {run.method}")
    parts.append(
        f"epochs: {epochs}" if epochs else "epochs: unknown, recorded as 1, --epochs says otherwise"
    )
    return "   ".join(parts)


def _write(
    folder: RunFolder,
    settings: Settings,
    encoder: nn.Module,
    record: DataRecord | None,
    command: str,
    method: str | None,
    kept: Mapping[str, Any],
) -> None:
    """Write the run folder: beside, then renamed, so that there is never half a one."""
    beside = folder.path.with_name(f".{folder.path.name}.{os.getpid()}.tmp")
    made = RunFolder(beside)
    words = settings.flat()
    color_space = settings.method.get("view", "RGB") if settings.run.method == "cmc" else "RGB"
    names = ("method", "backbone", "width", "stem", "size", *VIT_SHAPE, "mean", "std")
    facts = {**kept, **{name: words[name] for name in names}}
    facts |= {"color_space": color_space, "range": settings.run.limits}
    try:
        made.write_encoder(encoder, facts)
        made.write_settings(settings)
        if record is not None:
            record.write(beside)
        content = _results(folder, settings, record, command, method)
        write_results(made.results, content)
        load_results(beside)
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        beside.replace(folder.path)
    except OSError as error:
        raise UserError(
            f"{shown(folder.path)} cannot be written ({error.strerror or error}).", parameter="run"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _results(
    folder: RunFolder,
    settings: Settings,
    record: DataRecord | None,
    command: str,
    method: str | None,
) -> dict[str, Any]:
    """The content of `results.json`, without evaluations yet."""
    words, model = settings.flat(), settings.model
    machine = choose_machine(MachineSettings(device=settings.machine.device))
    return {
        "schema": 1,
        "name": folder.path.name,
        **{name: words[name] for name in ("backbone", "width", "size", "epochs", "seed")},
        "method": method or "imported",
        "data": NO_DATA if record is None else record.typed,
        "mixture": settings.mixture.name,
        "command": command,
        "evaluations": [],
        "training": {"imported": model.init, "sha256": model.init_sha256},
        "hardware": {**hardware(machine.device), "precision": machine.precision},
        "versions": versions(),
    }
