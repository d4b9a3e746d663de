"""Shell completion: the candidates for the word being typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unmix.config.augmentation import AUGMENTATIONS
from unmix.config.catalog import catalog
from unmix.config.flags import Parser
from unmix.config.groups import CHOICES
from unmix.config.mixtures import IM_TYPES
from unmix.config.recipes import recipe_names
from unmix.errors import UserError, check_choice

__all__ = ["candidates", "choices", "script"]

_SCRIPTS = {
    "bash": """\
# For this shell: eval "$(unmix --completion bash)"; for every one, put that line into ~/.bashrc.
_unmix() {
    local IFS=$'\\n'
    COMPREPLY=($(unmix --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
}
complete -o default -F _unmix unmix
""",
    "zsh": """\
# For this shell: eval "$(unmix --completion zsh)"; for every one, put that line into ~/.zshrc,
# below autoload -U compinit && compinit.
_unmix() {
    local line
    local -a found
    for line in "${(@f)$(unmix --complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] && found+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}")
    done
    (( $#found )) && _describe unmix found || _files
}
compdef _unmix unmix
""",
    "fish": """\
# For every shell: unmix --completion fish > ~/.config/fish/completions/unmix.fish
function __unmix
    set -l found (unmix --complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c unmix -f -a '(__unmix)'
""",
}


def script(shell: str) -> str:
    """The script that a shell runs to complete the arguments of `unmix`.

    Raises:
        UserError: if the shell is unknown.
    """
    return _SCRIPTS[check_choice("completion", shell, _SCRIPTS)]


def choices(name: str) -> list[str]:
    """The values to suggest for a flag."""
    found = catalog()
    known: Mapping[str, object] = {
        **CHOICES,
        "augmentation": AUGMENTATIONS,
        "IM_type": IM_TYPES,
        "backbone": found.choices["backbones"],
        "config": recipe_names(),
        "data": found.choices["data"],
        "method": found.methods,
        "protocol": found.choices["protocols"],
        "stem": found.choices["stems"],
        "unmix_mixture": found.mixtures,
        "unmix_pairing": found.choices["pairings"],
        "unmix_per": found.choices["per"],
        "unmix_rule": found.rules,
        "unmix_weight": found.choices["distributions"],
    }
    return [str(choice) for choice in known.get(name, ())]  # type: ignore[attr-defined]


def candidates(
    args: list[str],
    commands: Mapping[str, str],
    parser_of: Callable[[str, list[str]], Parser],
) -> list[tuple[str, str]]:
    """The candidates for the last word; none where a file is expected.

    Args:
        args: The arguments of `unmix`; the last one is being typed and may be empty.
        commands: All commands, each with its description.
        parser_of: Gives the parser of a command and its arguments.

    Returns:
        Candidates, each with its description.
    """
    *before, current = args or [""]
    # bash splits --lr=1 into three words.
    if current == "=":
        current = ""
    before = [word for word in before if word != "="]
    if not before or before == ["data"]:
        names = {name: text for name, text in commands.items() if name != "data pack"}
        if before:
            names = {"pack": commands["data pack"]}
        else:
            names |= {"--help": "show all commands", "--version": "show the version"}
        return _starting(current, names)
    count = 2 if before[0] == "data" else 1
    command, typed = " ".join(before[:count]), before[count:]
    if command not in commands:
        return []
    try:
        parser = parser_of(command, typed)
    except UserError:
        parser = parser_of(command, [])
    return _of_command(command, typed, current, parser)


def _of_command(
    command: str, typed: list[str], current: str, parser: Parser
) -> list[tuple[str, str]]:
    flag, equals, value = current.partition("=")
    if equals:
        found = _starting(value, dict.fromkeys(_values(flag, parser), ""))
        return [(f"{flag}={choice}", text) for choice, text in found]
    last = next((i for i in range(len(typed) - 1, -1, -1) if typed[i].startswith("--")), None)
    if last is not None and not current.startswith("-"):
        kind = parser.kind(typed[last])
        given = len(typed) - last - 1
        if (
            kind is not None
            and kind.base is not bool
            and (kind.count is None or given < kind.count)
        ):
            return _starting(current, dict.fromkeys(_values(typed[last], parser), ""))
    if not current.startswith("-") and command in ("recipes", "methods"):
        names = recipe_names() if command == "recipes" else list(catalog().methods)
        return _starting(current, dict.fromkeys(names, ""))
    if not current and parser.takes_files:
        return []
    # --batch-size is valid too.
    dashed = "_" not in current and "-" in current.removeprefix("--")
    flags = parser.flags()
    if dashed:
        flags = {f"--{name[2:].replace('_', '-')}": text for name, text in flags.items()}
    return _starting(current, flags)


def _values(flag: str, parser: Parser) -> list[str]:
    name = "--" + flag.removeprefix("--").replace("-", "_")
    kind = parser.kind(name)
    return list(kind.choices) if kind and kind.choices else choices(name.removeprefix("--"))


def _starting(start: str, found: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(word, text) for word, text in found.items() if word.startswith(start)]
