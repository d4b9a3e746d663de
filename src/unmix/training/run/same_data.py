"""What each of several processes has listed as training images, which has to be the same.

Each process lists the data itself, and the images of a step are positions in its list. If a node
sees another folder, such as one that is still being copied, the processes would train on other
images than the run says, or wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unmix.data import ImageSet
from unmix.data.fingerprint import fingerprint
from unmix.errors import UserError

__all__ = ["Listing", "check_same"]


@dataclass(frozen=True)
class Listing:
    """The training images that a process has listed, in order.

    Attributes:
        images: Their number.
        digest: Digest of their names and labels, or of what stands for names in
            `unmix.data.fingerprint`, and of which can be read if all were decoded; sizes of files
            are not asked for.
    """

    images: int
    digest: str

    @classmethod
    def of(cls, images: ImageSet, kept: Tensor | None = None) -> Listing:
        """The listing of a split.

        Args:
            images: The split.
            kept: Indices of the images that could be read, if all were decoded and not all could.
        """
        found = fingerprint(images, sizes=False)
        if kept is None:
            return cls(found.images, found.digest)
        return cls(
            len(kept), f"{found.digest} without {found.without(kept, found.images).left_out}"
        )


def check_same(who: Mapping[int, Mapping[str, Any]]) -> None:
    """Check that all processes have listed what rank 0 has.

    Args:
        who: By rank, the name of its `host` and its `listing` as a dict.

    Raises:
        UserError: on every process, with the first rank that differs.
    """
    first = who[0]["listing"]
    for rank, each in sorted(who.items()):
        ours = each["listing"]
        if ours == first:
            continue
        others = (
            "; names or labels, or which can be read, differ"
            if ours["images"] == first["images"]
            else ""
        )
        raise UserError(
            f"--data: rank {rank} of {len(who)} (on {each['host']}) found {ours['images']:,} "
            f"training images, rank 0 (on {who[0]['host']}) {first['images']:,}{others}. All "
            "processes need the same files, complete before the run starts."
        )
