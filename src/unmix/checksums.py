"""The bytes of a safetensors file: always in the same order, and with a checksum if wanted.

The checksum is in the metadata; other programs read the file as usual. `weights_digest` says which
weights they are, whatever file they are in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CHECKSUM",
    "PLACEHOLDER",
    "checksum_differs",
    "safetensors_bytes",
    "weight_bytes",
    "weights_digest",
    "with_checksum",
]

CHECKSUM = "sha256"
# A JSON string, as all our metadata values are JSON. The digest is that of the file with the
# placeholder in it.
PLACEHOLDER = f'"{"0" * 64}"'
_ENTRY = re.compile(rb'"sha256":"\\"([0-9a-f]{64})\\""')
_CHUNK = 2**20
_MAX_HEADER = 100_000_000  # safetensors' own limit


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The content of a safetensors file, the same bytes for the same tensors and metadata.

    The library writes the metadata in an order that differs from process to process.
    """
    from safetensors.torch import save  # only here: reading needs no PyTorch

    content = save(dict(tensors), metadata=dict(metadata))
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    ordered += b" " * (-len(ordered) % 8)  # tensors begin at a multiple of 8
    return len(ordered).to_bytes(8, "little") + ordered + content[8 + length :]


def with_checksum(content: bytes) -> bytes:
    """Replace the placeholder in a file's content, in `CHECKSUM: PLACEHOLDER`, by its digest."""
    entry = _ENTRY.search(content)
    assert entry is not None
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: entry.start(1)] + digest + content[entry.end(1) :]


def checksum_differs(path: Path) -> bool:
    """Whether a file has a checksum that does not match its content.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _MAX_HEADER))
        entry = _ENTRY.search(header)
        if entry is None:
            return False
        plain = header[: entry.start(1)] + b"0" * 64 + header[entry.end(1) :]
        digest = hashlib.sha256(length.to_bytes(8, "little") + plain)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest().encode() != entry[1]


def weight_bytes(weights: Mapping[str, Tensor]) -> Iterator[bytes]:
    """What identifies weights: their names and bytes, one tensor after the other."""
    import torch  # only here, as above

    for name, value in weights.items():
        flat = value.detach().cpu().contiguous().reshape(-1)
        yield name.encode() + flat.view(torch.uint8).numpy().tobytes()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Digest of weights."""
    digest = hashlib.blake2b()
    for part in weight_bytes(weights):
        digest.update(part)
    return digest.hexdigest()
