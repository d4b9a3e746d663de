"""Features of many images in a file: encoded chunk by chunk, resumable, in bounded memory."""

from unmix.embedding.chunks import Chunk, Chunks
from unmix.embedding.encoding import encode_chunks
from unmix.embedding.formats import FORMATS, assemble, format_of
from unmix.embedding.names import NamedSet

__all__ = ["FORMATS", "Chunk", "Chunks", "NamedSet", "assemble", "encode_chunks", "format_of"]
