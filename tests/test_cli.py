"""The command line: its words, its help, what it prints, and how it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import unmix
from unmix.cli import COMMANDS, main
from unmix.config import GROUPS, field_names
from unmix.config.recipes import recipe_in_full
from unmix.mixtures import Cutout
from unmix.results import load_results
from unmix.training.loop.module import Pretraining
from unmix.training.run.pretrain import settings_for

TINY = shlex.split(
    "--data digits --size 8 --backbone resnet10 --width 0.125 --epochs 1 --batch_size 256 "
    "--queue_size 256 --bn_splits 1 --knn_every 0 --device cpu --precision 32 --logger none"
)

# The flags of the released code, verbatim, with their defaults (README of Un-Mix and CMC-IM).
PUBLISHED: dict[str, Any] = {
    "IM": False, "IM_type": "IM",
    "g_alpha": 1.0, "g_num": 2, "g_prob": 0.1,
    "r_beta": 1.0, "r_prob": 0.1, "r_num": 2, "r_pixel_decay": 1.0,
    "mask_size": 50, "cutout_p": 0.1, "cutout_inside": False, "mask_color": 0,
    "area_ratio_range": (0.02, 0.4), "random_erasing_prob": 0.1, "min_aspect_ratio": 0.3,
    "max_attempt": 20,
    "unmix_prob": 0.5, "beta": 1.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(run: str | Path) -> dict[str, Any]:
    return yaml.safe_load((Path(run) / "config.yaml").read_text())


# --- words ------------------------------------------------------------------------------------


def test_the_published_flags_have_their_published_defaults():
    settings = settings_for({"method": "moco"})[0].mixture
    found = {name: getattr(settings, name) for name in PUBLISHED}
    # None is what was published, and may be another value of another mixture.
    assert (found.pop("unmix_prob"), found.pop("beta")) == (None, None)
    operator = replace(settings, unmix=True).label_space()
    assert (operator.prob, operator.distribution.alpha) == (0.5, 1.0)
    # Of views of 224 px; a share of the side in others.
    assert found.pop("mask_size") is None
    assert Cutout().side(224, 224) == PUBLISHED["mask_size"]
    assert found == {name: value for name, value in PUBLISHED.items() if name in found}


def test_the_published_flags_parse_verbatim_and_reach_the_run():
    words = ["--unmix"]  # which the released code has no flag for: it always does
    for name, value in PUBLISHED.items():
        shown = value if isinstance(value, tuple) else () if isinstance(value, bool) else (value,)
        words += [f"--{name}", *map(str, shown)]
    assert main(["pretrain", *TINY, "--no-evaluate", *words, "--run", "r"]) == 0
    found = config("r")
    for name, value in PUBLISHED.items():
        wanted = True if value is False else list(value) if isinstance(value, tuple) else value
        assert found[name] == wanted, name


@pytest.mark.parametrize("im_type", ["IM", "global", "region", "Cutout", "RandomErasing"])
def test_every_published_mixture_is_known(im_type: str):
    assert settings_for({"IM": True, "IM_type": im_type})[0].mixture.name == im_type


def test_both_spellings_of_a_flag_and_no_are_right():
    words = [*TINY, "--no-evaluate", "--run", "r", "--data-dir=some_dir", "--IM", "--no-IM"]
    assert main(["pretrain", *words, "--weight-decay", "1e-3"]) == 0
    found = config("r")
    assert (found["data_dir"], found["IM"], found["weight_decay"]) == ("some_dir", False, 1e-3)


def test_flags_come_over_the_config_and_that_over_the_methods_recipe():
    Path("mine.yaml").write_text("method: cmc\nlr: 2e-3\nnegatives: 32\ngray_p: 0.5\n")
    words = shlex.split(
        "pretrain --config mine.yaml --data digits --size 8 --backbone resnet10 --epochs 1 "
        "--batch_size 512 --device cpu --precision 32 --logger none --no-evaluate --run r"
    )
    assert main([*words, "--negatives", "16"]) == 0
    found = config("r")
    # YAML reads 2e-3 as a text.
    assert (found["method"], found["lr"], found["negatives"]) == ("cmc", 2e-3, 16)
    assert (found["gray_p"], found["jitter_p"], found["width"]) == (0.5, 0.0, 0.5)


def test_a_recipe_is_printed_in_full(capsys):
    assert main(["recipes", "moco-cifar100"]) == 0
    printed = capsys.readouterr().out
    assert printed == recipe_in_full("moco-cifar100")
    assert yaml.safe_load(printed)["queue_size"] == 4096


# --- help -------------------------------------------------------------------------------------


def test_the_overview_names_every_command(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unmix {unmix.__version__}\n"


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("help pretrain", "pretrain --help"),
        ("--help knn", "knn --help"),
        ("help --help", "--help"),
        ("help data", "data --help"),
        ("help data pack", "data pack --help"),
        ("data help pack", "data pack --help"),
        ("data --help pack", "data pack --help"),
        ("help study show", "study show --help"),
    ],
)
def test_help_of_a_command_is_that_commands_help(words: str, same: str, capsys):
    assert main(same.split()) == 0
    expected = capsys.readouterr().out
    assert main(words.split()) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--version extra", "extra: --version takes no argument."),
        ("-V --json", "--json: -V takes no argument."),
        ("help pretrian", "unknown command 'pretrian'. Did you mean 'pretrain'?"),
        ("help data pakc", "unknown command 'data pakc'."),
        ("data help pakc", "unknown command 'data pakc'."),
        ("help knn runs/a", "runs/a: help takes a command alone, such as `unmix help pretrain`."),
        ("help study mine", "mine: help takes a command alone"),
        ("data help pack FOLDER", "FOLDER: help takes a command alone"),
        ("--completion=bash zsh", "'bash zsh' is unknown"),
    ],
)
def test_no_word_is_ignored(words: str, message: str, refuse):
    assert message in refuse(*words.split())


@pytest.mark.parametrize("command", [*(name for name in COMMANDS if name != "data"), "data pack"])
def test_the_help_of_every_command_explains_each_flag(command: str, capsys):
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    entries = re.split(r"\n  (?=-)", out.split("\n\nexamples:")[0])[1:]
    assert entries
    for entry in entries:
        flag, _, text = re.sub(r"\n +", "  ", entry.split("\n\n")[0]).partition("  ")
        assert text.strip(), flag


def test_the_help_of_pretrain_shows_the_groups_and_the_options_of_the_chosen_method(capsys):
    assert main(["pretrain", "--method", "cmc", "--data", "photos", "--help"]) == 0
    out = capsys.readouterr().out
    shown = set(re.findall(r"^  --(\w+)", out, re.MULTILINE))
    assert shown >= {name for group in GROUPS for name in field_names(group)}
    assert {"negatives", "view"} <= shown
    assert "queue_size" not in shown
    for title in ("Run", "Method cmc", "Model", "Mixture", "Views", "Optimizer", "Machine"):
        assert re.search(rf"^{title}\b.*:$", out, re.MULTILINE), title
    assert "(default: 0.03)" in out  # the rate of the recipe, not of the program


# --- what is printed, and how it ends ---------------------------------------------------------

OURS = (
    r"moco on digits: .*", r"mixture: .*", r"recipe: moco .*", r"epoch [12]/2  loss .*",
    r"warning: not learning yet.*", r"(kNN|linear probe), .*: top-1 .*",
    r"without labels, RankMe .*", r"encoder: .*", "",
)  # fmt: skip
BAR = r"(Training|epoch \d): .*"
RUN = ["pretrain", *TINY, "--epochs", "2", "--knn_every", "1", "--logger", "tensorboard"]


def strange(lines: list[str]) -> list[str]:
    """The lines that are not ours."""
    return [line for line in lines if not any(re.fullmatch(ours, line) for ours in OURS)]


# A run on files, then one on a terminal, by one process, which takes seconds to start.
BOTH = """
import os, sys
from unmix.cli import main
terminal, *words = sys.argv[1:]
assert main([*words, "--run", "r"]) == 0
sys.stdout.flush()
sys.stderr.flush()
for fd in (1, 2):
    os.dup2(int(terminal), fd)
sys.stdout.reconfigure(line_buffering=True)
sys.exit(main([*words, "--run", "s"]))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """What `unmix pretrain` prints under -W default: to files, and on a terminal."""
    folder = tmp_path_factory.mktemp("printed")
    source = str(Path(unmix.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    host, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-W", "default", "-c", BOTH, str(terminal), *RUN]
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=out, stderr=err, pass_fds=[terminal]
        )
    os.close(terminal)
    output = b""
    try:
        while piece := os.read(host, 65536):
            output += piece
    except OSError:  # Linux reports this when the other end is closed
        pass
    os.close(host)
    assert child.wait(timeout=60) == 0, (folder / "err").read_text()
    return (folder / "out").read_text(), (folder / "err").read_text(), output.decode()


def test_a_run_prints_our_lines_only(printed):
    """No library's advertisement, deprecation or warning, even under python -W default."""
    out, err, _ = printed
    assert err == ""
    assert strange(out.splitlines()) == []
    assert sum(line.startswith("epoch ") for line in out.splitlines()) == 2


def test_a_terminal_has_a_bar_and_our_lines_stand_alone(printed):
    """What is left on a terminal's lines once the bar has been written over."""
    lines = [line.rstrip("\r").split("\r") for line in printed[2].split("\n")]
    assert any(re.match(BAR, piece) for pieces in lines for piece in pieces)
    last = [pieces[-1] for pieces in lines]
    assert [line for line in strange(last) if not re.fullmatch(BAR, line)] == []
    assert sum(bool(re.match(r"epoch [12]/2 ", line)) for line in last) == 2


@pytest.fixture
def heard_interrupts():
    """Python's own handler, which a background job of a shell does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
def test_an_interrupt_ends_with_one_line_and_status_130_and_the_run_goes_on(monkeypatch, capsys):
    step = Pretraining.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 8:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, batch_idx)

    before = signal.getsignal(signal.SIGINT)
    words = ["pretrain", *TINY, "--no-evaluate", "--epochs", "2", "--run", "r"]
    monkeypatch.setattr(Pretraining, "training_step", interrupted)
    assert main(words) == 130
    out, err = capsys.readouterr()
    assert err == "unmix: interrupted; to go on from step 9: unmix pretrain --run r.\n"
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(Pretraining, "training_step", step)
    assert main(["pretrain", "--run", "r"]) == 0
    out = capsys.readouterr().out
    assert "resuming from r/checkpoints/last.ckpt, after 9 steps" in out
    assert load_results(Path("r")).training["steps"] == 12


def test_a_completed_run_says_so_with_its_results_and_changes_nothing(capsys):
    words = ["pretrain", *TINY, "--run", "r"]
    assert main(words) == 0
    first = capsys.readouterr().out
    before = {path: path.read_bytes() for path in Path("r").rglob("*") if path.is_file()}
    for again in (words, ["pretrain", "--run", "r"], ["pretrain", "--run", "r", "--device", "mps"]):
        assert main(again) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == "r is complete; nothing to do. Its results:"
        kept = (" top-1 ", "without labels, RankMe")
        assert said[1:] == [ln for ln in first.splitlines() if any(word in ln for word in kept)]
    assert {path: path.read_bytes() for path in Path("r").rglob("*") if path.is_file()} == before


def test_a_closed_pipe_ends_the_output_quietly(monkeypatch, capsys):
    """`unmix recipes | head -1`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["recipes"]) == 0
        monkeypatch.undo()
    assert capsys.readouterr().err == ""
