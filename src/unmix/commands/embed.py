"""`unmix embed`: the features of all images of a data set, in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmix import __version__
from unmix.checksums import weights_digest
from unmix.commands.finished import FinishedRun, Say
from unmix.commands.images import image_sets, range_of
from unmix.data import ImageSet, Skipped
from unmix.data.columns import Columns
from unmix.embedding import Chunks, NamedSet, assemble, encode_chunks, format_of
from unmix.errors import UserError, check_choice, check_number
from unmix.evaluation import LayerFeatures
from unmix.files import as_path
from unmix.hardware.threads import CoreMeter
from unmix.names import shown, stored
from unmix.training.console import Estimate, quiet_libraries
from unmix.training.console import say as print_line

__all__ = [
    "check_new",
    "embed",
    "embedding_chunks",
    "encoder_of_layer",
    "make_features",
    "partial_folder",
    "skipped_file",
    "write_skipped",
]

_DTYPES = ("float32", "float16")


def embed(
    run: Path | str,
    *,
    out: Path | str,
    data: str | None = None,
    split: str = "all",
    layer: str | None = None,
    features: str = "backbone",
    dtype: str = "float32",
    batch_size: int = 256,
    device: str = "auto",
    threads: int | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    overwrite: bool = False,
    say: Say = print_line,
) -> Path:
    """Encode all images of a data set, and write their features, paths and labels to a file.

    Images are prepared as in the evaluation. Memory does not grow with the features: they are
    written to a folder beside the file while they are computed. Give the same command to continue
    one that was interrupted. Images that cannot be read are left out, counted, and listed in a
    file whose name ends in .skipped.csv.

    Args:
        run: Run folder, or an encoder file alone, with `data`.
        out: The file: .parquet, .npz, or .npy, beside which a .csv of the same name has paths
            and labels.
        data: Name or folder of the images; by default those of the pretraining.
        split: The images to encode: all, train or test. With all, those for training come first.
        layer: A layer of the backbone, such as layer3, or blocks.5 of a vision transformer; by
            default its pooled output.
        features: The backbone's pooled features, or the projector's.
        dtype: float32 or float16.
        batch_size: Images that are encoded at a time.
        device: auto, cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        data_dir: Folder of the data set's files, for the names that need it.
        train_folder: Folder of the training images, relative to --data, if its name is not
            usual.
        test_folder: Folder of the images to evaluate on, likewise.
        image_column: Of a list or table, the column of the images or their paths, if its name is
            not a usual one.
        label_column: Likewise of the labels.
        split_column: Likewise of the splits to which images belong.
        overwrite: Replace the file if it exists.
        say: Prints a line.

    Returns:
        The file.

    Raises:
        UserError: if the file exists or cannot be written, there is no such layer, the run is not
            complete, or the data cannot be read.
    """
    path = as_path(out)
    check_choice("features", features, ("backbone", "projector"))
    check_choice("dtype", dtype, _DTYPES)
    check_number("batch_size", batch_size, at_least=1)
    form = format_of(path)
    form.check()
    for file in (path, *form.beside(path), skipped_file(path)):
        check_new(file, overwrite, unfinished=partial_folder(path))
    quiet_libraries()
    cores = CoreMeter()
    finished = FinishedRun.open(run, device)
    encode, dim = encoder_of_layer(finished, layer, features)
    columns = Columns(image_column, label_column, split_column)
    sets = image_sets(finished, split, data, data_dir, train_folder, test_folder, columns, say)
    chunks = embedding_chunks(path, finished, sets, layer, features, dim, dtype, batch_size)
    with finished.computing(threads, cores, say), chunks.opened(overwrite):
        if not chunks.assembled(overwrite):
            make_features(chunks, finished, encode, say, batch_size, overwrite)
            assemble(chunks, path, _about(finished, sets, layer, features))
        _report(chunks, path, sets, say)
        chunks.finish()
    return path


def encoder_of_layer(
    finished: FinishedRun, layer: str | None, features: str = "backbone"
) -> tuple[Callable[[Tensor], Tensor], int]:
    """The encoder up to a layer, or with the projector; and the length D of its features.

    Raises:
        UserError: if there is no such layer, or a layer of the projector is asked for.
    """
    encoder = finished.encoder
    if layer is None and features == "backbone":
        return encoder.features, encoder.feature_dim
    if layer is not None:
        if features != "backbone":
            raise UserError(
                "applies to the backbone; leave out `features=projector`.", parameter="layer"
            )
        found = LayerFeatures(encoder.backbone, layer, encoder.views.size)
        return found, found.feature_dim
    encode = finished.subject(features).encode
    size = encoder.views.size
    images = torch.zeros(2, 3, size, size, device=finished.machine.device)
    with torch.inference_mode():
        return encode, encode(images).shape[1]


def check_new(path: Path, overwrite: bool, unfinished: Path | None = None) -> None:
    """Check that a result is not there yet, or may be replaced.

    Args:
        path: The file or folder.
        overwrite: Whether it may be replaced.
        unfinished: If this exists, the result was complete, and only to be moved.

    Raises:
        UserError: if it exists.
    """
    if path.exists() and not overwrite and not (unfinished and (unfinished / "ready").is_dir()):
        raise UserError(
            f"{path} exists; give another name, or `overwrite=True` to replace it.",
            parameter="out",
        )


def make_features(
    chunks: Chunks,
    finished: FinishedRun,
    encode: Callable[[Tensor], Tensor],
    say: Say,
    batch_size: int = 256,
    overwrite: bool = False,
) -> None:
    """Encode the chunks that are missing; with `overwrite`, those of changed images too.

    Raises:
        UserError: if there is no room, no image can be read, or the images have changed.
    """
    first = chunks.done(overwrite)
    total = sum(len(each.images) for each in chunks.sets)
    left = sum(place.stop - place.start for place in chunks.places[first:])
    if first:
        say(f"continuing: {total - left:,} of {total:,} images are encoded")
    chunks.check_room(first)
    views, machine = finished.encoder.views, finished.machine
    encode_chunks(
        chunks, encode, views.plain, views.size, first=first, batch_size=batch_size,
        device=machine.device, autocast=machine.autocast, workers=machine.workers,
        progress=Estimate("features", "images", say),
    )  # fmt: skip
    if not any(len(chunk.index) for _, chunk in chunks):
        name = shown(chunks.sets[0].images.name)
        raise UserError(f"none of the {total:,} images of {name} is readable.", parameter="data")


def skipped_file(path: Path) -> Path:
    """The file beside a result that lists the images that could not be read."""
    return path.with_name(f"{path.name}.skipped.csv")


def partial_folder(path: Path) -> Path:
    """The folder beside a result in which it is made."""
    return path.with_name(f".{path.name}.partial")


def embedding_chunks(
    path: Path,
    finished: FinishedRun,
    sets: Sequence[ImageSet],
    layer: str | None,
    features: str,
    dim: int,
    dtype: str,
    batch_size: int,
    **more: str,
) -> Chunks:
    """The chunks of features of some splits, which also depend on `more`; see `Chunks`."""
    named = [NamedSet(images) for images in sets]
    plan = {
        "encoder": weights_digest(finished.encoder.backbone.state_dict()),
        "prepares": finished.encoder.prepares,
        "data": stored(sets[0].name), "layer": layer, "features": features,
        "batch_size": batch_size, "precision": finished.machine.precision, **more,
    }  # fmt: skip
    return Chunks(path, named, plan, dim=dim, batch_size=batch_size, dtype=dtype)


def _about(
    finished: FinishedRun, sets: Sequence[ImageSet], layer: str | None, features: str
) -> dict[str, Any]:
    """How the features were made, for the file."""
    facts = finished.encoder.facts
    run = None if finished.alone else stored(finished.folder.path.absolute())
    named = ("method", "backbone", "width", "size", "color_space")
    return {
        "unmix": __version__, "run": run, "data": stored(sets[0].name), "features": features,
        "layer": layer, **{name: facts[name] for name in named},
        "range": range_of(finished, sets[0]),
    }  # fmt: skip


def _report(chunks: Chunks, path: Path, sets: Sequence[ImageSet], say: Say) -> None:
    """Say what was written, and list what could not be read."""
    count = sum(len(chunk.index) for _, chunk in chunks)
    write_skipped(chunks, path, say)
    splits = ", ".join(f"{len(each):,} {each.split}" for each in sets)
    say(
        f"features: {count:,} x {chunks.dim} of {shown(sets[0].name)} ({splits} images) in "
        f"{shown(path)}"
    )


def write_skipped(chunks: Chunks, path: Path, say: Say) -> None:
    """List the images that could not be read in a file beside the result, and say how many."""
    skipped = Skipped()
    for _, chunk in chunks:
        skipped.add_pairs(chunk.broken)
    listed = skipped_file(path)
    listed.unlink(missing_ok=True)  # of the result that was here before
    if len(skipped):
        skipped.record(listed)
        say(skipped.line() or "")
