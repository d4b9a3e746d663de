"""Checkpoint files: written atomically, loaded with `weights_only`, checked before use."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from unmix.errors import UserError
from unmix.files import atomic_path, flush
from unmix.training.loop.saving import Saving

__all__ = [
    "LAST",
    "PREVIOUS",
    "AtomicCheckpoints",
    "DamagedCheckpointError",
    "damage",
    "latest_intact",
    "set_aside",
]

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class DamagedCheckpointError(UserError):
    """A checkpoint that is damaged."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, written atomically, and loaded with `weights_only`.

    PyTorch's files are zip archives with a CRC-32 of every record, which `torch.load` does not
    check. It is checked here before a file is used, as `unzip -t` does. The `last.ckpt` that is
    replaced is kept as `previous.ckpt`.

    Args:
        saving: What to do if a checkpoint cannot be written; None to raise.
    """

    def __init__(self, saving: Saving | None = None) -> None:
        super().__init__()
        self.saving = saving

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; if that fails, the previous one is kept.

        Raises:
            UserError: if the disk is full or the file cannot be written, at last; see `Saving`.
        """
        path = Path(path)
        if self.saving is None:
            self._save(checkpoint, path)
        else:
            self.saving.save(checkpoint["global_step"], lambda: self._save(checkpoint, path))

    def _save(self, checkpoint: dict[str, Any], path: Path) -> None:
        with atomic_path(path) as beside:
            with beside.open("wb") as file:
                _write(checkpoint, file)
            flush(beside)  # before there is another previous one
            if path.name == LAST and path.exists():
                _keep_as_previous(path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint, without running code in it.

        Raises:
            UserError: if it cannot be read.
            DamagedCheckpointError: if it is damaged.
        """
        try:
            reason = damage(Path(path))
            if reason is None:
                return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
            raise UserError(
                f"{path}: is not a checkpoint that can be read: {error.strerror}."
            ) from None
        # On damaged files PyTorch raises exceptions of many kinds.
        except Exception:
            reason = "it is damaged, or of another program"
        raise DamagedCheckpointError(f"{path}: is not a checkpoint that can be read: {reason}")


def damage(path: Path) -> str | None:
    """How a checkpoint file is damaged, or None if it is intact.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except OSError:
        raise
    # Damaged headers may claim another compression, a password, lengths beyond the end.
    except Exception:
        return "it is damaged, or of another program"
    return None if record is None else f"it is damaged (the checksum of its {record} is wrong)"


def latest_intact(folder: Path) -> tuple[Path | None, dict[str, Any], list[DamagedCheckpointError]]:
    """The newest intact checkpoint of a folder: the last, the previous one, those kept.

    Returns:
        Its path, its content, and the errors of newer ones. Without an intact checkpoint the path
        is None.

    Raises:
        UserError: if one cannot be read although it may be intact.
    """
    damaged: list[DamagedCheckpointError] = []
    for path in _newest_first(folder):
        try:
            return path, AtomicCheckpoints().load_checkpoint(path), damaged
        except DamagedCheckpointError as error:
            damaged.append(error)
    return None, {}, damaged


def set_aside(folder: Path, intact: Path) -> None:
    """Rename the damaged checkpoints, which are newer than `intact`, to NAME.damaged."""
    for path in _newest_first(folder):
        if path == intact:
            return
        path.replace(path.with_name(f"{path.name}.damaged"))


def _newest_first(folder: Path) -> Iterator[Path]:
    for name in (LAST, PREVIOUS):
        if (folder / name).exists():
            yield folder / name
    yield from sorted(folder.glob("epoch-*.ckpt"), reverse=True)


def _write(checkpoint: dict[str, Any], file: Any) -> None:
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        # PyTorch's archive writer hides the file's error behind one of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise OSError(str(error).splitlines()[0]) from error
    finally:
        torch.serialization.set_crc32_options(computed)


def _keep_as_previous(path: Path) -> None:
    """Make a checkpoint the previous one too, under its own name still."""
    beside, previous = path.with_name(f".{PREVIOUS}.{os.getpid()}.tmp"), path.with_name(PREVIOUS)
    try:
        os.link(path, beside)
    except OSError:  # no hard links here: for a moment there is only the previous one
        path.replace(previous)
        return
    try:
        beside.replace(previous)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
