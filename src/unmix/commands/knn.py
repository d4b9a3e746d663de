"""`unmix knn`: weighted kNN evaluation of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmix.commands.finished import FinishedRun, Say, line_of, say_skipped
from unmix.errors import check_choice, check_number
from unmix.evaluation import evaluate_features
from unmix.hardware.threads import CoreMeter
from unmix.randomness import generator_for
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line

__all__ = ["knn"]


def knn(
    run: Path | str,
    *,
    k: int = 200,
    temperature: float = 0.1,
    features: str = "backbone",
    device: str = "auto",
    threads: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    say: Say = print_line,
) -> dict[str, Any]:
    """Evaluate a finished run by weighted kNN, and add the result to its `results.json`.

    A row with the same settings is replaced. Rows of another k, temperature, kind of features or
    data set are kept beside it, and not used by tables and figures.

    Args:
        run: Run folder, or an encoder file alone, with `data`; then nothing is saved.
        k: Number of neighbors that vote; at most the number of training images.
        temperature: T of the weights exp(similarity / T).
        features: The backbone's pooled features, or the projector's.
        device: auto, cpu, cuda or mps.
        threads: Number of CPU threads; by default the number of free cores.
        data: Another data set than the pretraining's, by name or folder: transfer.
        data_dir: Folder of the data set's files, for the names that need it.
        train_folder: Folder of the training images, relative to --data, if its name is not
            usual.
        test_folder: Folder of the images to evaluate on, likewise.
        say: Prints a line.

    Returns:
        The row of `results.json`: accuracies in percent, and the settings.

    Raises:
        NotSavedError: if `results.json` cannot be written; its `rows` are the results.
        UserError: if the run is not complete, the data has no classes, or a value is out of range.
    """
    check_number("k", k, at_least=1)
    check_number("temperature", temperature, above=0)
    check_choice("features", features, ("backbone", "projector"))
    quiet_libraries()
    cores = CoreMeter()
    finished = FinishedRun.open(run, device)
    splits = finished.splits("kNN", data, data_dir, train_folder, test_folder)
    if splits.note is not None:
        say(splits.note)
    subject = finished.subject(features)
    with finished.computing(threads, cores, say):
        measured = evaluate_features(
            finished.features(subject.encode, splits.train, say),
            finished.features(subject.encode, splits.test, say),
            len(splits.classes), ("knn",), k=k, temperature=temperature,
            generator=generator_for(finished.settings.run.seed, "probe"),
            device=finished.machine.device,
        )[0]  # fmt: skip
    row = {**measured.row, **subject.at, "features": features, **splits.named}
    wanted = finished.settings.evaluation
    main = splits.transfer is None and (k, temperature, features) == (
        wanted.knn_k, wanted.knn_temperature, wanted.features,
    )  # fmt: skip
    say_skipped(say, splits.train, splits.test)
    # Printed first, whatever may happen to the file.
    say(line_of(row))
    finished.keep(row, measured, splits.test, main=main, say=say)
    return row
