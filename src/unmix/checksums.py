"""A checksum in the metadata of a safetensors file; other programs read the file as usual."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

__all__ = ["CHECKSUM", "PLACEHOLDER", "checksum_differs", "with_checksum"]

CHECKSUM = "sha256"
# A JSON string, as all our metadata values are JSON. The digest is that of the file with the
# placeholder in it.
PLACEHOLDER = f'"{"0" * 64}"'
_ENTRY = re.compile(rb'"sha256":"\\"([0-9a-f]{64})\\""')
_CHUNK = 2**20
_MAX_HEADER = 100_000_000  # safetensors' own limit


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
