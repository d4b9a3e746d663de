"""The run folder: the contract between commands."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from unmix.errors import UserError
from unmix.files import replacing, write_whole
from unmix.training.settings import GROUPS, Settings, field_names

__all__ = ["AtomicCheckpoints", "RunFolder"]

# What may differ when a run is resumed: it changes no number of the result's definition.
_FREE = {"run", *field_names("machine")} - {"precision"}


class RunFolder:
    """A run's files by name.

    Args:
        path: The folder; made when something is written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.results = self.path / "results.json"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.encoder = self.path / "encoder.safetensors"

    def settings(self) -> Settings:
        """The settings of the run that the folder holds.

        Raises:
            UserError: if the folder holds no run.
        """
        return Settings.of(self.words())

    def words(self) -> dict[str, Any]:
        """The flat words of `config.yaml`."""
        if not self.path.is_dir():
            raise UserError(f"{self.path}: there is no such run folder.")
        try:
            words = yaml.safe_load(self.config.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.path}: is not a run folder; it has no config.yaml.") from None
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{self.config}: cannot be read ({type(error).__name__}).") from None
        if not isinstance(words, dict):
            raise UserError(f"{self.config}: must hold lines of the form `setting: value`.")
        return words

    def write_settings(self, settings: Settings) -> None:
        """Write `config.yaml`."""
        names = ["run", "method", *list(GROUPS)[1:]]
        words = settings.flat()
        text = (
            "# Settings of this run. `unmix pretrain --config THIS_FILE --run OTHER` repeats it.\n"
        )
        text += f"# Groups: {', '.join(names)}.\n"
        text += yaml.safe_dump(words, sort_keys=False)
        write_whole(self.config, text.encode())

    def check_same(self, settings: Settings) -> None:
        """Check that the folder's run is the one of the settings.

        Raises:
            UserError: with the first setting that differs.
        """
        theirs, ours = self.words(), settings.flat()
        for name in ours:
            if name not in _FREE and theirs.get(name) != ours[name]:
                raise UserError(
                    f"--run: {self.path} holds another run: its {name} is {theirs.get(name)}, "
                    f"not {ours[name]}. Give another --run, or the same settings to resume."
                )

    def write_encoder(self, backbone: nn.Module, facts: Mapping[str, Any]) -> None:
        """Write the backbone alone, under its own parameter names, with how to build it."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()}
        metadata = {key: json.dumps(value) for key, value in facts.items()}
        with replacing(self.encoder) as beside:
            try:
                save_file(tensors, beside, metadata=metadata)
            except SafetensorError as error:
                raise OSError(str(error)) from error

    def old_metrics(self, step: int) -> list[dict[str, str]]:
        """The rows of `metrics.csv` up to a step, so that a resumed run does not lose them."""
        if not self.metrics.exists():
            return []
        with self.metrics.open(newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [
            row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) <= step
        ]
        return [{k: v for k, v in row.items() if k and v} for row in kept]


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside and then renamed, and loaded without code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; if that fails, the previous one is still there.

        Raises:
            UserError: if the disk is full or not writable.
        """
        with replacing(Path(path)) as beside, beside.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # PyTorch's archive writer reports a full disk so.
                raise OSError(str(error).splitlines()[0]) from error
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in it can run code.

        Raises:
            UserError: if it is damaged.
        """
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path}: is not a checkpoint that can be read ({reason}).") from None
