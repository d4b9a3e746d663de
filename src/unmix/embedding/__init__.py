"""Features of many images in a file: encoded chunk by chunk, resumable, in bounded memory."""

from unmix.embedding.chunks import Chunk, Chunks
from unmix.embedding.encoding import encode_chunks
from unmix.embedding.formats import FORMATS, Format, assemble, format_of
from unmix.embedding.names import NamedSet

__all__ = [
    "FORMATS",
    "Chunk",
    "Chunks",
    "Format",
    "NamedSet",
    "assemble",
    "encode_chunks",
    "format_of",
]
