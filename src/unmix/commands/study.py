"""Studies from the command line and from Python: run one, or show what it has so far."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from unmix.commands.finished import Say
from unmix.commands.study_page import write_page
from unmix.config.keywords import PretrainSettings
from unmix.config.yaml_files import YamlError, parse_yaml
from unmix.errors import UserError, check_choice, check_number
from unmix.files import as_path, atomic_write
from unmix.names import shown
from unmix.studies import Study, StudyResults, read_study, run_study
from unmix.studies.cells import NO_RESULT
from unmix.studies.conditions import parse_seeds
from unmix.studies.plan import slug
from unmix.studies.stale import STALE
from unmix.studies.watching import watch_study
from unmix.training.console import quiet_libraries

__all__ = ["show_study", "study"]

# What may be given beside a study file: where the data are, and what computes.
_HERE = NO_RESULT - {"run"} | {"device"}


def study(
    name: str,
    *,
    vary: Sequence[str] = (),
    seeds: Sequence[str] = (),
    baseline: str | None = None,
    exploratory: bool = False,
    jobs: int = 1,
    only: Sequence[str] = (),
    stale: str = "refuse",
    out: str = "studies",
    config: str | Sequence[str] | None = None,
    say: Say = print,
    **settings: Unpack[PretrainSettings],
) -> StudyResults:
    """Train conditions x paired seeds, and say which is better, by how much and how sure.

    A study is a YAML file, or a name with --vary and settings of `pretrain`. What is measured is
    not measured again: give the same command to go on, or more seeds to add them.

    Args:
        name: A study file (.yaml), or the study's name: its folder is OUT/NAME.
        vary: SETTING=VALUE,VALUE,...: a factor; several are crossed. mixture=none,IM,unmix,imix and
            method=moco,byol are factors too. The last one's first value is the reference.
        seeds: Such as 0-5. The same seed gives all conditions the same initial weights and order.
            Of a study that is there already, some of its seeds run this part of it now.
        baseline: Another value of the last factor as the reference.
        exploratory: Run with fewer seeds than a test needs, and without a verdict.
        jobs: Cells (a condition with a seed) that are trained at a time.
        only: Conditions to train now, such as plain Un-Mix; the others stay in the study.
        stale: What is done with cells measured with other settings, data or code: refuse, keep or
            rerun.
        out: Folder of the studies.
        config: A recipe or YAML file for all conditions.
        say: Prints a line.
        settings: Of all conditions, in the words of `pretrain`. Beside a study file only those of
            this machine: data_dir, device, threads, workers, ...

    Returns:
        The study and its cells.

    Raises:
        UserError: if the study is invalid, before anything is trained; or, at the end, if cells
            failed.
    """
    check_number("jobs", jobs, at_least=1)
    check_choice("stale", stale, STALE)
    quiet_libraries()
    base: dict[str, Any] = {k: v for k, v in settings.items() if k not in _HERE}
    here = {word: value for word, value in sorted(settings.items()) if word in _HERE}
    given = {"vary": vary, "baseline": baseline, "config": config, **base}
    words = [word for word, value in given.items() if value not in (None, (), [])]
    folder, planned = _plan(name, as_path(out), vary, words, exploratory)
    if planned is None:
        planned = Study.of(
            {
                "vary": dict(map(_factor, vary)),
                "base": base,
                "seeds": list(seeds) or "0-5",
                **({"baseline": baseline} if baseline is not None else {}),
                **({"config": config} if config is not None else {}),
                "exploratory": exploratory,
            },
            name,
        )
    part = parse_seeds(seeds) if seeds else ()
    if exploratory or not set(part) <= {seed for _, seed in planned.cells}:
        content = planned.content()
        # A part stays a part, and other seeds are added: what is measured goes on to count.
        content["seeds"] = list(dict.fromkeys((*planned.seeds, *part)))
        planned = Study.of({**content, "exploratory": exploratory or planned.exploratory}, name)
    failed = run_study(
        planned, folder, jobs=jobs, stale=stale, only=_conditions(only, planned), seeds=part,
        here=here, say=say,
    )  # fmt: skip
    found = read_study(folder)
    say("")
    say(_write(found, folder))
    say(f"report: {shown(write_page(found, folder))}")
    say(f"study: {folder}")
    if failed:
        raise UserError(
            f"{len(failed)} cells failed, such as {failed[0]}; the reasons are above. The same "
            "command tries them again."
        )
    return found


def _conditions(only: Sequence[str], planned: Study) -> list[str]:
    """Conditions that were given one by one, or in one text with commas between.

    Raises:
        UserError: if the study has no such condition.
    """
    found = []
    for word in only:
        # A name may have a comma of its own, as "moco, none".
        names = [word] if word in planned.conditions else [n.strip() for n in word.split(",")]
        found += [check_choice("only", name, planned.conditions) for name in names]
    return found


def show_study(
    name: str, *, out: str = "studies", watch: bool = False, say: Say = print
) -> StudyResults:
    """Print what a study has so far: the verdicts and the table, also while it runs.

    Args:
        name: The study's name, its folder or its file.
        out: Folder of the studies.
        watch: Go on until all cells are measured or nothing trains them any more: a line for each
            change, and the verdicts again after each cell. Ctrl-C ends it and not the study.
        say: Prints a line.

    Raises:
        UserError: if there is no such study, or a cell is damaged.
    """
    path = as_path(name)
    folder = path if path.is_dir() else as_path(out) / slug(path.stem if _is_file(name) else name)
    if not folder.is_dir():
        raise UserError(f"study: there is no folder {folder}; unmix study {name} begins it.")
    found = read_study(folder)
    say(found.markdown().rstrip())
    if watch:
        found = watch_study(folder, found, say)
    return found


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _plan(
    name: str, out: Path, vary: Sequence[str], words: Sequence[str], exploratory: bool
) -> tuple[Path, Study | None]:
    """The study's folder, and the study if a file says what it is."""
    if _is_file(name):
        if words:
            raise UserError(f"--{words[0]}: a study file says it already; change {name} instead.")
        planned = Study.load(as_path(name), exploratory=exploratory)
        return out / planned.name, planned
    if os.sep in name or "/" in name:
        raise UserError(f"study: {name!r} is a path; give a name, or a file that ends in .yaml.")
    folder = out / slug(name)
    if not words and (folder / "study.yaml").exists():
        return folder, Study.load(folder / "study.yaml", exploratory=exploratory)
    if not vary:
        raise UserError(
            "--vary: what differs? Such as --vary unmix=no,yes, or a study file (NAME.yaml)."
        )
    return folder, None


def _factor(word: str) -> tuple[str, list[Any]]:
    """`lr=0.03,0.06` as the setting and its values."""
    setting, equals, values = word.partition("=")
    setting = setting.strip().lstrip("-").replace("-", "_")
    if not equals or not setting or not values.strip():
        raise UserError(f"--vary: {word!r} must be SETTING=VALUE,VALUE, such as unmix=no,yes.")
    try:
        found = [parse_yaml(value) for value in values.split(",")]
    except YamlError:
        raise UserError(f"--vary: {word!r} must be SETTING=VALUE,VALUE.") from None
    return setting, [_text(value) if setting in ("mixture", "method") else value for value in found]


def _text(value: Any) -> str:
    # YAML reads none as a text, but a user may write null or no.
    return "none" if value in (None, False) else str(value)


def _write(found: StudyResults, folder: Path) -> str:
    text = found.markdown()
    atomic_write(folder / "table.md", text.encode())
    return text.rstrip()
