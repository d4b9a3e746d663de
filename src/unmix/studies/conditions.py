"""The conditions of a study file, by name or crossed from factors, and their comparisons."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmix.config.augmentation import layered
from unmix.config.catalog import catalog
from unmix.config.earlier import current
from unmix.config.nested import flattened
from unmix.config.recipes import resolve
from unmix.errors import UserError, check_choice
from unmix.names import in_words
from unmix.schema import excerpt

__all__ = [
    "Condition",
    "comparisons_of",
    "conditions_of",
    "flat_settings",
    "mixture_settings",
    "parse_seeds",
    "possible",
    "seeds_as_typed",
]

_LIKE = {"same_compute_as": "compute", "same_time_as": "time"}
_MOST = 10_000  # conditions, and seeds


@dataclass(frozen=True)
class Condition:
    """One way to train.

    Attributes:
        name: In tables.
        settings: What differs from the study's base, by the names of `pretrain`'s settings.
        like: A condition whose cost this one is trained for, with more or fewer epochs; None keeps
            the epochs of the settings.
        by: Of what cost: "compute" (forward-equivalents) or "time" (measured seconds).
        seeds: Of its own; None for the study's.
        group: The comparisons' family by default: the levels of all factors but the last.
    """

    name: str
    settings: Mapping[str, Any]
    like: str | None = None
    by: str = "compute"
    # Comparisons are stated where a study is written, so this is not part of what it says.
    group: str = field(default="", compare=False)
    seeds: tuple[int, ...] | None = None


def conditions_of(content: Mapping[str, Any], where: str) -> dict[str, Condition]:
    """The conditions that a study file names, or the combinations of its factors.

    Raises:
        UserError: with the key that is wrong.
    """
    if ("conditions" in content) == ("vary" in content):
        raise UserError(f"{where}: needs conditions: (by name) or vary: (by factor), one of them.")
    if "vary" in content:
        return _crossed(content, where)
    found = {}
    for name, settings in content["conditions"].items():
        found[str(name)] = _condition(str(name), settings or {}, "", where)
    if not found:
        raise UserError(f"{where}: conditions is empty; give two or more.")
    for condition in found.values():
        if condition.like is not None:
            what = f"condition {condition.name!r}: same cost as"
            check_choice(what, condition.like, found, flag=what)
            if condition.like == condition.name or found[condition.like].like is not None:
                raise UserError(
                    f"condition {condition.name!r}: {condition.like!r} has no epochs of its own to "
                    "take the cost of."
                )
    return found


def flat_settings(settings: Mapping[Any, Any], of: str) -> dict[str, Any]:
    """Settings by their present and flat names, under which later ones override earlier ones.

    Raises:
        UserError: if one is given twice; it begins with `of`.
    """
    try:
        return current(flattened({str(name): value for name, value in settings.items()}))
    except UserError as error:
        raise UserError(f"{of}: {error.on_command_line()}") from None


def _condition(name: str, settings: Any, group: str, where: str) -> Condition:
    if not isinstance(settings, Mapping):
        raise UserError(f"{where}: condition {name!r} is {settings!r}; it must be a mapping.")
    like = [key for key in _LIKE if key in settings]
    if len(like) > 1:
        raise UserError(f"condition {name!r}: takes one of {in_words(list(_LIKE))}.")
    stated = {k: v for k, v in settings.items() if k not in (*_LIKE, "seeds")}
    own = flat_settings(stated, f"condition {name!r}")
    seeds = None
    if "seeds" in settings:
        seeds = parse_seeds(settings["seeds"], f"condition {name!r}: seeds")
    if not like:
        return Condition(name, own, group=group, seeds=seeds)
    return Condition(name, own, str(settings[like[0]]), _LIKE[like[0]], group, seeds)


def _crossed(content: Mapping[str, Any], where: str) -> dict[str, Condition]:
    """Every combination of the factors' levels; the levels of all but the last are a family."""
    factors = content["vary"]
    levels: list[list[tuple[str, Mapping[str, Any]]]] = []
    for factor, values in factors.items():
        if isinstance(values, Mapping):
            levels.append(
                [_named_level(f"{where}: vary {factor}", *each) for each in values.items()]
            )
        elif isinstance(values, Sequence) and not isinstance(values, str):
            levels.append([_level(str(factor), value) for value in values])
        else:
            raise UserError(f"{where}: vary {factor} is {values!r}; give a list or a mapping.")
        if len({name for name, _ in levels[-1]}) < max(1, len(levels[-1])) or not levels[-1]:
            raise UserError(f"{where}: vary {factor} must have levels of different names.")
    if all(len(each) == 1 for each in levels):
        raise UserError(
            f"{where}: vary {', '.join(map(str, factors))} has one value, so there is nothing to "
            "compare; give two or more."
        )
    count = math.prod(map(len, levels))
    if count > _MOST:
        raise UserError(f"{where}: vary has {count:,} combinations; at most {_MOST:,} are trained.")
    mixtures = list(factors).index("mixture") if _are_words(factors.get("mixture")) else None
    if mixtures is not None:
        for key in ("unmix_rule", "unmix_mixture"):
            if content.get("base", {}).get(key) is not None:
                raise UserError(
                    f"{where}: base: {key} is what the levels of mixture say; write it there, as "
                    "RULE or RULE:MIXTURE, such as imix or unmix:fmix."
                )
    found = {}
    for combination in itertools.product(*levels):
        names = [name for name, _ in combination]
        name = ", ".join(names)
        settings: dict[str, Any] = {}
        for _, own in combination:
            settings |= own
        if mixtures is not None:
            beneath = _with_recipes(name, settings, content)
            settings |= mixture_settings(names[mixtures], beneath)
        found[name] = _condition(name, settings, ", ".join(names[:-1]), where)
    return found


def _are_words(values: Any) -> bool:
    return values is not None and not isinstance(values, Mapping)


def _named_level(factor: str, name: Any, settings: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(settings or {}, Mapping):
        raise UserError(f"{factor}: {name} is {excerpt(settings)}; it must be a mapping.")
    return str(name), flat_settings(settings or {}, f"{factor}: {name}")


def _level(factor: str, value: Any) -> tuple[str, Mapping[str, Any]]:
    """A level's name and settings; methods and mixtures go by their own names.

    What a mixture's are, depends on the settings that are beneath it.
    """
    if factor == "mixture":
        mixture_settings(str(value))
        return str(value), {}
    name = _word(value) if factor == "method" else f"{factor}={_word(value)}"
    return name, {factor: value}


def mixture_settings(word: str, beneath: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of none, IM, a rule such as imix, or RULE:MIXTURE such as unmix:fmix.

    Args:
        word: The mixture.
        beneath: Names of settings that these override, such as a recipe's. Of those that would be
            another mixture the level says that it has none, since it is called by its own alone.

    Raises:
        UserError: for another word.
    """
    nothing: dict[str, Any] = {"IM": False, "unmix": False, "unmix_mixture": None}
    found = {name: value for name, value in nothing.items() if name in beneath}
    if word == "none":
        return found
    if word == "IM":
        return {**found, "IM": True}
    rule, _, mixture = word.partition(":")
    check_choice("mixture", rule, ["none", "IM", *catalog().rules])
    found |= {"unmix": True, "unmix_rule": rule}
    return {**found, "unmix_mixture": mixture} if mixture else found


def _with_recipes(
    name: str, settings: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a condition with those beneath: the study's base, and the recipes."""
    try:
        return resolve(layered([content.get("base", {}), settings]), content.get("config"))[0]
    except UserError as error:
        raise UserError(f"condition {name!r}: {error.on_command_line()}") from None


def possible(
    conditions: Mapping[str, Condition], content: Mapping[str, Any]
) -> tuple[dict[str, Condition], tuple[str, ...]]:
    """The conditions whose method supports their rule; why others of a crossing are left out.

    Raises:
        UserError: if one that was named does not, or none does.
    """
    found, left_out = {}, []
    for name, condition in conditions.items():
        words = _with_recipes(name, condition.settings, content)
        rule, method = str(words.get("unmix_rule", "unmix")), str(words["method"])
        known = words.get("unmix") and rule in catalog().rules and method in catalog().methods
        why = catalog().methods[method].facts["why_not"][rule] if known else None
        if why is None:
            found[name] = condition
        elif "vary" in content:
            left_out.append(f"{name}: {why}")
        else:
            raise UserError(f"condition {name!r}: {rule} cannot be used with {method}: {why}.")
    if not found:
        raise UserError(f"no condition is left: {left_out[0]}.")
    return found, tuple(left_out)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def comparisons_of(
    content: Mapping[str, Any], conditions: Mapping[str, Condition], where: str
) -> dict[str, list[tuple[str, str]]]:
    """Those that the file asks for, or each condition of a family with the family's first."""
    asked = content.get("comparisons")
    if asked is None:
        return _with_the_first(conditions, content.get("baseline"), where)
    if "baseline" in content:
        raise UserError(f"{where}: baseline does not go with comparisons; leave it out.")
    families = asked if isinstance(asked, Mapping) else {"": asked}
    found: dict[str, list[tuple[str, str]]] = {}
    for family, pairs in families.items():
        if pairs is not None and not isinstance(pairs, list | tuple):
            raise UserError(
                f"{where}: comparisons is {excerpt(pairs)}; it must be a list of pairs "
                "[candidate, reference]."
            )
        found[str(family)] = [_pair(pair, conditions, where) for pair in pairs or ()]
    return found


def _pair(pair: Any, conditions: Iterable[str], where: str) -> tuple[str, str]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise UserError(f"{where}: comparisons: {pair!r} is no pair [candidate, reference].")
    for name in pair:
        _known(str(name), conditions, f"{where}: comparisons")
    if pair[0] == pair[1]:
        raise UserError(f"{where}: comparisons: {pair[0]!r} is compared with itself.")
    return str(pair[0]), str(pair[1])


def _with_the_first(
    conditions: Mapping[str, Condition], baseline: Any, where: str
) -> dict[str, list[tuple[str, str]]]:
    groups: dict[str, list[str]] = {}
    for condition in conditions.values():
        groups.setdefault(condition.group, []).append(condition.name)
    found = {}
    for group, names in groups.items():
        reference = names[0]
        if baseline is not None:
            joined = f"{group}, {baseline}" if group else str(baseline)
            reference = _known(joined, names, f"{where}: baseline")
        found[group] = [(name, reference) for name in names if name != reference]
    return found


def _known(name: str, conditions: Iterable[str], where: str) -> str:
    names = list(conditions)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else f" Conditions: {'; '.join(names)}."
        raise UserError(f"{where}: there is no condition {name!r}.{hint}")
    return name


def seeds_as_typed(seeds: Iterable[int]) -> str:
    """Seeds as `parse_seeds` reads them, in order: "0-5", or "0-2,7"."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], seed]
        else:
            parts.append([seed])
    return ",".join("-".join(map(str, part)) for part in parts)


def parse_seeds(value: Any, where: str = "--seeds") -> tuple[int, ...]:
    """Seeds from a list, or from words such as "0-5" and "0,2,7".

    Raises:
        UserError: if it is neither, or contains a seed twice.
    """
    if isinstance(value, int):
        raise UserError(f"{where}: {value} could be one seed or several; write [{value}] or 0-5.")
    words = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    seeds: list[int] = []
    for word in re.split(r"[\s,]+", " ".join(map(str, words)).strip()):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", word, re.ASCII)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(f"{where}: {excerpt(word)} is no seed; write 0-5, or 0 1 2.")
        if len(seeds) + int(match[2] or match[1]) - int(match[1]) >= _MOST:
            raise UserError(f"{where}: {word} are too many seeds; at most {_MOST:,} are trained.")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise UserError(f"{where}: {twice} is given twice.")
    return tuple(seeds)
