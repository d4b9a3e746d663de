"""`unmix knn`: kNN evaluation of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmix.commands.finished import FinishedRun, Say, check_features, line_of, say_skipped
from unmix.config import EvaluationSettings
from unmix.data.columns import Columns
from unmix.errors import UserError, check_choice, check_number
from unmix.evaluation import Task, evaluate
from unmix.hardware.threads import CoreMeter
from unmix.randomness import generator_for
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line

__all__ = ["knn"]


def knn(
    run: Path | str,
    *,
    metric: str = "cosine",
    k: int | None = None,
    temperature: float | None = None,
    select: bool = False,
    features: str = "backbone",
    layer: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    say: Say = print_line,
) -> dict[str, Any]:
    """Evaluate a finished run by kNN, and add the result to its `results.json`.

    With `cosine` neighbors vote with weight exp(similarity / T), as in InstDisc and DINO; with
    `euclidean` each has one vote, the nearest 5 of W-MSE.

    A row with the same settings is replaced. Rows of another k, temperature, kind of features or
    data set are kept beside it. Tables and figures use that of the usual settings, or the only one;
    a layer, and another data set, have a column of their own.

    Args:
        run: Run folder, or an encoder file alone, with `data`; then nothing is saved.
        metric: cosine or euclidean.
        k: Number of neighbors that vote; by default 200 (euclidean: 5), or as many as there are
            training images.
        temperature: T of the weights exp(similarity / T); by default 0.1.
        select: Choose k and temperature on a held-out tenth of the training images.
        features: The backbone's pooled features, or the projector's.
        layer: Layer of the backbone instead of its pooled features: a name such as layer3 or
            blocks.5, or CMC's number, 1 to 6.
        device: auto, cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        data: Another data set than the pretraining's, by name or folder: transfer.
        data_dir: Folder of the data set's files, for the names that need it.
        train_folder: Folder of the training images, relative to --data, if its name is not
            usual.
        test_folder: Folder of the images to evaluate on, likewise.
        image_column: Of a list or table, the column of the images or their paths, if its name is
            not a usual one.
        label_column: Likewise of the labels.
        split_column: Likewise of the splits to which images belong.
        say: Prints a line.

    Returns:
        The row of `results.json`: accuracies in percent, and the settings.

    Raises:
        NotSavedError: if `results.json` cannot be written; its `rows` are the results.
        UserError: if the run is not complete, the data has no classes, or a value is out of range.
    """
    _check(metric, k, temperature, select)
    check_features(features, layer)
    quiet_libraries()
    cores = CoreMeter()
    finished = FinishedRun.open(run, device)
    columns = Columns(image_column, label_column, split_column)
    splits = finished.splits("kNN", data, data_dir, train_folder, test_folder, columns)
    if k is not None and k > len(splits.train):
        raise UserError(
            f"--k: {k} is more than the {len(splits.train):,} training images; it must be at most "
            "that."
        )
    if splits.note is not None:
        say(splits.note)
    subject = finished.subject(features, layer=layer)
    name, usual = ("knn", 200) if metric == "cosine" else ("knn-euclidean", 5)
    with finished.computing(threads, cores, say):
        task = Task(
            lambda: finished.features(subject.encode, splits.train, say),
            lambda: finished.features(subject.encode, splits.test, say),
            len(splits.classes),
            generator=generator_for(finished.settings.run.seed, "probe"),
            device=finished.machine.device, k=usual if k is None else k,
            temperature=0.1 if temperature is None else temperature, select=select,
        )  # fmt: skip
        measured = evaluate(name, task)
    row = {**measured.row, **subject.of, **splits.named}
    say_skipped(say, splits.train, splits.test)
    # Printed first, whatever may happen to the file.
    say(line_of(row))
    main = _is_usual(row, finished.settings.evaluation)
    finished.keep(row, measured, splits, main=main, say=say)
    return row


def _is_usual(row: dict[str, Any], wanted: EvaluationSettings) -> bool:
    """Whether a row is measured as the run itself measures, or as W-MSE does."""
    if row["protocol"] == "knn":
        usual = {"k": min(wanted.knn_k, row["train_images"]), "temperature": wanted.knn_temperature}
    else:
        usual = {"k": min(5, row["train_images"])}
    usual["features"] = wanted.features
    return {key: row.get(key) for key in (*usual, "layer")} == {**usual, "layer": None}


def _check(metric: str, k: int | None, temperature: float | None, select: bool) -> None:
    check_choice("metric", metric, ("cosine", "euclidean"))
    if temperature is not None and metric == "euclidean":
        raise UserError(
            f"--temperature: {temperature:g} does not apply to --metric euclidean, whose neighbors "
            "have one vote each; leave it out."
        )
    for name, value in (("k", k), ("temperature", temperature)):
        if select and value is not None:
            raise UserError(f"--{name}: is what --select chooses; give one of the two.")
    if k is not None:
        check_number("k", k, at_least=1)
    if temperature is not None:
        check_number("temperature", temperature, above=0)
