"""Reading checkpoint files of any origin without running code in them."""

from __future__ import annotations

import hashlib
import re
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unmix.checksums import checksum_differs
from unmix.display import memory
from unmix.errors import UserError
from unmix.files import as_path, read_json
from unmix.names import shown

__all__ = ["Checkpoint", "read_checkpoint", "sha256_of"]

_CHUNK = 2**20
_HF_FILES = ("model.safetensors", "pytorch_model.bin")
_HF_CONFIGS = ("config.json", "preprocessor_config.json")

# What a file of another kind begins with, why it cannot be read, and the way out.
_OTHER_FILES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a pointer of Git LFS, and not the file itself; fetch that "
     "with git lfs pull, or download it from the repository's page"),
    (b"<", "is a web page, and not weights; the download was answered by an error or a login "
     "page: download it again"),
    (b"\x1f\x8b", "is compressed by gzip; gunzip it first"),
    (b"BZh", "is compressed by bzip2; bunzip2 it first"),
    (b"\xfd7zXZ", "is compressed by xz; unxz it first"),
    (b"\x89HDF", "is an HDF5 file, as of Keras; save it as a PyTorch or safetensors file"),
    (b"{", "is JSON; give the file of the weights that belongs to it"),
    (b"\x93NUMPY", "is a NumPy array; save the weights by name, as a safetensors file"),
)  # fmt: skip

# Modules whose objects lie beside the weights in well-known checkpoints: settings, paths, NumPy
# scalars. None of them is imported: an inert object takes the place of each.
_SETTINGS = (
    "argparse", "omegaconf", "pathlib", "numpy", "collections", "typing", "datetime", "enum",
    "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "mmengine", "mmcv",
    "vissl", "classy_vision", "hydra", "yacs", "fvcore", "iopath", "easydict", "addict",
)  # fmt: skip
_MOST_SETTINGS = 64
_NOT_ALLOWED = re.compile(r"GLOBAL ([\w.]+)")
_LONGEST_HEADER = 100_000_000  # safetensors' own limit


class _Inert:
    """Stands for an object of the settings in a checkpoint; takes and does anything, to no effect.

    Its subclasses are registered under the objects' names with PyTorch's `weights_only` reader.
    """

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights.

    Attributes:
        path: The file.
        content: What it holds: tensors by name, or nested mappings that hold such.
        metadata: Of a safetensors file.
        configs: JSON files of Hugging Face beside it, by name.
    """

    path: Path
    content: Mapping[Any, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint of PyTorch or safetensors; code in it is never run.

    Args:
        path: The file, or a folder of Hugging Face with `model.safetensors`.

    Raises:
        UserError: if it does not exist, is damaged or of another kind, or holds objects that only
            running their code could load; with the reason and the way out.
    """
    path = _file(as_path(path))
    try:
        with path.open("rb") as file:
            start = file.read(512)
        _check_kind(path, start)
        if path.suffix == ".safetensors" or _is_safetensors(start):
            content, metadata = _read_safetensors(path)
        else:
            _check_archive(path)
            content, metadata = _read_torch(path), {}
    except OSError as error:
        raise _error(path, f"cannot be read ({error.strerror or error})") from None
    if not isinstance(content, Mapping):
        raise _error(
            path, f"holds a {type(content).__name__}, not tensors by name; save a state_dict"
        )
    return Checkpoint(path, content, metadata, _configs(path.parent))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _error(path: Path, reason: str) -> UserError:
    return UserError(f"{shown(path)} {reason}.", parameter="init")


def _file(path: Path) -> Path:
    """The file itself, where a folder of Hugging Face is given.

    Raises:
        UserError: if there is none.
    """
    if path.is_dir():
        found = next((path / name for name in _HF_FILES if (path / name).is_file()), None)
        if found is not None:
            return found
        parts = sorted(path.glob("*.safetensors.index.json"))
        if parts:
            raise _error(path, "holds weights in several parts; save them as one file first")
        raise _error(
            path, "is neither a run folder nor one of Hugging Face with model.safetensors; give "
            "the file of the weights"
        )  # fmt: skip
    if not path.exists():
        raise _error(path, "does not exist")
    return path


def _configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The JSON files of Hugging Face in a folder; those that cannot be read are left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in _HF_CONFIGS:
        try:
            value = read_json(folder / name)
        except (OSError, ValueError):
            continue
        if isinstance(value, Mapping):
            found[name] = value
    return found


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins as a safetensors file: the length of a JSON object, and the object."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def _check_kind(path: Path, start: bytes) -> None:
    """Check that a file is not one of another kind, by how it begins."""
    if not start:
        raise _error(path, "is empty; download it again")
    if _is_safetensors(start):
        return
    for begins, why in _OTHER_FILES:
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(begins):
            raise _error(path, why)
    if start[257:262] == b"ustar":
        raise _error(path, "is a tar archive; unpack it, and give the file of the weights")


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if checksum_differs(path):
        raise _error(path, "is damaged (its checksum is wrong); copy it again")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _error(
            path, f"is truncated or not a safetensors file ({reason}); download it again"
        ) from None


def _check_archive(path: Path) -> None:
    """Check a zip archive of PyTorch: what it would take in memory, and that it is complete."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise _error(path, "is truncated; download it again")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise _error(path, "is damaged; download it again") from None
    size, whole = path.stat().st_size, sum(record.file_size for record in records)
    if whole > size + _CHUNK:
        raise _error(
            path, f"would take {memory(whole)}, and has {memory(size)}: "
            "PyTorch writes no such files, so it is not loaded"
        )  # fmt: skip
    names = [record.filename for record in records]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise _error(
            path, "is a TorchScript program, which only running it could open; save the "
            "state_dict() of the module instead"
        )  # fmt: skip
    if not any(name.endswith("data.pkl") for name in names):
        if names and all(name.endswith(".npy") for name in names):
            raise _error(
                path, "is a NumPy archive, as of JAX; take the version of these weights for "
                "PyTorch, such as timm's"
            )  # fmt: skip
        raise _error(path, "is a zip archive of something else; give a file of torch.save")


def _read_torch(path: Path) -> Any:
    """Load a file of `torch.save` by `weights_only`; known settings beside the weights are inert.

    Raises:
        UserError: if it holds anything else, or is damaged.
    """
    names: list[str] = []
    while True:
        inert: list[Any] = [(type(name, (_Inert,), {}), name) for name in names]
        try:
            with torch.serialization.safe_globals(inert):
                return torch.load(path, map_location="cpu", weights_only=True)
        except (PermissionError, IsADirectoryError):
            raise
        # Damaged files give errors of many kinds.
        except Exception as error:
            found = _NOT_ALLOWED.search(str(error))
            if found is None:
                raise _unreadable(path, error) from None
            name = found[1]
            if name.split(".")[0] not in _SETTINGS or name in names or len(names) > _MOST_SETTINGS:
                raise _holds_code(path, name) from None
            names.append(name)


def _holds_code(path: Path, name: str) -> UserError:
    save = (
        f"import torch; m = torch.load({str(path)!r}, weights_only=False); "
        'torch.save(getattr(m, "state_dict", lambda: m["state_dict"])(), "weights.pth")'
    )
    return _error(
        path, f"holds Python objects ({name}), and only running their code could load them, so it "
        f"is not loaded. If you trust its author: python -c {shlex.quote(save)}, and give "
        "weights.pth"
    )  # fmt: skip


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return _error(path, "needs more memory than there is")
    return _error(
        path, "is truncated, or not a file of PyTorch or safetensors; download it again, and "
        "compare its size with the one that is published"
    )  # fmt: skip
