"""Names of conditions: what differs between them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from unmix.config import field_names
from unmix.config.augmentation import RECIPE, augmentation_of
from unmix.config.catalog import catalog
from unmix.config.recipes import resolve
from unmix.config.settings import Settings
from unmix.display import value_text
from unmix.errors import UserError

__all__ = ["Named", "by_augmentation", "differing", "names_of", "setting_in_words", "texts_of"]

# Settings in a name; a table of those that differ has the others.
_MOST = 4
_FEW = 2  # of a method that no other condition has: with more it is named by the method alone


@dataclass(frozen=True)
class Named:
    """What a condition's name is made of.

    Attributes:
        label: Method and mixture, as "MoCo + Un-Mix".
        method: As "moco".
        mixture: As "Un-Mix", or "none".
        settings: All that the condition's result depends on; `data` is a name.
    """

    label: str
    method: str
    mixture: str
    settings: Mapping[str, Any]


def names_of(conditions: Sequence[Named]) -> list[str]:
    """A name for each condition, all different.

    It has method and mixture if these differ, and the settings that differ: options of a method
    between conditions of this method, settings of a mixture between those with this mixture. Where
    methods differ, so do most other settings, since each has its own recipe: only those are named
    that some condition has from elsewhere, and of a method of which there is one condition at most
    two.

    Args:
        conditions: No two with the same settings.
    """
    if len(conditions) == 1:
        return [conditions[0].label]
    named = by_augmentation([one.settings for one in conditions])
    conditions = [replace(one, settings=s) for one, s in zip(conditions, named, strict=True)]
    labels = {one.label for one in conditions}
    keys = list(dict.fromkeys(key for one in conditions for key in one.settings))
    names = []
    for one in conditions:
        words = [_word(key, one) for key in keys if _tells(key, one, conditions)]
        if len(words) > _FEW and [c.method for c in conditions].count(one.method) == 1:
            words = []
        elif len(words) > _MOST and len(labels) > 1 and _alone(one, conditions):
            words = [*words[:_MOST], f"{len(words) - _MOST} more"]
        names.append(", ".join([*([one.label] if len(labels) > 1 else []), *words]))
    for digits in (False, True):  # all digits alone tell 0.12345 from 0.123451
        names = [
            name if names.count(name) == 1 and name else _in_full(one, conditions, keys, digits)
            for name, one in zip(names, conditions, strict=True)
        ]
    # A setting that only some of them have is in no name.
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(names, before, strict=True)]


def texts_of(values: Sequence[Any], key: str) -> list[str]:
    """The values of a setting, with all digits where a rounded one would look like another."""
    texts = [value_text(value, key) for value in values]
    if len(set(texts)) == len({str(value) for value in values}):
        return texts
    return [value_text(value if value is None else str(value)) for value in values]


def differing(conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each setting that differs, the value of each condition that has it.

    An option that only some conditions have, as those of a method, differs if they disagree in it.

    Args:
        conditions: For each name its settings.
    """
    named = by_augmentation(list(conditions.values()))
    conditions = dict(zip(conditions, named, strict=True))
    keys = dict.fromkeys(key for settings in conditions.values() for key in settings)
    values = {
        key: {name: own[key] for name, own in conditions.items() if key in own} for key in keys
    }
    return {key: found for key, found in values.items() if len(set(map(str, found.values()))) > 1}


def by_augmentation(conditions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings of conditions, those of the views by the name of their augmentation.

    Only where conditions differ in it, and each has one that has a name.

    Args:
        conditions: The settings of each; without any of the views they stay as they are.
    """
    views = sorted(field_names("views"))
    names = [_augmentation(own) if own.keys() & views else "" for own in conditions]
    found = [{k: v for k, v in own.items() if k != "augmentation"} for own in conditions]
    if None in names or len(set(names) - {""}) < 2:
        return found
    # The recipe is the method's own.
    called = [
        (name, own.get("method") if name == RECIPE else "")
        for name, own in zip(names, found, strict=True)
    ]
    of_views = [str([own.get(k) for k in views]) for own in found]
    if len(set(zip(called, of_views, strict=True))) > len(set(called)):
        return found
    return [
        {**{k: v for k, v in own.items() if k not in views}, "augmentation": name} if name else own
        for own, name in zip(found, names, strict=True)
    ]


def _augmentation(settings: Mapping[str, Any]) -> str | None:
    """The name of settings of the views: the recipe's own, or a preset's; None for others."""
    usual = _usual(str(settings.get("method")), str(settings.get("data")))
    views = field_names("views")
    if usual and all(str(settings.get(k, usual.get(k))) == str(usual.get(k)) for k in views):
        return RECIPE
    name = augmentation_of(settings)
    return None if name == RECIPE else name


def setting_in_words(key: str, value: Any) -> str:
    """A setting within a name: "lr 0.03", "no limit"."""
    words = key.replace("_", " ")
    return f"no {words}" if value in (None, (), []) else f"{words} {value_text(value, key)}"


def _word(key: str, one: Named) -> str:
    return setting_in_words(key, one.settings[key])


def _alone(one: Named, conditions: Sequence[Named]) -> bool:
    """Whether its method and mixture are those of no other condition."""
    return sum(other.label == one.label for other in conditions) == 1


def _tells(key: str, one: Named, conditions: Sequence[Named]) -> bool:
    """Whether a setting belongs into a condition's name."""
    if key not in one.settings or key in ("method", "mixture", "IM", "unmix"):
        return False  # the label has method and mixture
    if key in field_names("mixture"):
        return _differs(key, [c for c in conditions if c.mixture == one.mixture != "none"])
    own = [c for c in conditions if c.method == one.method]
    if key in _options(one.method):
        return _differs(key, own)
    if any(_differs(key, [c for c in conditions if c.method == o.method]) for o in conditions):
        return True
    return _differs(key, conditions) and any(_is_chosen(key, c) for c in conditions)


def _differs(key: str, conditions: Sequence[Named]) -> bool:
    return len({str(c.settings[key]) for c in conditions if key in c.settings}) > 1


@cache
def _options(method: str) -> frozenset[str]:
    found = catalog().methods.get(method)
    return frozenset(found.parameters) if found is not None else frozenset()


def _is_chosen(key: str, one: Named) -> bool:
    """Whether a setting has another value than the method's own recipe gives it."""
    usual = _usual(one.method, str(one.settings.get("data")))
    return key not in usual or str(usual[key]) != str(one.settings.get(key))


@cache
def _usual(method: str, data: str) -> Mapping[str, Any]:
    """The settings of a method on data that nobody changed; those of the data are not usual."""
    try:
        words = resolve({"method": method, "data": data})[0]
        mixtures = set(field_names("mixture"))
        flat = Settings.of({k: v for k, v in words.items() if k not in mixtures}).flat()
    except UserError:
        return {}
    return {key: value for key, value in flat.items() if key not in ("data", "limit", "size")}


def _in_full(one: Named, conditions: Sequence[Named], keys: Sequence[str], digits: bool) -> str:
    """Everything that differs, for a name that would not be the only one of its kind."""
    own = [key for key in keys if key in one.settings and key not in ("method", "mixture")]
    words = [
        setting_in_words(key, str(value) if digits and value not in (None, (), []) else value)
        for key in own
        if _differs(key, conditions)
        for value in [one.settings[key]]
    ]
    return ", ".join([one.label, *words])
