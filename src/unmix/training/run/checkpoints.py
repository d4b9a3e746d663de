"""Checkpoint files: written beside and renamed, read without code, and checked before use."""

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
from unmix.files import atomic_path

__all__ = [
    "LAST",
    "PREVIOUS",
    "AtomicCheckpoints",
    "DamagedCheckpointError",
    "damage",
    "latest_whole",
    "set_aside",
]

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class DamagedCheckpointError(UserError):
    """A checkpoint whose bytes are not those that were written."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside and then renamed, and loaded without code.

    PyTorch's files are zip archives that hold a CRC-32 of every record, which `torch.load` does not
    look at. Here it is looked at before a file is used; `unzip -t` does the same. The `last.ckpt`
    that is replaced stays as `previous.ckpt`.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; if that fails, the previous one is still there.

        Raises:
            UserError: if the disk is full or not writable.
        """
        path = Path(path)
        with atomic_path(path) as beside:
            with beside.open("wb") as file:
                _write(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.exists():
                _keep_as_previous(path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in it can run code.

        Raises:
            UserError: if it cannot be read.
            DamagedCheckpointError: if its bytes are not those that were written.
        """
        try:
            reason = damage(Path(path))
            if reason is None:
                return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
            raise UserError(
                f"{path}: is not a checkpoint that can be read: {error.strerror}."
            ) from None
        # On damaged bytes PyTorch raises nearly anything, in words of its own.
        except Exception:
            reason = "it is damaged, or of another program"
        raise DamagedCheckpointError(f"{path}: is not a checkpoint that can be read: {reason}")


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, or None if they are those that were written.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except OSError:
        raise
    # Damaged headers can say anything: other compression, a password, lengths beyond the end.
    except Exception:
        return "it is damaged, or of another program"
    return None if record is None else f"it is damaged (the checksum of its {record} is wrong)"


def latest_whole(folder: Path) -> tuple[Path | None, dict[str, Any], list[DamagedCheckpointError]]:
    """The newest checkpoint of a folder that is whole: the last, the one before, those kept.

    Returns:
        Its path, its content, and what is wrong with those that are newer. Without a checkpoint
        that is whole the path is None.

    Raises:
        UserError: if one cannot be read although it may be whole.
    """
    damaged: list[DamagedCheckpointError] = []
    for path in _newest_first(folder):
        try:
            return path, AtomicCheckpoints().load_checkpoint(path), damaged
        except DamagedCheckpointError as error:
            damaged.append(error)
    return None, {}, damaged


def set_aside(folder: Path, whole: Path) -> None:
    """Rename the checkpoints that are newer than `whole`, which are damaged, to NAME.damaged."""
    for path in _newest_first(folder):
        if path == whole:
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
        # PyTorch's archive writer hides what the file said behind an error of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise OSError(str(error).splitlines()[0]) from error
    finally:
        torch.serialization.set_crc32_options(computed)


def _keep_as_previous(path: Path) -> None:
    """Give a checkpoint the name of the one before, while it keeps its own."""
    beside, previous = path.with_name(f".{PREVIOUS}.{os.getpid()}.tmp"), path.with_name(PREVIOUS)
    try:
        os.link(path, beside)
    except OSError:  # no links here: for a moment there is only the one before
        path.replace(previous)
        return
    try:
        beside.replace(previous)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
