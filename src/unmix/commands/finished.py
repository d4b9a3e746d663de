"""A finished run, opened for evaluation: its encoder, its images, and the device."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmix.commands.checkpoints import load_checkpoint_encoder, load_method
from unmix.commands.columns import with_columns
from unmix.commands.evaluated import Splits, Subject, placed
from unmix.commands.rows import add_row, has_row
from unmix.config import MachineSettings, Settings
from unmix.data import ImageSet, StreamedImages
from unmix.data.columns import Columns
from unmix.data.fingerprint import Fingerprint, digest_of
from unmix.data.tables import is_list
from unmix.display import counted
from unmix.errors import UserError, check_choice
from unmix.evaluation import LabeledFeatures, Measurement, split_features
from unmix.evaluation.cmc_layers import layer_features
from unmix.evaluation.encoder import (
    ENCODER_FILE,
    LoadedEncoder,
    encoder_file,
    is_of_encoder,
    load_encoder,
    read_encoder,
)
from unmix.hardware.devices import Machine, choose_machine
from unmix.hardware.threads import CoreMeter, choose_threads, threads_in_words, using_threads
from unmix.names import NO_DATA, is_stream
from unmix.per_image import PerImage
from unmix.results import DamagedResultsError, described, load_results
from unmix.training.console import Estimate
from unmix.training.run.data_record import (
    DataRecord,
    check_there,
    located_data,
    same_place,
)
from unmix.training.run.extending import is_extending
from unmix.training.run.folder import RunFolder
from unmix.training.run.parts import load_split

__all__ = ["FinishedRun", "check_features", "line_of", "say_skipped"]

Say = Callable[[str], None]

_UNRECORDED = (
    "note: this run is of a version that stored no fingerprint of its data, which is "
    "assumed to be unchanged"
)


@dataclass(frozen=True)
class FinishedRun:
    """A run that is complete, or an encoder file alone.

    Attributes:
        folder: The run folder; of an encoder file alone its folder.
        settings: Its settings.
        machine: Where to compute.
        encoder: The exported encoder, on the machine's device.
        record: Fingerprint of the run's data; None for a run of an earlier version.
        alone: Whether there is an encoder file and no run.
    """

    folder: RunFolder
    settings: Settings
    machine: Machine
    encoder: LoadedEncoder
    record: DataRecord | None
    alone: bool = False

    @classmethod
    def open(
        cls, run: Path | str, device: str = "auto", checkpoint: str | None = None
    ) -> FinishedRun:
        """Open a run folder.

        Args:
            run: The folder, or an encoder file in it or elsewhere, also within the folder of a
                fine-tuning or of `unmix export --to hub`.
            device: auto, cpu, cuda or mps. The precision is that of the run, or of the fine-tuning,
                if the device supports it, so that an evaluation can be repeated.
            checkpoint: Name of a checkpoint, such as "epoch-0010" or "last", whose encoder is
                taken, also of a run that is not complete; None for the end.

        Raises:
            UserError: if the folder, device or checkpoint does not exist, or the run is not
                complete and no checkpoint is given.
        """
        path = RunFolder(run).path
        if path.suffix == ".safetensors" and path.is_file():
            if not (path.name == ENCODER_FILE and RunFolder(path.parent).config.exists()):
                return cls._of_file(path, device, checkpoint)
            run = path.parent
        folder = RunFolder(run)
        if not folder.config.exists() and is_of_encoder(path):
            return cls._of_file(encoder_file(path), device, checkpoint)
        settings = folder.settings()
        if checkpoint is None and not folder.encoder.exists():
            read_encoder(folder.encoder)  # says why
        with suppress(DamagedResultsError):  # a new one is written by the next evaluation
            if checkpoint is None and is_extending(settings, load_results(folder.path)):
                raise UserError(
                    f"{folder.path}: is being extended to "
                    f"{counted(settings.run.epochs, 'epoch')}; to finish it: unmix pretrain "
                    f"--run {shlex.quote(str(folder.path))}"
                )
        machine = _machine(device, settings.machine.precision)
        if checkpoint is not None:
            encoder = load_checkpoint_encoder(folder, checkpoint, machine)
            return cls(folder, settings, machine, encoder, DataRecord.read(folder.path))
        encoder = load_encoder(
            folder.path, device=machine.device, channels_last=machine.channels_last
        )
        words = settings.flat()
        for name in ("method", "backbone", "width", "size"):
            if encoder.facts[name] != words[name]:
                raise UserError(
                    f"{folder.encoder}: is of another run: its {name} is {encoder.facts[name]}, "
                    f"not {words[name]} as {folder.config.name} says."
                )
        return cls(folder, settings, machine, encoder, DataRecord.read(folder.path))

    @classmethod
    def _of_file(cls, path: Path, device: str, checkpoint: str | None) -> FinishedRun:
        if checkpoint is not None:
            raise UserError(
                f"{path} is an encoder file, which has no {checkpoint}; give the run folder.",
                parameter="checkpoint",
            )
        machine = _machine(device)
        encoder = load_encoder(path, device=machine.device, channels_last=machine.channels_last)
        tuned = encoder.facts.get("fine_tuned")
        if isinstance(tuned, dict) and tuned.get("precision") in ("32", "bf16", "16"):
            machine = _machine(device, tuned["precision"])  # in which its accuracy was measured
        known = ("method", "backbone", "width", "stem", "size")
        limits = {} if encoder.range is None else {"range": list(encoder.range)}
        settings = Settings.of({**{name: encoder.facts[name] for name in known}, **limits})
        return cls(RunFolder(path.parent), settings, machine, encoder, None, alone=True)

    def keep(
        self,
        row: Mapping[str, Any],
        measured: Measurement,
        splits: Splits,
        *,
        main: bool,
        say: Say,
    ) -> None:
        """Put a row into `results.json`; an encoder file alone has none.

        Args:
            row: The row of `measured`, and what else is to be said of it.
            measured: Says which test images were predicted correctly.
            splits: The images.
            main: As in `add_row`.
            say: Prints a line.

        Raises:
            NotSavedError: if the file cannot be written.
        """
        if self.alone:
            say("the encoder file belongs to no run folder, so this is not saved")
        else:
            predictions = PerImage(
                row, digest_of(splits.test, measured.index), measured.correct.numpy(),
                splits.train_digest,
            )  # fmt: skip
            add_row(self.folder, row, main=main, say=say, images=predictions)

    def keep_again(self, row: Mapping[str, Any], *, main: bool, say: Say) -> None:
        """Put a row that was measured before into `results.json`, if it is not there any more.

        Raises:
            NotSavedError: if the file cannot be written.
        """
        if not self.alone and not has_row(self.folder, row):
            add_row(self.folder, row, main=main, say=say)

    def splits(
        self,
        what: str,
        data: str | None,
        data_dir: str | None,
        train_folder: str | None = None,
        test_folder: str | None = None,
        columns: Columns | None = None,
    ) -> Splits:
        """Load the labeled training images and the test images.

        Args:
            what: What needs the classes, for the message.
            data: Another data set than the pretraining's, or the present location of that.
            data_dir: Folder of its files; by default as in the pretraining.
            train_folder: Folder of the training images within it; by default as in the pretraining,
                or found by the usual names.
            test_folder: Likewise the images to evaluate on.
            columns: Columns of a list or table; by default as in the pretraining, or found.

        Raises:
            UserError: if the data cannot be read or has no classes, or no other data is given and
                the pretraining's has changed.
        """
        own = self.settings.run
        self._check_known(data)
        elsewhere = self.alone or (data is not None and not same_place(data, own.data))
        name = own.data if data is None else located_data(data)
        folders = {"train_folder": train_folder, "test_folder": test_folder}
        chosen, parts = placed(own, name, data_dir, folders, columns or Columns(), elsewhere)
        seen: dict[str, Fingerprint] = {}
        chosen, other = with_columns(chosen, columns or Columns(), elsewhere)
        train = load_split(chosen, "train", seen, elsewhere=other)
        if train.labels is None or train.classes is None:
            how = "the images of each class in a folder of their own"
            if not is_stream(name) and is_list(Path(name)):
                how = "a label for each image of the list"
            raise UserError(
                f"--data: {name} has no classes, and {what} needs them: {how}. Or give another "
                "--data."
            )
        test = load_split(chosen, "test", seen, elsewhere=other)
        transfer = name if self._is_other(seen, data, elsewhere) else None
        if transfer is None and own.limit is not None:
            train = train.evenly(own.limit)
        note = _UNRECORDED if self.record is None and transfer is None else None
        if transfer is not None and not elsewhere and self.record is not None:
            note = f"note: {self.record.difference(seen)}; it is evaluated as other data (transfer)"
        assert train.labels is not None
        assert train.classes is not None
        return Splits(train, test, train.labels, train.classes, transfer, note, parts)

    def _check_known(self, data: str | None) -> None:
        """Check that data is given, or that of the run is known and there.

        Raises:
            UserError: if not.
        """
        own = self.settings.run
        if data is not None:
            return
        if self.alone:
            what_for = "--data: an encoder file does not say what it was trained on"
            raise UserError(f"{what_for}; give the data to evaluate it on.")
        if own.data == NO_DATA:
            raise UserError(
                f"--data: {self.folder.path} was imported, and its data is unknown; give the data "
                "to evaluate it on."
            )
        check_there(own.data)

    def _is_other(self, seen: Mapping[str, Fingerprint], data: str | None, elsewhere: bool) -> bool:
        """Whether data differs from the run's own."""
        if self.record is None:
            return elsewhere
        if data is None:
            self.check_own(seen)
            return False
        # The same data may be in another place, and other data in the same place.
        unknown = not set(seen) <= set(self.record.splits)
        return self.record.difference(seen) is not None or (elsewhere and unknown)

    def check_own(self, seen: Mapping[str, Fingerprint]) -> None:
        """Check that data is what the run was trained on.

        Raises:
            UserError: if not.
        """
        if self.record is None or (clause := self.record.difference(seen)) is None:
            return
        own = self.settings.run
        if own.data_dir is not None:
            raise UserError(
                f"--data_dir: {clause}; give --data_dir with the folder that holds the run's "
                f"images, or --data {own.data} to evaluate on these as other data (transfer)."
            )
        raise UserError(
            f"--data: {clause}; give --data with the folder that holds the run's images, or "
            f"--data {own.data} to evaluate on these as other data (transfer)."
        )

    def subject(
        self, features: str = "backbone", checkpoint: str | None = None, layer: str | None = None
    ) -> Subject:
        """Choose the encoder that is evaluated.

        Args:
            features: "backbone" or "projector".
            checkpoint: Name of a kept checkpoint, such as "epoch-0010"; None for the end.
            layer: Layer of the backbone; None for its pooled features.

        Raises:
            UserError: if the checkpoint is missing, damaged or of another run, or there is no such
                layer.
        """
        epochs = None if self.alone else self.settings.run.epochs
        if features == "backbone" and checkpoint is None:
            if layer is None:
                return Subject(self.encoder.features, epochs)
            at = layer_features(self.encoder.backbone, layer, self.encoder.views.size)
            return Subject(at, epochs, layer=layer)
        if self.alone:
            raise UserError(
                f"--features: {features} features need the run's checkpoints, which an encoder "
                "file does not have; give the run folder, or --features backbone."
            )
        method = load_method(self.folder.path, checkpoint or "last").to(self.machine.device)
        if self.machine.channels_last:
            method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        epoch = int(checkpoint.rpartition("-")[2]) if checkpoint else epochs
        if layer is not None:
            at = layer_features(method.backbone, layer, self.encoder.views.size)
            return Subject(at, epoch, layer=layer)
        encode = method.features if features == "backbone" else method.projections
        return Subject(encode, epoch, features)

    def features(
        self, encode: Callable[[Tensor], Tensor], images: ImageSet, say: Say | None = None
    ) -> LabeledFeatures:
        """Encode a split, prepared for the exported encoder; `say` is called if it takes long."""
        views = self.encoder.views
        return split_features(
            encode, images, views.plain, views.size,
            device=self.machine.device, dtype=self.machine.autocast, workers=self.machine.workers,
            progress=None if say is None else Estimate(f"{images.split} split", "images", say),
        )  # fmt: skip

    @contextmanager
    def computing(self, threads: int | None, cores: CoreMeter, say: Say) -> Iterator[None]:
        """Set the number of threads within the block, and print encoder, device and threads.

        Args:
            threads: The user's choice, or None for the number of free cores.
            cores: Measures the free cores.
            say: Prints a line.
        """
        on_cpu = self.machine.device.type == "cpu"
        free = cores.free() if on_cpu and threads is None else None
        count = choose_threads(threads, free)
        facts = self.encoder.facts
        say(
            f"encoder: {facts['backbone']}, width {facts['width']:g}   device: "
            f"{self.machine.device.type}, {self.machine.precision}"
            f"{', ' + threads_in_words(count, free) if on_cpu else ''}"
        )
        with using_threads(count):
            yield


def _machine(device: str, precision: str = "auto") -> Machine:
    """Where to compute, in a precision if the device supports it."""
    machine = choose_machine(MachineSettings(device=device))
    if str(precision) == "16" and machine.device.type == "cpu":
        return machine
    return choose_machine(MachineSettings(device=machine.device.type, precision=str(precision)))


def check_features(features: str, layer: str | None) -> None:
    """Check which features are wanted.

    Raises:
        UserError: if they are unknown, or a layer of the projector is wanted.
    """
    check_choice("features", features, ("backbone", "projector"))
    if layer is not None and features == "projector":
        raise UserError(
            f"--layer: {layer} is a layer of the backbone; leave out --features projector."
        )


def line_of(row: Mapping[str, Any]) -> str:
    """A row of `results.json` as a line."""
    epoch = f", epoch {row['epoch']}" if "epoch" in row else ""
    top5 = "" if row.get("top5") is None else f"  top-5 {row['top5']:.1f}%"
    each = row.get("mean_per_class")
    mean = "" if each is None else f"  mean per class {each:.1f}%"
    return f"{described(row)}{epoch}: top-1 {row['top1']:.1f}%{top5}{mean}"


def say_skipped(say: Say, *sets: ImageSet) -> None:
    """Print how many files of the image sets could not be read, if any."""
    for images in sets:
        if isinstance(images, StreamedImages) and (line := images.skipped.line()):
            say(line)
