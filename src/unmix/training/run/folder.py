"""The run folder, through which commands share a run."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from unmix.checksums import CHECKSUM, PLACEHOLDER, safetensors_bytes, with_checksum
from unmix.config import GROUPS, Settings, field_names
from unmix.config.saved import checked_settings, saved_settings
from unmix.data.registry import path_of
from unmix.display import counted
from unmix.errors import UserError, check_given, renamed
from unmix.files import as_path, atomic_path, atomic_write
from unmix.names import is_python, is_stream, shown
from unmix.training.run.checkpoints import LAST, PREVIOUS
from unmix.training.run.data_record import DATA_RECORD, same_place
from unmix.training.run.lock import check_owner
from unmix.weights import open_weights

__all__ = ["RunFolder", "begun_before"]

_RECIPES = "# Recipes: "
_IN_PYTHON = "# The images were given in Python"

# Settings that may differ when a run is resumed: the machine, which `resuming` says the effect of.
_FREE = {"run", "cache_dir", "cache_size", "manifest", *field_names("machine")}


# What is not known before a run starts.
_LATER = ("size", "range", "init_sha256", "teacher_sha256", "interleave")


class RunFolder:
    """The files of a run.

    Args:
        path: The folder; created when something is written.
        extend: Whether its run is gone on with beyond its end: until it is trained its settings are
            those of before; see `unmix.training.run.extending`.
    """

    def __init__(self, path: Path | str, extend: bool = False) -> None:
        check_given("run", path)
        self.path, self.extend = as_path(path), extend
        self.config = self.path / "config.yaml"
        self.data = self.path / DATA_RECORD
        self.metrics = self.path / "metrics.csv"
        self.skipped = self.path / "skipped.csv"
        self.logged = self.path / "logger.json"
        self.results = self.path / "results.json"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / LAST
        self.previous = self.checkpoints / PREVIOUS
        self.encoder = self.path / "encoder.safetensors"
        self.jobs = self.path / "jobs"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is any checkpoint, intact or not."""
        return any(self.checkpoints.glob("*.ckpt"))

    def way_on(self, saved: int | None, in_python: bool, sentence: bool = False) -> str:
        """How to continue a run that was stopped.

        Args:
            saved: The step of its last checkpoint, if it is known.
            in_python: Whether the images were given as Python objects.
            sentence: With a capital and a full stop.
        """
        step = "" if saved is None else f" from step {saved:,}"
        how = f"to go on{step}: unmix pretrain --run {shlex.quote(str(self.path))}"
        if not self.last.exists():
            how = "nothing was saved yet, so the same command starts from the beginning"
        elif in_python:
            how = f"the same call of pretrain goes on{step}"
        elif self.extend:  # which may not be written yet
            how = f"the same command goes on{step}"
        return f"{how[:1].upper()}{how[1:]}." if sentence else how

    def check_ours(self) -> None:
        """Check that a run that is being trained still has its folder.

        Raises:
            UserError: if the folder or its settings were removed, with an OSError as its cause;
                or if another process has the folder now.
        """
        if not self.config.exists():
            what = self.config if self.path.exists() else self.path
            gone = FileNotFoundError(errno.ENOENT, "it was removed while the run was trained")
            raise UserError(f"{what}: cannot be written ({gone.strerror}).") from gone
        check_owner(self.path)

    def settings(self) -> Settings:
        """Read the settings of the run.

        Raises:
            UserError: if the folder holds no run, or a setting is wrong; it names `config.yaml`.
        """
        return checked_settings(self.path)

    def words(self) -> dict[str, Any]:
        """The flat settings of `config.yaml`."""
        return saved_settings(self.path)

    def write_settings(self, settings: Settings, recipes: Sequence[str] = ()) -> None:
        """Write `config.yaml`.

        Args:
            settings: Settings of the run.
            recipes: Recipes and files they are based on; later ones override earlier ones.
        """
        chain = f"{_RECIPES}{' < '.join(map(shown, recipes))}.\n" if recipes else ""
        if is_python(settings.run.data):
            chain += f"{_IN_PYTHON}: unmix.pretrain(..., data=...) repeats it.\n"
        # The run's own location is not stored: a folder that was moved is the same run.
        self._write_words({**settings.flat(), "run": None}, chain)

    def move_data(self, data: str, data_dir: str | None) -> None:
        """Update the location of the run's data in `config.yaml`."""
        self.change(data=data, data_dir=data_dir)

    def move_teacher(self, teacher: str) -> None:
        """Update the place of the teacher's weights in `config.yaml`, if it is another one."""
        if self.words().get("teacher") != teacher:
            self.change(teacher=teacher)

    def _write_words(self, words: Mapping[str, Any], chain: str) -> None:
        names = ["run", "method", *list(GROUPS)[1:]]
        text = (
            "# Settings of this run. `unmix pretrain --config THIS_FILE --run OTHER` repeats it.\n"
        )
        text += f"# Groups: {', '.join(names)}.\n"
        text += chain + yaml.safe_dump(dict(words), sort_keys=False)
        atomic_write(self.config, text.encode())

    def has_run(self) -> bool:
        """Whether the folder holds a run; False if it is empty or missing.

        Raises:
            UserError: if it is a file, or holds other files.
        """
        if self.config.exists():
            return True
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--run: {self.path} is a file; give a folder.")
        there = visible(self.path) if self.path.exists() else []
        # A job that was submitted leaves its files before the run begins.
        others = sorted(file.name for file in there if file != self.jobs)
        if others:
            raise UserError(
                f"--run: {self.path} holds {others[0]} but no config.yaml, so it is not a run "
                "folder; give a new or an empty one."
            )
        return False

    def discard(self) -> None:
        """Remove the files of a run without a checkpoint, and the folder if it is empty then."""
        self.config.unlink(missing_ok=True)
        self.data.unlink(missing_ok=True)
        self.metrics.unlink(missing_ok=True)
        self.skipped.unlink(missing_ok=True)
        self.logged.unlink(missing_ok=True)
        (self.path / "mlflow.db").unlink(missing_ok=True)
        for name in ("tensorboard", "wandb", "mlartifacts"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for folder in (self.checkpoints, self.path):
            with suppress(OSError):
                folder.rmdir()

    def check_same(self, words: Mapping[str, Any], settings: Settings | None = None) -> None:
        """Check that the run in the folder has these settings, or is extended to them.

        Args:
            words: Flat settings. A size, range or digest of None is not known yet and matches any.
                So do other paths to the data if the run has a fingerprint of it.
            settings: Those of the run, if they were read before.

        Raises:
            UserError: with the first setting that differs.
        """
        theirs = (settings or self.settings()).flat()
        if self.extend and [*words["restarts"]] == [*theirs["restarts"], theirs["epochs"]]:
            # The first of several processes may write the new ones before another is here.
            theirs |= {name: words[name] for name in ("epochs", "restarts")}
        for name, ours in words.items():
            pair = (ours, theirs.get(name))
            unknown = name in _LATER and None in pair
            if name == "epochs" and ours != pair[1] and self.encoder.exists():
                raise UserError(self._more_epochs(ours))
            if name in ("data", "data_dir") and self._may_be_moved(name, *pair):
                continue
            if name == "teacher" and ours != pair[1] and self._has_moved(ours):
                continue
            if name not in _FREE and not unknown and pair[0] != pair[1]:
                raise UserError(
                    f"--run: {self.path} holds another run: its {name} is {pair[1]}, "
                    f"not {ours}. Give another --run, or the same settings to resume."
                )

    def _has_moved(self, teacher: str | None) -> bool:
        """Whether the weights of the run's teacher are in another place now."""
        digest = self.settings().teacher.get("teacher_sha256")
        if teacher is None or digest is None:
            return False
        with renamed({"init": "teacher"}):
            return open_weights(teacher).sha256 == digest

    def _more_epochs(self, ours: Any) -> str:
        """Advice where a run that has ended is given another number of epochs."""
        settings = self.settings()
        theirs, chosen = settings.run.epochs, settings.optimizer
        run, config = shlex.quote(str(self.path)), shlex.quote(str(self.config))
        rate = f", which end at a learning rate of {chosen.final_lr:g}"
        more = counted(ours - theirs, "epoch")
        again = f"to start its schedules again for {more} more: unmix pretrain "
        again += f"--run {run} --epochs {ours} --extend; "
        return (
            f"--epochs: {self.path} has ended after its {counted(theirs, 'epoch')}, for which "
            f"its schedules were made{rate if chosen.schedule == 'cosine' else ''}. "
            f"{again[:1].upper() + again[1:] if ours > theirs else ''}"
            f"{'for' if ours > theirs else 'For'} a new run of {ours} with its settings: unmix "
            f"pretrain --config {config} --epochs {ours} --run OTHER; for its results leave "
            "--epochs out."
        )

    def change(self, **changes: Any) -> None:
        """Change settings in `config.yaml`."""
        self._write_words({**self.words(), **changes}, self._chain())

    def _chain(self) -> str:
        """The lines of `config.yaml` that say where the settings are from."""
        lines = self.config.read_text(encoding="utf-8").splitlines(keepends=True)
        return "".join(line for line in lines if line.startswith((_RECIPES, _IN_PYTHON)))

    def _may_be_moved(self, name: str, ours: Any, theirs: Any) -> bool:
        """Whether a path to the data is the run's, or may be after its data was moved."""
        if same_place(ours, theirs):
            return True
        paths = name == "data_dir" or all(
            path_of(str(each)) or is_stream(str(each)) for each in (ours, theirs)
        )
        return paths and self.data.exists()

    def write_encoder(self, backbone: nn.Module, facts: Mapping[str, Any]) -> None:
        """Write the backbone alone, under its own parameter names, with the facts to rebuild it.

        The file has a checksum, which `load_encoder` verifies.
        """
        tensors = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
        metadata = {
            CHECKSUM: PLACEHOLDER,
            **{key: json.dumps(value) for key, value in facts.items()},
        }
        with atomic_path(self.encoder) as beside:
            # Not save_file: its files are readable by their owner alone.
            beside.write_bytes(with_checksum(safetensors_bytes(tensors, metadata)))


def begun_before(settings: Settings) -> Settings:
    """The same settings, in the folder of the very same run if version 0.1.0 began it.

    Its default folder did not have the seed in its name.
    """
    old = Path(str(settings.folder).removesuffix(f"-seed{settings.run.seed}"))
    if (
        settings.run.run is not None
        or settings.folder.exists()
        or not (old / "config.yaml").exists()
    ):
        return settings
    with suppress(UserError):  # another run is there, and this one is new
        RunFolder(old).check_same({**settings.flat(), "run": None})
        return settings.with_changes(run=str(old))
    return settings


def visible(folder: Path) -> list[Path]:
    """Names of the files and folders in a folder, without hidden ones."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"--run: {folder} cannot be read ({error.strerror}).") from None
