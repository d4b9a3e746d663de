"""The work of `unmix finetune`: its folder, its training, the choice of its rates."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from unmix.commands.augmented import augmented_batches, batch_order
from unmix.commands.evaluated import Splits
from unmix.commands.finished import FinishedRun, Say
from unmix.data import ImageSet, StreamedImages
from unmix.errors import UserError
from unmix.evaluation.classifier import write_head
from unmix.evaluation.encoder import FINE_TUNING_FILE, build_encoder
from unmix.evaluation.finetuning import Classifier, FineTuneSettings, FineTuning
from unmix.evaluation.labeled import image_name
from unmix.evaluation.selection import RATES, best, held_out
from unmix.evaluation.sgd import quiet_lightning
from unmix.files import as_path, atomic_write, read_json
from unmix.names import json_bytes
from unmix.randomness import generator_for
from unmix.results import finite
from unmix.schema import Between, Epoch, Percent, checked
from unmix.training.console import silent
from unmix.training.loop.stopping import Stopping
from unmix.training.run.checkpoints import LAST, PREVIOUS, AtomicCheckpoints, latest_intact
from unmix.training.run.folder import RunFolder
from unmix.training.run.lock import run_lock
from unmix.training.run.trainer import errors_of_users

__all__ = ["Labeled", "WorkFolder", "choose_settings", "train", "untrained"]

_Tried = dict[str, Annotated[float, Between(-1, 1)]]
_RESULT, _LIST, _TRIED = "result.json", "labels.txt", "select.json"


@dataclass(frozen=True)
class _Row:
    """What the row of a complete fine-tuning must hold; the rest is kept as it is."""

    protocol: str
    top1: Percent
    top5: Percent | None = None
    epoch: Epoch | None = None


@dataclass(frozen=True)
class Labeled:
    """The labeled images of a fine-tuning.

    Attributes:
        images: The images.
        labels: int64 (N,).
        index: Their indices in the training split.
        classes: Number of classes.
        kind: "" for all, "10%", "20-per-class" or "list".
        what: How they were chosen, in words.
    """

    images: ImageSet
    labels: Tensor
    index: Tensor
    classes: int
    kind: str
    what: str

    @property
    def digest(self) -> str:
        """Which of the training images they are."""
        return hashlib.blake2b(self.index.numpy().tobytes(), digest_size=16).hexdigest()

    def names(self) -> list[str]:
        """Their names in a list, as `read_list` takes them."""
        if isinstance(self.images, StreamedImages):
            return [image_name(self.images, i) for i in range(len(self.images))]
        return [str(i) for i in self.index.tolist()]

    def some(self, chosen: Tensor) -> Labeled:
        """A part of them.

        Args:
            chosen: Indices among them, int64.
        """
        return Labeled(
            self.images.picked(chosen), self.labels[chosen], self.index[chosen], self.classes,
            self.kind, self.what,
        )  # fmt: skip


@dataclass(frozen=True)
class WorkFolder:
    """The folder of one fine-tuning.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def of(
        cls,
        finished: FinishedRun,
        row: Mapping[str, Any],
        labeled: Labeled,
        splits: Splits,
        encoder: str,
        out: str | None,
    ) -> WorkFolder:
        """The folder `finetune/NAME` of a run, whose name ends in a digest of all that matters."""
        if out is not None:
            return cls(as_path(out))
        facts = [
            dict(row), labeled.index.tolist(), splits.train_digest, splits.test_digest, encoder,
        ]  # fmt: skip
        digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=4).hexdigest()
        kind = (labeled.kind or "all").replace("%", "pct")
        name = "-".join([kind, str(row["settings"]), digest])
        return cls(finished.folder.path / "finetune" / name)

    @staticmethod
    def identified(
        row: Mapping[str, Any],
        labeled: Labeled,
        splits: Splits,
        encoder: str,
        prepares: str,
        seed: int,
    ) -> dict[str, Any]:
        """What is trained and how: digests of the encoder and the images, and the seed too."""
        return {
            **row,
            "seed": seed,
            "encoder": encoder,
            "prepares": prepares,
            "train": splits.train_digest,
            "test": splits.test_digest,
            "labeled": labeled.digest,
        }

    @contextmanager
    def locked(self, say: Say) -> Iterator[None]:
        """Keep other processes out.

        Raises:
            UserError: if another one is at work here, or the folder cannot be written.
        """
        with run_lock(self.path, say, "--out"):
            yield

    def result(self, settings: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
        """The row, if the fine-tuning is complete and is not to be done again.

        Args:
            settings: From `identified`.
            overwrite: Whether it is to be done again.

        Raises:
            UserError: if the folder holds another fine-tuning or other files, or the row is
                damaged.
        """
        then = _read(self.path / FINE_TUNING_FILE, f"Remove {self.path} to train anew.")
        if then is None:
            if self.path.is_dir() and any(p for p in self.path.iterdir() if p.name[0] != "."):
                raise UserError(f"--out: {self.path} holds other files; give a new folder.")
            return None
        # Earlier versions did not keep what the encoder prepares.
        if {"prepares": settings["prepares"], **then} != json.loads(json.dumps(settings)):
            raise UserError(f"--out: {self.path} holds another fine-tuning; give another folder.")
        if overwrite:
            return None
        remedy = "Give --overwrite to train again."
        found = _read(self.path / _RESULT, remedy)
        if found is not None:
            checked(_Row, found, self.path / _RESULT, remedy)
        return found

    def begin(self, overwrite: bool, settings: Mapping[str, Any], labeled: Labeled) -> None:
        """Write what is trained, and on which images.

        Args:
            overwrite: Whether to remove what was trained before.
            settings: From `identified`.
            labeled: The images; where all are used they are not listed.

        Raises:
            UserError: if a file cannot be written.
        """
        if overwrite:
            for name in (_RESULT, _TRIED, LAST, PREVIOUS):
                (self.path / name).unlink(missing_ok=True)
        _write(self.path / FINE_TUNING_FILE, settings)
        names = labeled.names()
        text = f"# {labeled.what}: {len(names):,} images\n"
        if labeled.kind:
            text += "".join(f"{name}\n" for name in names)
        atomic_write(self.path / _LIST, text.encode("utf-8", errors="surrogateescape"))

    def save(self, facts: Mapping[str, Any], model: Classifier, classes: tuple[str, ...]) -> None:
        """Write the encoder, with its facts, and the classifier.

        Raises:
            UserError: if a file cannot be written.
        """
        RunFolder(self.path).write_encoder(model.backbone, facts)
        write_head(self.path, model, classes)

    def finish(self, row: Mapping[str, Any]) -> None:
        """Write the result, and remove the checkpoints.

        Raises:
            UserError: if the file cannot be written.
        """
        _write(self.path / _RESULT, row)
        for name in (LAST, PREVIOUS):
            (self.path / name).unlink(missing_ok=True)

    def tried(self) -> dict[str, float]:
        """Accuracies on held-out images by multiple of the rates, as far as they are measured."""
        remedy = "Remove it to try all rates again."
        found = _read(self.path / _TRIED, remedy)
        return {} if found is None else checked(_Tried, found, self.path / _TRIED, remedy)

    def add_tried(self, factor: float, accuracy: float) -> None:
        """Keep an accuracy on held-out images."""
        _write(self.path / _TRIED, {**self.tried(), f"{factor:g}": accuracy})


def train(
    finished: FinishedRun,
    backbone: nn.Module,
    labeled: Labeled,
    settings: FineTuneSettings,
    seed: int,
    work: WorkFolder | None,
    say: Say,
) -> Classifier:
    """Fine-tune a copy of a backbone.

    Args:
        finished: Says on which device, and how images are prepared.
        backbone: Weights at the start.
        labeled: The images.
        settings: How.
        seed: Of all random numbers.
        work: Where checkpoints are written after each epoch, and training goes on from them; None
            to write none.
        say: Prints a line after each epoch.

    Returns:
        The classifier in evaluation mode, on the device.

    Raises:
        UserError: if it diverges, or a checkpoint cannot be written.
    """
    machine = finished.machine
    generator = generator_for(seed, "finetune")
    model = Classifier(copy.deepcopy(backbone), labeled.classes, settings.head_std, generator).to(
        machine.device
    )
    order = batch_order(labeled.images, settings.batch_size, seed, smallest=2)
    batches = augmented_batches(
        finished, labeled.images, labeled.labels, settings.views, order, "finetune"
    )
    epochs = settings.epochs

    def told(epoch: int, loss: float) -> None:
        say(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {loss:.3f}")

    module = FineTuning(model, settings, batches, len(order), told, seed)
    trainer = _trainer(finished, epochs, work)
    start = None if work is None else _start(work, say)
    with quiet_lightning(), errors_of_users(trainer, finished.folder, Stopping()):
        trainer.fit(module, ckpt_path=start)
    return model.to(machine.device).eval()


def choose_settings(
    finished: FinishedRun,
    backbone: nn.Module,
    labeled: Labeled,
    settings: FineTuneSettings,
    seed: int,
    work: WorkFolder,
    say: Say,
) -> FineTuneSettings:
    """The settings with both rates times the factor that is best on held-out labeled images.

    Arguments are those of `train`. What was tried before an interruption is not tried again.

    Raises:
        UserError: if no class has two labeled images.
    """
    unseen = held_out(labeled.labels, generator_for(seed, "select"))
    fit, rest = labeled.some((~unseen).nonzero()[:, 0]), labeled.some(unseen.nonzero()[:, 0])

    def score(factor: float) -> float:
        known = work.tried().get(f"{factor:g}")
        if known is not None:
            return float(known)
        try:
            model = train(finished, backbone, fit, settings.times(factor), seed, None, silent)
            found = finished.features(model, rest.images)
            accuracy = float(
                (found.features.argmax(dim=1) == rest.labels[found.index]).double().mean()
            )
        except UserError as error:
            if "diverged" not in str(error):
                raise
            accuracy = -1.0
        lr, head_lr = settings.lr * factor, settings.head_lr * factor
        right = "diverged" if accuracy < 0 else f"{100 * accuracy:.1f}%"
        say(f"rates {lr:g} and {head_lr:g}: {right} of {len(rest.labels):,} held-out images")
        work.add_tried(factor, accuracy)
        return accuracy

    return settings.times(best(RATES, score)[0])


def untrained(finished: FinishedRun, seed: int) -> nn.Module:
    """The run's backbone with random weights, on the device."""
    facts, last = finished.encoder.facts, finished.machine.channels_last
    backbone, _ = build_encoder(finished.folder.encoder, facts, last, seed)
    if last:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone.to(finished.machine.device)


def _trainer(finished: FinishedRun, epochs: int, work: WorkFolder | None) -> lightning.Trainer:
    device = finished.machine.device
    save = [] if work is None else [
        ModelCheckpoint(
            work.path, LAST.removesuffix(".ckpt"), save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
    ]  # fmt: skip
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator=finished.machine.accelerator,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=finished.machine.precision,  # type: ignore[arg-type]
        callbacks=list(save),
        plugins=[AtomicCheckpoints()],
        logger=False,
        enable_checkpointing=work is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _start(work: WorkFolder, say: Say) -> Path | None:
    """The checkpoint to go on from."""
    path, content, damaged = latest_intact(work.path)
    for error in damaged:
        say(f"{error}.")
    if path is not None:
        say(f"continuing after epoch {content['finished_epochs']}")
    return path


def _read(path: Path, remedy: str) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is none.

    Raises:
        UserError: if it is damaged.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). {remedy}") from None
    except UserError as error:
        raise UserError(f"{error} {remedy}") from None
    return checked(dict[str, Any], content, path, remedy)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, json_bytes(text))
