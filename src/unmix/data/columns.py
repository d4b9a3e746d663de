"""Columns of tables by the names that they usually have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unmix.errors import UserError
from unmix.names import shown
from unmix.synonyms import nearest

__all__ = ["IMAGES", "LABELS", "PATHS", "SPLITS", "Columns", "usual"]

IMAGES = ("image", "img", "picture", "pixel_values", "jpg", "png")
"""Usual names of a column of images."""
PATHS = (
    "path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path",
    "img_path", "image_file", "image_name", "img", "impath",
)  # fmt: skip
"""Usual names of a column of paths."""
LABELS = (
    "label", "labels", "fine_label", "target", "class", "cls", "class_name", "category", "wnid",
)  # fmt: skip
"""Usual names of a column of labels."""
SPLITS = ("split", "subset", "partition", "set")
"""Usual names of a column that says to which split an image belongs."""


@dataclass(frozen=True)
class Columns:
    """Names of columns that the user has given; those that are None are found.

    Attributes:
        image: Of the images, or of their paths.
        label: Of the labels.
        split: Of the splits' names.
        needed: Whether a given column must exist; otherwise it is found instead.
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None
    needed: bool = True

    def find(self, kind: str, names: Sequence[str], known: Sequence[str], place: str) -> str | None:
        """The column of a kind: the given one, or that with a usual name.

        Args:
            kind: "image", "label" or "split".
            names: The table's columns.
            known: Usual names.
            place: The table, for messages.

        Raises:
            UserError: if the given one does not exist.
        """
        given = getattr(self, kind)
        if given is None:
            return usual(names, known)
        found = given if given in names else usual(names, (given.lower(),))
        if found is None and not self.needed:
            return usual(names, known)
        if found is None:
            near = nearest(given, list(names))
            hint = f" Did you mean {shown(near)!r}?" if near else ""
            raise UserError(
                f"{place} has no column {given!r}; it has {', '.join(map(shown, names))}.{hint}",
                parameter=f"{kind}_column",
            )
        return found

    def given(self) -> list[str]:
        """The parameters that are given."""
        kinds = ("image", "label", "split")
        return [f"{kind}_column" for kind in kinds if getattr(self, kind) is not None]


def usual(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The first column that has one of the known names, in their order, whatever its case."""
    lower = {name.strip().lower(): name for name in reversed(names)}
    return next((lower[name] for name in known if name in lower), None)
