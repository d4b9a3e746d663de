"""Settings of the data that do nothing for the data at hand."""

from __future__ import annotations

from unmix.config import RunSettings
from unmix.data import ImageSet, StreamedImages
from unmix.data.folder import NOTHING_TO_SCALE
from unmix.data.registry import DATA_SETS
from unmix.data.statistics import estimate_range
from unmix.data.streams import ShardImages
from unmix.names import shown

__all__ = ["notes_on_vain"]

_SAMPLE = 32


def notes_on_vain(run: RunSettings, images: ImageSet) -> tuple[str, ...]:
    """A note on each setting that was given and does nothing.

    They are no mistakes where one recipe, or one study, is for data of several kinds.

    Args:
        run: The settings.
        images: The training images, as they were loaded.
    """
    lines = []
    shards = isinstance(images, ShardImages)
    given = {
        "interleave": run.interleave is not None,
        "shuffle_buffer": run.shuffle_buffer != RunSettings.shuffle_buffer,
    }
    names = [f"--{name}" for name, is_given in given.items() if is_given]
    if names and not shards:
        lines.append(f"note: {', '.join(names)}: for images in shards, which these are not")
    known = DATA_SETS.get(run.data)
    if run.download and (known is None or not known.downloads):
        lines.append(f"note: --download: {shown(run.data)} is nothing that it fetches")
    if run.limits is not None and not shards and NOTHING_TO_SCALE not in images.notes:
        # Of shards each image may be a request.
        deep = isinstance(images, StreamedImages) and estimate_range(images, _SAMPLE)[0] is not None
        lines += [] if deep else [NOTHING_TO_SCALE]
    return tuple(lines)
