"""Images in WebDataset shards: tar files on a disk, or on a server or in a bucket by fsspec.

`locations.py` finds the shards, `remote.py` reads their bytes, `tar.py` finds the images in one,
`cache.py` keeps whole shards on disk, `store.py` joins these, and `images.py` is the image set.
"""

from __future__ import annotations

from unmix.data.streams.images import ShardImages
from unmix.data.streams.loading import NoTestShards, holds_shards, load_shards

__all__ = ["NoTestShards", "ShardImages", "holds_shards", "load_shards"]
