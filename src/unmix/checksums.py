"""A checksum within a safetensors file, which other programs read as any other metadata."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

__all__ = ["CHECKSUM", "PLACE", "stamped", "wrong_checksum"]

CHECKSUM = "sha256"
# As JSON's text of a text, for all metadata of ours are JSON; replaced by the digest of the file
# in which it stands.
PLACE = f'"{"0" * 64}"'
_FOUND = re.compile(rb'"sha256":"\\"([0-9a-f]{64})\\""')
_CHUNK = 2**20
_LONGEST_HEADER = 100_000_000  # safetensors' own bound


def stamped(content: bytes) -> bytes:
    """The content of a file whose metadata has `CHECKSUM: PLACE`, with the digest in that place."""
    found = _FOUND.search(content)
    assert found is not None
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: found.start(1)] + digest + content[found.end(1) :]


def wrong_checksum(path: Path) -> bool:
    """Whether a file says another checksum than it has; a file that says none is not wrong.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _LONGEST_HEADER))
        found = _FOUND.search(header)
        if found is None:
            return False
        plain = header[: found.start(1)] + b"0" * 64 + header[found.end(1) :]
        digest = hashlib.sha256(length.to_bytes(8, "little") + plain)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest().encode() != found[1]
