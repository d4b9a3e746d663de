"""Finding the labels and class names of a data set given in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from unmix.data.statistics import even_indices
from unmix.errors import UserError

__all__ = ["Labels", "checked", "columns_of", "labels_of", "unused"]

_IMAGES = ("image", "img", "picture", "pixel_values", "jpg", "png")
_LABELS = ("label", "labels", "fine_label", "target", "class", "cls")
_ATTRIBUTES = ("targets", "labels", "_labels", "y")
# Reading all items for their labels alone would take too long with more items.
_MOST_READ = 20_000
_COMPARED = 16


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

    They are searched in a column, in the attributes of torchvision's data sets, to which a
    `target_transform` is applied, and, for data sets of up to 20,000 items, in the items. These
    decide: some of them are compared with what a column or an attribute says.

    Args:
        data: The data set.
        first: Its first item.
        label: Key of the label if items are dicts.
        what: Name of the data set in messages.
    """
    names = _names_of(data, label)
    values = _column(data, label) if label is not None else _attribute(data)
    in_items = label is not None or (isinstance(first, (tuple, list)) and len(first) > 1)
    own = _label_in(first, label) if in_items else None
    other: str | None = None
    if values is not None:
        labels = checked(values, names, len(data))
        other = _contradiction(labels, data, label) if labels and own is not None else None
        if other is None:
            return _or_note(labels, what)
        names = None  # of classes that the items do not have
    if own is None:
        return None, None
    if len(data) > _MOST_READ:
        if other is not None:
            return None, unused(what, f"{other}, and reading all {len(data):,} would take long")
        return None, (
            f"note: the labels of {what} are in its items, and reading all {len(data):,} of them "
            "would take long; give the data set an attribute `targets` to have kNN and probes"
        )
    own_values = [_label_in(data[i], label) for i in range(len(data))]
    labels, note = _or_note(checked(own_values, names, len(data)), what)
    if other is not None and labels is not None:
        note = f"note: the labels of {what} are those of its items: {other}"
    return labels, note


def _or_note(labels: Labels | None, what: str) -> tuple[Labels | None, str | None]:
    return labels, unused(what) if labels is None else None


def _contradiction(labels: Labels, data: Any, label: str | None) -> str | None:
    """How an item contradicts the labels, of those that are compared; None if none does."""
    pairs: dict[int, tuple[Any, Any]] = {}
    for i in even_indices(len(data), _COMPARED):
        try:
            own = _label_in(data[i], label)
        except Exception:  # of a broken image, which is told when it is read for training
            continue
        if own is not None:
            pairs[i] = own, labels.values[i]
    both = [{pair[k] for pair in pairs.values()} for k in (0, 1)]
    if len({type(value) for each in both for value in each}) < 2:
        differ = [(i, *pair) for i, pair in pairs.items() if pair[0] != pair[1]]
        return "item {} has {!r}, where {!r} is listed".format(*differ[0]) if differ else None
    # Names and numbers are the same classes if there is one name for each number.
    same = len(set(pairs.values())) == len(both[0]) == len(both[1])
    return None if same else "the items have other classes than are listed"


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
        # They are those of the classes before they are changed.
        names = None if _transform(data) is not None else getattr(data, "classes", None)
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
            transform = _transform(data)
            return value if transform is None else [transform(_plain(each)) for each in value]
    return None


def _transform(data: Any) -> Callable[[Any], Any] | None:
    """What torchvision's data sets make of a label before an item has it."""
    transform = getattr(data, "target_transform", None)
    return transform if callable(transform) else None


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
