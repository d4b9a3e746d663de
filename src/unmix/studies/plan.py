"""The plan of a study: conditions, seeds, and comparisons."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from unmix.config import Settings
from unmix.config.augmentation import layered
from unmix.config.compatibility import check_rule, check_teacher
from unmix.config.yaml_files import read_yaml, why_not
from unmix.errors import UserError, check_choice
from unmix.schema import Between, Check, checked
from unmix.statistics import ALPHA, fewest_pairs
from unmix.studies.conditions import (
    Condition,
    comparisons_of,
    conditions_of,
    flat_settings,
    parse_seeds,
    possible,
    seeds_as_typed,
)
from unmix.training.run.pretrain import settings_for

__all__ = ["PROTOCOLS", "SHARED", "Study", "slug"]

PROTOCOLS = ("knn", "linear")
"""What `pretrain` measures at the end of a run."""

_KEYS = (
    "name", "about", "config", "base", "conditions", "vary", "baseline", "comparisons", "seeds",
    "evaluations", "baselines", "exploratory", "published", "tuned",
)  # fmt: skip
# What two conditions must share to be compared: the images, and how they are measured.
SHARED = (
    "data", "data_dir", "test_folder", "image_column", "label_column", "split_column", "limit",
    "size", "max_pixels", "features", "knn_k", "knn_temperature", "evaluate",
)  # fmt: skip
_RUN_ONLY = ("seed", "run")
_NO_FILE = "study"  # what messages call a study that flags describe


def _are_recipes(config: Any) -> bool:
    return all(isinstance(it, str) for it in (config if isinstance(config, list) else [config]))


@dataclass(frozen=True)
class _Flags:
    """What a study file may say beside its conditions, which `conditions.py` checks."""

    config: Annotated[Any, Check(_are_recipes, "a recipe or a list of recipes")] = ""
    name: Annotated[Any, Check(lambda it: isinstance(it, str | int), "a text")] = ""
    about: str = ""
    exploratory: bool = False
    baselines: bool = False
    evaluations: Sequence[str] = ()
    tuned: Mapping[str, Annotated[int, Between(1)]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Conditions x seeds, and what is compared.

    Attributes:
        name: Of the study and its folder.
        conditions: By name, in the order of the tables.
        seeds: Every condition is trained with each of them, unless it has seeds of its own.
        base: Settings of all conditions.
        config: Recipes or YAML files under the base.
        comparisons: For each family (candidate, reference) pairs; Holm's correction is over each.
        protocols: Evaluations that are compared.
        about: What the study asks, in a sentence.
        exploratory: Run with fewer seeds than a test needs, and without a verdict.
        baselines: Measure raw pixels and untrained encoders too.
        published: Published numbers of a condition, for the tables.
        tuned: Settings that were chosen by trials, and how many trials each condition got for it.
        left_out: Incompatible combinations of crossed factors, each with the reason.
    """

    name: str
    conditions: Mapping[str, Condition]
    seeds: tuple[int, ...]
    base: Mapping[str, Any] = field(default_factory=dict)
    config: str | Sequence[str] | None = None
    comparisons: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    protocols: tuple[str, ...] = PROTOCOLS
    about: str = ""
    exploratory: bool = False
    baselines: bool = False
    published: Mapping[str, str] = field(default_factory=dict)
    tuned: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path, *, exploratory: bool = False) -> Study:
        """Read a study file.

        Args:
            path: The file.
            exploratory: Run without a verdict, whatever the file says.

        Raises:
            UserError: if it cannot be read or is not a study.
        """
        try:
            content = read_yaml(path)
        except FileNotFoundError:
            raise UserError(f"{path}: there is no such study file.") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({why_not(error)}).") from None
        if exploratory and isinstance(content, Mapping):
            content = {**content, "exploratory": True}
        return cls.of(content, path.stem, str(path))

    @classmethod
    def of(cls, content: Any, name: str, where: str = _NO_FILE) -> Study:
        """Make a study of the content of a study file.

        Args:
            content: A mapping with the keys of a study file; see docs/studies.md.
            name: The study's name where the content has none.
            where: What messages call the file.

        Raises:
            UserError: with the key that is wrong.
        """
        if not isinstance(content, Mapping):
            raise UserError(f"{where}: must hold lines of the form `key: value`.")
        for key in content:
            _check(f"{where}: key", str(key), _KEYS)
        for key in ("base", "conditions", "vary", "published"):
            if not isinstance(content.get(key, {}), Mapping):
                raise UserError(f"{where}: {key} is {content[key]!r}; it must be a mapping.")
        flags = checked(_Flags, content, where)
        base = flat_settings(content.get("base", {}), f"{where}: base")
        content = {**content, "base": base}
        conditions, left_out = possible(conditions_of(content, where), content)
        published = {str(name): str(text) for name, text in content.get("published", {}).items()}
        for condition in published:
            _check(f"{where}: published", condition, conditions)
        protocols = tuple(content.get("evaluations", PROTOCOLS))
        for protocol in protocols:
            _check(f"{where}: evaluations", str(protocol), PROTOCOLS)
        study = cls(
            name=slug(str(content.get("name", name))),
            conditions=conditions,
            seeds=parse_seeds(content.get("seeds", [0]), f"{where}: seeds"),
            base=base,
            config=content.get("config"),
            comparisons=comparisons_of(content, conditions, where),
            protocols=protocols,
            about=str(content.get("about", "")),
            exploratory=bool(content.get("exploratory", False)),
            baselines=bool(content.get("baselines", False)),
            published=published,
            tuned=flags.tuned,
            left_out=left_out,
        )
        study.check(None if where == _NO_FILE else f"{where}: seeds")
        return study

    def seeds_of(self, condition: str) -> tuple[int, ...]:
        """The seeds of a condition: its own, or the study's."""
        own = self.conditions[condition].seeds
        return self.seeds if own is None else own

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Every condition with each of its seeds, ordered by seed."""
        every = dict.fromkeys(seed for name in self.conditions for seed in self.seeds_of(name))
        return [
            (name, seed)
            for seed in sorted(every, key=self._place)
            for name in self.conditions
            if seed in self.seeds_of(name)
        ]

    def _place(self, seed: int) -> int:
        return self.seeds.index(seed) if seed in self.seeds else len(self.seeds)

    def stated(self, condition: str) -> dict[str, Any]:
        """The settings that the study states of a condition: the base's, with its own."""
        return layered([self.base, self.conditions[condition].settings])

    def settings(self, condition: str, seed: int, epochs: int | None = None) -> dict[str, Any]:
        """Arguments of `pretrain` for a cell; `epochs` override those of the condition."""
        given = {**self.stated(condition), "seed": seed}
        return given if epochs is None else {**given, "epochs": epochs}

    def resolved(self, condition: str, seed: int, epochs: int | None = None) -> Settings:
        """All settings of a cell.

        Raises:
            UserError: if `pretrain` would refuse them; it names the condition.
        """
        try:
            found = settings_for(self.settings(condition, seed, epochs), self.config)[0]
            check_rule(found)
            check_teacher(found)
            return found
        except UserError as error:
            raise UserError(f"condition {condition!r}: {error.on_command_line()}") from None

    def check(self, seeds_flag: str | None = None) -> None:
        """Check that the conditions can be trained and compared.

        Args:
            seeds_flag: What the command line calls the seeds; by default `--seeds`.

        Raises:
            UserError: for the first that cannot.
        """
        for key in _RUN_ONLY:
            owners = [c.name for c in self.conditions.values() if key in c.settings]
            if key in self.base or owners:
                of = f"condition {owners[0]!r}" if owners else "base"
                wanted = "seeds:" if key == "seed" else "the study's own folder"
                raise UserError(f"{of}: {key} is the study's; use {wanted}.")
        flat = {name: self.resolved(name, self.seeds[0]).flat() for name in self.conditions}
        for a, b in itertools.combinations(self.conditions.values(), 2):
            if flat[a.name] == flat[b.name] and (a.like, a.by) == (b.like, b.by):
                raise UserError(f"conditions {a.name!r} and {b.name!r} differ in nothing.")
            if slug(a.name) == slug(b.name):
                raise UserError(
                    f"conditions {a.name!r} and {b.name!r} would have the same file name, "
                    f"{slug(a.name)}; rename one."
                )
        for candidate, reference in itertools.chain(*self.comparisons.values()):
            for key in SHARED:
                ours, theirs = flat[candidate].get(key), flat[reference].get(key)
                if ours != theirs:
                    raise UserError(
                        f"comparison of {candidate!r} with {reference!r}: {key} is {ours!r} and "
                        f"{theirs!r}; it must be the same. Say under comparisons: which conditions "
                        "to compare."
                    )
        for key in self.tuned:
            _check("tuned", key, dict.fromkeys(itertools.chain(*flat.values())))
        self._check_seeds(seeds_flag)

    def _check_seeds(self, flag: str | None) -> None:
        for family, pairs in self.comparisons.items():
            least = fewest_pairs(len(pairs)) if pairs else 0
            common = [set(self.seeds_of(a)) & set(self.seeds_of(b)) for a, b in pairs]
            fewest = min(common, key=len, default=set())
            if len(fewest) < least and not self.exploratory:
                many = "one comparison" if len(pairs) == 1 else f"{len(pairs)} comparisons"
                of = f" ({family!r})" if family else ""
                found = f"{seeds_as_typed(fewest)} are {len(fewest)} seeds"
                if len(fewest) < 2:
                    found = f"{seeds_as_typed(fewest)} is one seed" if fewest else "no seed"
                both = "" if fewest == set(self.seeds) else " that the conditions have in common"
                raise UserError(
                    f"{found}{both}, too few for {many}{of} at level {ALPHA}; give {least} or "
                    f"more, such as 0-{least - 1}, or `exploratory` for no verdict.",
                    parameter="seeds",
                    flag=flag,
                )

    def content(self) -> dict[str, Any]:
        """The content of a study file that says the same."""
        conditions = {
            c.name: {
                **c.settings,
                **({f"same_{c.by}_as": c.like} if c.like is not None else {}),
                **({"seeds": list(c.seeds)} if c.seeds is not None else {}),
            }
            for c in self.conditions.values()
        }
        return {
            "name": self.name,
            **({"about": self.about} if self.about else {}),
            **({"config": self.config} if self.config is not None else {}),
            "base": dict(self.base),
            "conditions": conditions,
            "comparisons": {
                family: [list(pair) for pair in pairs] for family, pairs in self.comparisons.items()
            },
            "seeds": list(self.seeds),
            "evaluations": list(self.protocols),
            **({"exploratory": True} if self.exploratory else {}),
            **({"baselines": True} if self.baselines else {}),
            **({"published": dict(self.published)} if self.published else {}),
            **({"tuned": dict(self.tuned)} if self.tuned else {}),
        }


def slug(name: str) -> str:
    """A name as a part of a path."""
    return re.sub(r"[^a-z0-9.+=]+", "-", name.lower()).strip("-.") or "study"


def _check(what: str, value: str, choices: Iterable[str]) -> None:
    """Check a choice of a study file; what is wrong has no flag.

    Raises:
        UserError: if it is none of the choices.
    """
    check_choice(what, value, choices, flag=what)
