"""Completion in the shell: what may follow, and that the shells take the scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unmix
from unmix import cli
from unmix.cli import COMMANDS, main
from unmix.config import GROUPS, Settings, field_names
from unmix.config.completion import choices, script
from unmix.config.recipes import recipe_names
from unmix.errors import UserError


def offered(capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
    """What completes a line behind `unmix `; its last word is being typed."""
    assert main(["--complete", *line.split(" ")]) == 0
    return [row.split("\t")[0] for row in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", [*COMMANDS, "--help", "--version"]),
        ("pre", ["pretrain", "predict", "preview"]),
        ("data ", ["pack"]),
        ("data pack --qua", ["--quality"]),
        ("pretrain --meth", ["--method"]),
        ("pretrain --method sim", ["simclr", "simdino", "simmim", "simsiam"]),
        (
            "pretrain --method=sim",
            ["--method=simclr", "--method=simdino", "--method=simmim", "--method=simsiam"],
        ),
        (
            "pretrain --method = sim",
            ["simclr", "simdino", "simmim", "simsiam"],
        ),  # as bash splits it
        ("pretrain --method dino --teacher", ["--teacher_temperature"]),
        ("pretrain --teacher", []),
        ("pretrain --batch-", ["--batch-size"]),
        ("pretrain --method cmc --view ", ["Lab", "YCbCr"]),
        ("pretrain --precision ", ["auto", "32", "bf16", "16"]),
        ("pretrain --unmix --unmix_pairing h", ["halves"]),
        ("pretrain --method nonsense --epo", ["--epochs"]),
        ("pretrain --no-eva", ["--no-evaluate"]),
        ("recipes simclr-cifar", ["simclr-cifar10", "simclr-cifar100"]),
        ("methods by", ["byol"]),
        ("knn --feat", ["--features"]),
        ("knn --features p", ["projector"]),
        ("knn ", []),  # a file
        ("compare a --out ", []),
        ("nonsense ", []),
    ],
)
def test_what_may_follow(capsys, line: str, expected: list[str]):
    assert offered(capsys, line) == expected


def test_all_recipes_are_offered_and_flags_have_a_text(capsys):
    assert offered(capsys, "pretrain --config ") == recipe_names()
    main(["--complete", "pretrain", "--"])
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert all(text for _, text in rows)
    names = {name.removeprefix("--") for name, _ in rows}
    assert {name for group in GROUPS for name in field_names(group)} <= names


@pytest.mark.parametrize("name", [name for group in GROUPS for name in field_names(group)])
def test_every_value_that_is_offered_is_one(name: str):
    """What is refused is so for other reasons, as a mixture that needs a layer."""
    assert [choice for choice in choices(name) if "is unknown" in refusal({name: choice})] == []


def refusal(words: dict[str, str]) -> str:
    """Why settings are refused; nothing if they are not."""
    try:
        Settings.of(words)
    except UserError as error:
        return str(error)
    return ""


def test_an_unknown_shell_and_none(refuse):
    line = refuse("--completion", "tcsh")
    assert line.startswith("--completion: 'tcsh' is unknown.")
    assert "Known: bash, zsh, fish." in line
    assert refuse("--completion") == "--completion: expects one value: bash, zsh or fish."


def test_the_overview_names_completion(capsys):
    main(["--help"])
    assert "unmix --completion bash" in capsys.readouterr().out
    for shell in ("bash", "zsh", "fish"):
        assert main([f"--completion={shell}"]) == 0
        assert capsys.readouterr().out == script(shell)


TRIALS = {
    "bash": 'eval "$(unmix --completion bash)"; COMP_WORDS=(unmix pretrain --method sims); '
    'COMP_CWORD=3; _unmix; echo "${COMPREPLY[@]}"',
    "fish": "unmix --completion fish | source; complete -C 'unmix pretrain --method sims'",
    # zsh completes in a terminal alone; here it reads the script, and runs the part that asks.
    "zsh": 'compdef() {}; eval "$(unmix --completion zsh)"; '
    "_describe() { print -l ${(P)2} | cut -d: -f1 }; "
    "words=(unmix pretrain --method sims); CURRENT=4; _unmix",
}


@pytest.mark.parametrize("shell", [shell for shell in TRIALS if shutil.which(shell)])
def test_the_shell_completes(shell: str, tmp_path: Path):
    command = tmp_path / "unmix"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m unmix "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(unmix.__file__).parents[1]),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [shell, "-c", TRIALS[shell]], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["simsiam"], done.stderr


@pytest.mark.parametrize(
    ("command", "goes_on"), [("pretrain", True), ("demo", True), ("bench", False), ("knn", False)]
)
def test_an_interrupt_promises_to_go_on_only_where_it_does(
    capsys, monkeypatch, command: str, goes_on: bool
):
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, command, ("", interrupted))
    assert main([command]) == 130
    again = "; give the same command again to continue" if goes_on else ""
    assert capsys.readouterr().err == f"unmix: interrupted{again}.\n"
