"""Finding the labels and class names of a data set given in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from unmix.errors import UserError

__all__ = ["Labels", "checked", "columns_of", "labels_of", "unused"]

_IMAGES = ("image", "img", "picture", "pixel_values", "jpg", "png")
_LABELS = ("label", "labels", "fine_label", "target", "class", "cls")
_ATTRIBUTES = ("targets", "labels", "_labels", "y")
# Reading all items for their labels alone would take too long with more items.
_MOST_READ = 20_000


@dataclass(frozen=True)
class Labels:
    """The labels of all items.

    Attributes:
        values: One per item: integers or strings.
        names: Names of the classes, if the values are their indices.
    """

    values: Sequence[Any]
    names: tuple[str, ...] | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; by default the sorted values."""
        return self.names if self.names is not None else tuple(map(str, sorted(set(self.values))))

    def indices(self) -> list[int] | None:
        """Class index of every item; None if an item has none (a negative label)."""
        if any(isinstance(value, int) and value < 0 for value in self.values):
            return None
        if self.names is not None:
            return [int(value) for value in self.values]
        number = {value: i for i, value in enumerate(sorted(set(self.values)))}
        return [number[value] for value in self.values]


def columns_of(data: Any, first: Any, what: str) -> tuple[str | None, str | None]:
    """Keys of the image and of the label if items are dicts; else None.

    Raises:
        UserError: if no key can be the image's.
    """
    if not isinstance(first, Mapping):
        return None, None
    features = getattr(data, "features", None)
    kinds = {}
    if isinstance(features, Mapping):
        kinds = {str(key): type(kind).__name__ for key, kind in features.items()}
    keys = [str(key) for key in first]
    image = next((key for key in keys if kinds.get(key) == "Image"), None)
    image = image or next((key for key in _IMAGES if key in keys), None)
    if image is None:
        raise UserError(
            f"{what}: its items have {', '.join(keys)}, of which none is known to be the image; "
            f"call it {_IMAGES[0]!r}."
        )
    label = next((key for key in keys if kinds.get(key) == "ClassLabel"), None)
    return image, label or next((key for key in _LABELS if key in keys), None)


def labels_of(
    data: Any, first: Any, label: str | None, what: str
) -> tuple[Labels | None, str | None]:
    """Find the labels of a data set, if it has any, and a note for the user.

    They are searched in a column, in the attributes of torchvision's data sets, and, for data sets
    of up to 20,000 items, in the items.

    Args:
        data: The data set.
        first: Its first item.
        label: Key of the label if items are dicts.
        what: Name of the data set in messages.
    """
    names = _names_of(data, label)
    values = _column(data, label) if label is not None else _attribute(data)
    if values is not None:
        return _or_note(checked(values, names, len(data)), what)
    in_items = label is not None or (isinstance(first, (tuple, list)) and len(first) > 1)
    own = _label_in(first, label) if in_items else None
    if own is None:
        return None, None
    if len(data) > _MOST_READ:
        note = (
            f"note: the labels of {what} are in its items, and reading all {len(data):,} of them "
            "would take long; give the data set an attribute `targets` to have kNN and probes"
        )
        return None, note
    own_values = [_label_in(data[i], label) for i in range(len(data))]
    return _or_note(checked(own_values, names, len(data)), what)


def _or_note(labels: Labels | None, what: str) -> tuple[Labels | None, str | None]:
    return labels, unused(what) if labels is None else None


def _label_in(item: Any, label: str | None) -> Any:
    """The label in an item, if it is an integer or a string."""
    value = item[label] if label is not None else item[1]
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.item() if np.size(value) == 1 else None
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _names_of(data: Any, label: str | None) -> tuple[str, ...] | None:
    features = getattr(data, "features", None)
    if label is not None and isinstance(features, Mapping):
        names = getattr(features.get(label), "names", None)
    elif isinstance(data, Subset):
        return _names_of(data.dataset, None)
    elif isinstance(data, ConcatDataset):
        distinct = {_names_of(part, None) for part in data.datasets}
        return distinct.pop() if len(distinct) == 1 else None
    else:
        names = getattr(data, "classes", None)
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) and names else None


def _column(data: Any, label: str) -> Any:
    """A column of a Hugging Face data set, read without decoding images."""
    if label not in (getattr(data, "column_names", None) or ()):
        return None
    return data[label]


def _attribute(data: Any) -> Any:
    """`targets` or `labels` of torchvision's data sets, also of a `Subset`."""
    if isinstance(data, Subset):
        whole = _attribute(data.dataset)
        return None if whole is None else [_plain(whole[int(i)]) for i in data.indices]
    if isinstance(data, ConcatDataset):
        parts = [_attribute(part) for part in data.datasets]
        if any(part is None for part in parts):
            return None
        return [_plain(value) for part in parts for value in part]
    for name in _ATTRIBUTES:
        value = getattr(data, name, None)
        if isinstance(value, (list, tuple, Tensor, np.ndarray)) and len(value) == len(data):
            return value
    return None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.generic)) else value


def checked(values: Any, names: tuple[str, ...] | None, count: int) -> Labels | None:
    """The labels, if all of them can be classes: whole numbers, or names.

    Args:
        values: One per item: a tensor, an array, or anything that can be iterated.
        names: Names of the classes, which are used if the values are their indices.
        count: Number of the items.
    """
    if isinstance(values, (Tensor, np.ndarray)):
        values = values.tolist()
    plain = [_plain(value) for value in values] if hasattr(values, "__len__") else []
    if len(plain) != count or not all(isinstance(v, (int, str)) for v in plain):
        return None
    if len({type(value) for value in plain}) > 1:
        return None
    numbers = [value for value in plain if isinstance(value, int)]
    if names is not None and (len(numbers) < count or max(numbers, default=0) >= len(names)):
        names = None
    return Labels(plain, names)


def unused(what: str, why: str = "they must be whole numbers or names, one for every image") -> str:
    """A note that labels are left out.

    Args:
        what: Name of the data set.
        why: The reason.
    """
    return f"note: the labels of {what} are not used: {why}"
