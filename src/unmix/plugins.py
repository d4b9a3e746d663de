"""Methods and mixtures of one's own, by name: for `pretrain`, the command line and studies."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from unmix.config import GROUPS, field_names
from unmix.config.catalog import Entry, catalog
from unmix.config.parameters import Parameter, about, parameters_of
from unmix.config.teacher import TEACHER, TeacherSettings
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.methods import METHODS, Method
from unmix.mixtures import MIXTURES, MixtureOperator
from unmix.mixtures.fields import settings_of
from unmix.mixtures.registry import Choice

__all__ = [
    "ENVIRONMENT",
    "check_known_to_processes",
    "load",
    "method_entry",
    "mixture_facts",
    "register_method",
    "register_mixture",
    "sources_of",
]

ENVIRONMENT = "UNMIX_PLUGINS"
"""The variable with the files, or modules, that register; joined as in PATH."""

_OF_PRETRAIN = ("config", "test_data", "extend", "dry_run")
"""What `pretrain` takes beside the settings."""


@dataclass(frozen=True)
class _Own:
    """What was registered.

    Attributes:
        kind: The class.
        module: The module that is imported where it is registered; None in a script or a notebook.
        file: Its file.
    """

    kind: type
    module: str | None
    file: Path | None


_registered: dict[tuple[type, str], _Own] = {}
"""By the base class and the name: a method and a mixture may have the same."""


def register_method(name: str, kind: type[Method]) -> None:
    """Give a method of yours a name, for `--method NAME`, recipes and studies.

    Keyword arguments of the class that have a default are its settings, of the type that they are
    annotated with or that the default has; `Args:` of its docstring is their help. A positional
    `n_data` is given the number of training images. See "Add a method or a
    mixture of your own" in the documentation.

    Args:
        name: Small letters, digits and underscores.
        kind: The class; its first argument is the backbone.

    Raises:
        UserError: if the name is taken or is none, the class is no whole method, or an argument of
            it can be no setting, or is one of every run.
    """
    _check(name, kind, Method, METHODS)
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise UserError(
            f"{kind.__name__} lacks {', '.join(missing)}, which every method has.",
            parameter="kind",
            owner="register_method",
        )
    entry = method_entry(kind)
    _check_arguments(kind, entry)
    catalog().methods[name] = entry
    METHODS[name] = kind
    _remember(name, kind, Method)


def register_mixture(name: str, kind: type[MixtureOperator], **fixed: Any) -> None:
    """Give a mixture of yours a name, for `--unmix_mixture NAME`, recipes and studies.

    Fields of the class made with `unmix.mixtures.parameter(setting=...)` take the values of these
    settings of a run, which are the mixtures' own: `unmix_per`, `unmix_pairing`, `unmix_patch` ...

    Args:
        name: Small letters, digits and underscores.
        kind: The class, a frozen dataclass.
        fixed: Parameters that are part of the name: `register_mixture("checker8", Checker,
            cells=8)`.

    Raises:
        UserError: if the name is taken or is none, the class is no mixture of label space or no
            dataclass with `per`, or a field is of a setting that there is not.
    """
    _check(name, kind, MixtureOperator, MIXTURES)
    # Of its own: a subclass without the decorator would have its base's defaults.
    if "per" not in vars(kind).get("__dataclass_fields__", ()):
        raise UserError(
            f"{kind.__name__} must be decorated with @dataclass(frozen=True), and have a field "
            '`per`, "batch" or "sample".',
            parameter="kind",
            owner="register_mixture",
        )
    known = field_names("mixture")
    for setting, field in settings_of(kind).items():
        if setting not in known:
            words = ", ".join(word for word in known if word.startswith("unmix_"))
            raise UserError(
                f"{field.name} is of the setting {setting!r}, which runs do not have; use one of "
                f"{words}, or fix it when you register.",
                parameter="kind",
                owner="register_mixture",
            )
    try:
        kind(**fixed)
    except TypeError as error:  # of a parameter that there is not, or that has no default
        raise UserError(
            f"{kind.__name__}: {error}.", parameter="fixed", owner="register_mixture"
        ) from None
    choice = Choice(kind, fixed)
    catalog().mixtures[name] = mixture_facts(choice.settings)
    MIXTURES[name] = choice
    _remember(name, kind, MixtureOperator)


def load() -> None:
    """Import the files and modules that the environment names, which register what they have.

    Raises:
        UserError: if one cannot be imported.
    """
    for place in filter(None, os.environ.get(ENVIRONMENT, "").split(os.pathsep)):
        try:
            _imported(place)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{ENVIRONMENT}: {place} cannot be imported: {type(error).__name__}: {error}"
            ) from error


def sources_of(names: Iterable[str]) -> str:
    """A digest of the files of what was registered by these names; empty where nothing was."""
    digest = hashlib.sha256()
    files = {file for own in _owns(names) for file in (_file(own.kind), own.file)}
    for file in sorted(path for path in files if path is not None):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12] if files else ""


def check_known_to_processes(names: Iterable[str]) -> None:
    """Check that processes which are started know these names too.

    Raises:
        UserError: for one that is registered by a script or a notebook.
    """
    for own in _owns(names):
        if own.module is None or own.kind.__module__ == "__main__":
            what = "registered by" if own.module is None else "of"
            raise UserError(
                f"{own.kind.__name__} is {what} this script or notebook, which the processes of a "
                "study do not read; put class and registration in a file, and import that.",
                parameter=next(name for (_, name), each in _registered.items() if each is own),
            )


def _owns(names: Iterable[str]) -> list[_Own]:
    """What was registered by these names."""
    wanted = set(names)
    return [own for (_, name), own in _registered.items() if name in wanted]


def method_entry(kind: type[Method]) -> Entry:
    """What the catalog has of a method."""
    found = parameters_of(kind)
    of_teacher = parameters_of(TeacherSettings) if TEACHER[0] in found else {}
    options: dict[str, Parameter] = {
        **of_teacher,
        **{name: p for name, p in found.items() if not p.required},
    }
    return Entry(
        about(kind), options, {"why_not": {rule: RULES[rule].refusal(kind) for rule in RULES}}
    )


def mixture_facts(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the values of a mixture's or a rule's settings may be."""
    return {
        name: {key: field.metadata[key] for key in ("choices", "bounds")}
        for name, field in settings.items()
    }


def _check(name: str, kind: Any, base: type, known: Mapping[str, Any]) -> None:
    owner = "register_method" if base is Method else "register_mixture"
    if not (inspect.isclass(kind) and issubclass(kind, base)):
        raise UserError(
            f"{kind!r} is no class of unmix.{'' if base is Method else 'mixtures.'}"
            f"{base.__name__}.",
            parameter="kind",
            owner=owner,
        )
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"{name!r}; use small letters, digits and underscores.", parameter="name", owner=owner
        )
    if name in known and (base, name) not in _registered:
        raise UserError(f"{name!r} is one of unmix's own.", parameter="name", owner=owner)


def _check_arguments(kind: type[Method], entry: Entry) -> None:
    """Check that every argument of a method is given by a run, by one setting of its own."""

    def wrong(message: str) -> UserError:
        return UserError(message, parameter="kind", owner="register_method")

    _, *arguments = inspect.signature(kind).parameters.values()
    given = {"n_data", *entry.parameters}
    for each in arguments:
        named = each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if named and each.name not in given:
            raise wrong(
                f"{each.name} of {kind.__name__} has no default, and a run gives the backbone and "
                "n_data alone; give it a default."
            )
    for group in (*map(parameters_of, GROUPS.values()), _OF_PRETRAIN):
        if taken := [name for name in entry.parameters if name in group]:
            raise wrong(
                f"{taken[0]} of {kind.__name__} is a setting of every run; call it another name, "
                f"such as own_{taken[0]}."
            )
    for name, option in entry.parameters.items():
        try:
            kept = option.kind.fit(name, option.default) == option.default
        except UserError:
            kept = option.default is None and name in TEACHER
        if not kept:
            raise wrong(
                f"{name}={option.default!r} of {kind.__name__} is of no type that a setting has; "
                "annotate it as bool, int, float, str, a Literal or a tuple of these, or one of "
                "them | None."
            )


def _remember(name: str, kind: type, base: type) -> None:
    """Keep who has the name, and let processes that are started from here know it too."""
    module, file = _importing(sys._getframe(2))
    _registered[base, name] = _Own(kind, module, file)
    if file is None or kind.__module__ == "__main__":
        return
    places = [place for place in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if place]
    if str(file) not in map(_path, places):
        os.environ[ENVIRONMENT] = os.pathsep.join([*places, str(file)])


def _importing(frame: FrameType | None) -> tuple[str | None, Path | None]:
    """The module whose import registers, and its file; None and None of a script or a notebook.

    It need not be the module of the class, nor that of a function that registers several.
    """
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    name = None if frame is None else frame.f_globals.get("__name__")
    if frame is None or name in (None, "__main__"):
        return None, None
    file = frame.f_globals.get("__file__")
    return name, None if file is None else Path(file).resolve()


def _file(kind: type) -> Path | None:
    try:
        return Path(inspect.getfile(kind)).resolve()
    except (OSError, TypeError):  # of a notebook
        return None


def _path(place: str) -> str:
    """The file that a place is, or what it is called."""
    if place.endswith(".py"):
        return str(Path(place).expanduser().resolve())
    module = sys.modules.get(place)
    return str(Path(getattr(module, "__file__", None) or place).resolve())


def _imported(place: str) -> None:
    if not place.endswith(".py"):
        importlib.import_module(place)
        return
    path = Path(_path(place))
    if any(getattr(m, "__file__", None) == str(path) for m in list(sys.modules.values())):
        return
    if not path.is_file():
        raise UserError(f"{ENVIRONMENT}: {path} does not exist.")
    names, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        names, folder = [folder.name, *names], folder.parent
    if len(names) > 1:  # of a package, whose files import one another by its name
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        importlib.import_module(".".join(names).removesuffix(".__init__"))
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look there
    spec.loader.exec_module(module)
