"""What the command line makes of words: commas, negative numbers, words of other tools."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import unmix
from unmix import synonyms
from unmix.cli import COMMANDS, main, parse_pretrain
from unmix.config import GROUPS, Settings, earlier, field_names
from unmix.config.catalog import catalog
from unmix.config.compatibility import check_data, check_rule
from unmix.config.mixtures import MixtureSettings
from unmix.config.recipes import resolve
from unmix.errors import UserError, check_choice
from unmix.mixtures import registry
from unmix.training import RunFolder
from unmix.training.run.command import command_line
from unmix.training.run.notes import notes_on_weights
from unmix.training.run.pretrain import settings_for

Refuse = Callable[..., str]

SETTINGS = {name for group in GROUPS for name in field_names(group)} | {"config"}
OPTIONS = {name for entry in catalog().methods.values() for name in entry.parameters}
OWN = {name for entry in catalog().commands.values() for name in entry.parameters}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--mask_color -1.5e-1 --no-IM", {"mask_color": -0.15, "IM": False}),
        ("--mask_color=-.5 --no-IM", {"mask_color": -0.5, "IM": False}),
        ("--mask_color -2E+1 --no-IM", {"mask_color": -20.0, "IM": False}),
        ("--jitter 0.4,0.4,0.2,0.1", {"jitter": [0.4, 0.4, 0.2, 0.1]}),
        ("--jitter=0.4,0.4,0.2,0.1", {"jitter": [0.4, 0.4, 0.2, 0.1]}),
        ("--jitter 0.4, 0.4, 0.2, 0.1", {"jitter": [0.4, 0.4, 0.2, 0.1]}),
        ("--jitter 0.4 0.4 0.2 1e-1", {"jitter": [0.4, 0.4, 0.2, 0.1]}),
        ("--milestones 1,2", {"milestones": [1, 2]}),
        ("--milestones 1 2,3 --lr 1", {"milestones": [1, 2, 3], "lr": 1.0}),
        ("--data ./a,b", {"data": "./a,b"}),
        ("--lr 0.1 --lr 0.2", {"lr": 0.2}),
        ("--milestones none --lr 1", {"milestones": [], "lr": 1.0}),
        ("--lr 1 --limit none", {"limit": None, "lr": 1.0}),
        ("--limit=none --second_crop_ratio none", {"limit": None, "second_crop_ratio": None}),
        ("--unmix_joint none --logger none", {"unmix_joint": None, "logger": "none"}),
        ("--unmix_shares none --unmix_per none", {"unmix_shares": None, "unmix_per": None}),
        ("--data_dir none --run none", {"data_dir": "none", "run": "none"}),  # folders
    ],
)
def test_numbers_as_they_are_typed(words: str, expected: dict):
    given = parse_pretrain(shlex.split(words))[1]
    assert {k: list(v) if isinstance(v, list) else v for k, v in given.items()} == expected
    again = shlex.split(command_line(None, given))[2:]
    assert parse_pretrain(again)[1] == given


def test_none_is_no_value_of_a_setting_that_must_have_one(refuse: Refuse):
    assert "--lr: 'none' is not a number" in refuse("pretrain", "--lr", "none")
    assert "--crop_ratio" in refuse("pretrain", "--crop_ratio", "none")


def test_a_command_states_what_a_recipe_has_and_the_run_has_not():
    """Left out, the recipe's own would be taken, in another run than was asked for."""
    words = {
        "data": "cifar10",
        "method": "simclr",
        "schedule": "cosine",
        "milestones": [],
        "second_blur_p": None,
    }
    assert resolve({"method": "simclr", "data": "cifar10"})[0]["milestones"]
    given = parse_pretrain(shlex.split(command_line(None, words))[2:])[1]
    assert given == words
    assert Settings.of(resolve(given)[0]).optimizer.milestones == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr -1e-3", "--lr: -0.001 is out of range; it must be greater than 0."),
        ("--lr -inf", "--lr: -inf is out of range; it must be greater than 0."),
        ("--jitter -0.1,0,0,0", "--jitter: -0.1 is out of range; it must be at least 0."),
        ("--jitter 0.4,0.4", "--jitter: expects 4 values."),
        ("--jitter 1,1,1,1,1", "--jitter: expects 4 values, but 5 were given: 1 1 1 1 1."),
        ("--epochs 1,2", "--epochs: '1,2' is not an integer."),
        ("--epochs 1 --lr 2 --seed 0 1 2", "--seed: expects one value, but 3 were given: 0 1 2."),
        ("--seed 0 1 2", "--seed: expects one value, but 3 were given: 0 1 2. For several seeds"),
        ("--epochs 3 -4", "--epochs: expects one value, but 2 were given: 3 -4."),
        ("--IM yes", "--IM: takes no value, got 'yes'; use --IM or --no-IM."),
        ("method=simclr", "'method=simclr': unexpected argument; write --method simclr."),
        ("epochs=3", "'epochs=3': unexpected argument; write --epochs 3."),
        ("optimizer.lr=3", "'optimizer.lr=3': unexpected argument; write --lr 3."),
        ("data.num_workers=4", "'data.num_workers=4': unexpected argument; write --workers 4."),
        ("--optimizer.lr 3", "--optimizer.lr: unknown flag. Use --lr."),
        ("--data.num_workers 3", "--data.num_workers: unknown flag. Use --workers."),
        ("byol --data photos", "'byol': unexpected argument; write --method byol."),
    ],
)
def test_numbers_that_do_not_fit(refuse: Refuse, words: str, message: str):
    assert refuse("pretrain", *shlex.split(words)).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pretrain --no-unmix=yes", "--no-unmix: takes no value, got 'yes'; use --unmix or --no-"),
        ("pretrain --no-evaluate=", "--no-evaluate: takes no value, got ''; use --evaluate or --"),
        ("pretrain --dry-run=yes", "--dry_run: takes no value, got 'yes'."),
        ("pretrain --extend=1", "--extend: takes no value, got '1'."),
        ("compare a b --json=yes", "--json: takes no value, got 'yes'."),
        ("compare a b --help=1", "--help: takes no value, got '1'."),
        ("compare -hfoo", "-h: takes no value."),
    ],
)
def test_a_flag_without_a_value_is_given_one(refuse: Refuse, words: str, message: str):
    """`--no-unmix=yes` ended with a StopIteration, and --dry_run was told to expect a value."""
    assert refuse(*words.split()).startswith(message)


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(
    monkeypatch: pytest.MonkeyPatch, refuse: Refuse, tmp_path: Path
):
    """bash does not expand it in --run=~/a, Python and YAML never: a folder named ~ was made."""
    home = tmp_path / "home"
    (home / "a").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (home / "mine.yaml").write_text("epochs: 3\n")
    settings, _ = settings_for({"run": "~/b"}, "~/mine.yaml")
    assert (settings.folder, settings.run.epochs) == (home / "b", 3)
    assert RunFolder("~/a").path == home / "a"
    assert str(home / "a") in refuse("knn", "~/a")
    assert str(home / "a") in refuse("compare", "~/a")
    assert str(home / "s") in refuse("study", "show", "s", "--out=~")
    assert not Path("~").exists()


@pytest.mark.parametrize("flag", ["--data", "--init", "--run"])
def test_a_user_that_is_not_there_is_no_traceback(refuse: Refuse, flag: str):
    """ "Could not determine home directory" was a RuntimeError."""
    assert "~nobody-here/x" in refuse("pretrain", f"{flag}=~nobody-here/x")


def test_a_folder_with_a_space_has_to_be_in_quotes(refuse: Refuse):
    Path("my pictures").mkdir()
    assert refuse("pretrain", "--data", "my", "pictures") == (
        "--data: expects one value, but 2 were given: my pictures. In quotes it is one: "
        "--data 'my pictures'"
    )
    assert refuse("pretrain", "--data", "no", "pictures").endswith("were given: no pictures.")


def test_a_run_that_is_not_there_is_not_begun_by_its_name_alone(refuse: Refuse):
    """A typing error or another working directory would train something else for hours."""
    message = (
        "--run: there is no run in runs/mnie to resume. A new one there needs --method or --data "
        "too."
    )
    assert refuse("pretrain", "--run", "runs/mnie") == message
    assert refuse("pretrain", "--run", "runs/mnie", "--device", "cpu", "--workers", "0") == message
    assert not Path("runs").exists()


def test_commas_in_yaml_and_python():
    Path("c.yaml").write_text("jitter: 0.4,0.4,0.2,0.1\nmilestones: 1,2\nschedule: step\n")
    for settings, _ in (
        settings_for({}, "c.yaml"),
        settings_for({"jitter": "0.4,0.4,0.2,0.1", "milestones": "1,2", "schedule": "step"}),
    ):
        assert settings.views.jitter == (0.4, 0.4, 0.2, 0.1)
        assert settings.optimizer.milestones == (1, 2)


BOUNDED = [
    (kind, name, facts["bounds"])
    for kind, found in (("unmix_mixture", catalog().mixtures), ("IM_type", catalog().image_space))
    for name, facts in [
        ((chosen, setting), facts)
        for chosen, settings in found.items()
        for setting, facts in settings.items()
    ]
    if facts["bounds"]
]


@pytest.mark.parametrize(("kind", "name", "bounds"), BOUNDED)
def test_the_bounds_without_pytorch_are_those_of_the_operators(kind, name, bounds):
    """Both refuse the first number below with the same message."""
    chosen, setting = name
    wrong: Any = bounds["above"] if "above" in bounds else bounds["at_least"] - 1
    wrong = (wrong, 0.5) if setting == "area_ratio_range" else wrong
    layer = {"unmix_layer": "layer2"} if chosen == "manifold" else {}
    with pytest.raises(UserError) as ours:
        MixtureSettings(**{kind: chosen, setting: wrong}, **layer)
    build = registry.image_space if kind == "IM_type" else registry.label_space
    with pytest.raises(UserError) as theirs:
        build(chosen, {setting: wrong, **layer})
    assert ours.value.on_command_line() == theirs.value.on_command_line()
    assert str(ours.value) == str(theirs.value)


# --- what does not go together ----------------------------------------------------------------


@pytest.mark.parametrize("method", catalog().methods)
def test_a_rule_that_does_not_go_with_a_method_is_refused_by_the_matrix(method: str):
    for rule, why in catalog().methods[method].facts["why_not"].items():
        settings = Settings.of({"method": method, "unmix": True, "unmix_rule": rule})
        if why is None:
            check_rule(settings)
            continue
        with pytest.raises(UserError) as early:
            check_rule(settings)
        assert early.value.on_command_line() == (
            f"--unmix_rule: {rule} does not apply to --method {method}: {why}. Run `unmix methods "
            f"{method}` for the rules that do."
        )
        assert str(early.value).startswith(f"unmix_rule: {rule} does not apply to `method=")
    check_rule(Settings.of({"method": method, "unmix_rule": "swav_released"}))


def test_rules_and_data_sets_that_do_not_exist(refuse: Refuse):
    line = refuse("pretrain", "--unmix", "--unmix_rule", "imx")
    assert line.startswith("--unmix_rule: 'imx' is unknown. Did you mean 'imix'?")
    line = refuse("pretrain", "--data", "cifar-10")
    assert line.startswith("--data: 'cifar-10' is unknown. Did you mean 'cifar10'?")
    assert line.endswith("Or give the path of a folder of images.")
    Path("mine").mkdir()
    for name in ("mine", "./mine", "~/mine", "a/b", "cifar10"):
        check_data(name)


def test_a_run_of_another_method_is_named_as_one_by_the_command_line_and_python(refuse: Refuse):
    Path("r").mkdir()
    Path("r/config.yaml").write_text("method: moco\ndata: digits\nhead: mlp\n")
    line = refuse("pretrain", "--run", "r", "--method", "cmc")
    assert line.startswith("--run: r holds another run: its method is moco, not cmc.")
    with pytest.raises(UserError) as caught:
        settings_for({"run": "r", "method": "cmc"})
    assert caught.value.on_command_line() == line
    assert str(caught.value).startswith("run: r holds another run")


# --- several recipes --------------------------------------------------------------------------


def test_of_several_recipes_the_later_comes_over_the_earlier():
    Path("a.yaml").write_text("epochs: 3\nlr: 0.5\n")
    Path("b.yaml").write_text("epochs: 4\ngray_p: 0.1\n")
    merged, used = resolve({"data": "digits"}, ["a.yaml", "b.yaml"])
    assert (merged["epochs"], merged["lr"], merged["gray_p"]) == (4, 0.5, 0.1)
    assert used == ["moco", "a.yaml", "b.yaml"]
    assert resolve({}, ["b.yaml", "a.yaml"])[0]["epochs"] == 3
    assert resolve({"epochs": 9}, ["a.yaml", "b.yaml"])[0]["epochs"] == 9
    config, given = parse_pretrain(shlex.split("--config a.yaml --config b.yaml --lr 1"))
    assert (config, given) == (["a.yaml", "b.yaml"], {"lr": 1.0})
    assert settings_for({}, ["a.yaml", "b.yaml"])[0] == Settings.of(resolve({}, config)[0])


def test_the_method_of_the_last_recipe_is_the_runs():
    assert resolve({}, ["moco-cifar10", "simclr"])[1] == ["simclr", "moco-cifar10", "simclr"]
    assert resolve({}, ["moco"])[1] == ["moco"]
    assert resolve({}, "moco-cifar10") == resolve({}, ["moco-cifar10"])


@pytest.mark.parametrize(
    ("given", "stay", "go"),
    [
        ({"backbone": "timm:resnet18"}, set(), {"width", "stem"}),
        ({"backbone": "resnet34"}, {"width"}, set()),
        ({"backbone": "timm:resnet18", "width": 0.5}, {"width"}, {"stem"}),
        ({"method": "mae", "backbone": "timm:vit_small_patch16_224"}, {"patch"}, {"depth"}),
        ({"method": "mae", "backbone": "resnet18"}, set(), {"patch", "depth"}),
    ],
)
def test_what_a_recipe_says_of_its_own_network_is_not_said_of_another(given, stay, go):
    usual = resolve({"method": given.get("method", "moco"), "data": "photos"})[0]
    found = resolve({"data": "photos", **given})[0]
    assert stay <= found.keys()
    assert not go & (found.keys() - given.keys())
    same = resolve({"data": "photos", **given, "backbone": usual["backbone"]})[0]
    assert same == {**usual, **given, "backbone": usual["backbone"]}


def test_what_a_file_of_the_user_says_of_a_network_stays():
    Path("mine.yaml").write_text("width: 0.5\n")
    found = resolve({"data": "photos", "backbone": "timm:resnet18"}, ["mine.yaml"])[0]
    assert found["width"] == 0.5
    again = resolve({"backbone": "timm:resnet18"}, ["mine.yaml", "moco-photos"])[0]
    assert "width" not in again


def test_the_chain_is_printed_and_recorded(capsys):
    Path("a.yaml").write_text("epochs: 3\nlr: 0.5\n")
    Path("b.yaml").write_text("epochs: 1\n")
    words = shlex.split(
        "pretrain --data digits --size 8 --backbone resnet10 --width 0.125 --batch_size 256 "
        "--queue_size 256 --bn_splits 1 --limit 256 --no-evaluate --device cpu --logger none "
        "--knn_every 0 --run r --config a.yaml --config b.yaml"
    )
    assert main(words) == 0
    assert "recipe: moco < a.yaml < b.yaml" in capsys.readouterr().out
    text = Path("r/config.yaml").read_text()
    assert "# Recipes: moco < a.yaml < b.yaml.\n" in text
    found = yaml.safe_load(text)
    assert (found["epochs"], found["lr"]) == (1, 0.5)
    assert "--config a.yaml --config b.yaml" in Path("r/results.json").read_text()


def test_each_of_several_recipes_is_checked(refuse: Refuse):
    Path("a.yaml").write_text("epochs: 3\n")
    line = refuse("pretrain", "--config", "a.yaml", "--config", "moco-photoz")
    assert line.startswith("--config: 'moco-photoz' is not a recipe. Did you mean 'moco-photos'?")
    assert refuse("pretrain", "--config", "a.yaml", "--config") == "--config: expects one value."


# --- words of other tools ---------------------------------------------------------------------


def test_every_synonym_leads_to_a_flag_that_exists_and_is_none_itself():
    for word, (targets, _) in synonyms.FLAGS.items():
        assert set(targets) <= SETTINGS | OPTIONS | OWN, word
        assert word not in SETTINGS | OPTIONS, word
        assert word == word.lower().replace("-", "_")
    assert set(synonyms.COMMANDS.values()) <= set(COMMANDS)
    assert not set(synonyms.COMMANDS) & set(COMMANDS)


def test_no_synonym_stands_in_two_rows():
    words = [word for _, _, row in synonyms._FLAGS for word in row.split()]
    assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("--gpus", "devices"), ("--gpu", "device"), ("--arch", "backbone"), ("-a", "backbone"),
        ("--model", "backbone"), ("--resume", "run"), ("--bs", "batch_size"), ("-b", "batch_size"),
        ("--wd", "weight_decay"), ("-j", "workers"), ("--num_workers", "workers"),
        ("--num-workers", "workers"), ("--dataset", "data"), ("--out", "run"),
        ("--learning_rate", "lr"), ("--world_size", "devices"), ("--max_epochs", "epochs"),
        ("--moco-k", "queue_size"), ("--moco_m", "encoder_momentum"), ("--moco-t", "temperature"),
        ("--output_dir", "run"), ("--data_path", "data"), ("--img-size", "size"),
        ("--opt", "optimizer"), ("--sched", "schedule"), ("--fp16", "precision"),
        ("--Gpus", "devices"), ("--gpus=2", "devices"), ("--no-cuda", "device"),
    ],
)  # fmt: skip
def test_words_of_other_tools_are_answered_with_ours(refuse: Refuse, flag: str, ours: str):
    line = refuse("pretrain", flag, "2")
    assert re_flag(flag) in line
    assert f" Use --{ours}" in line


def re_flag(flag: str) -> str:
    """A flag as the message has it."""
    name = flag.split("=")[0]
    if name.startswith("--no-") or not name.startswith("--"):
        return f"{name}: unknown flag."
    return f"--{name[2:].replace('-', '_')}: unknown flag."


def test_what_another_method_has_is_named_with_it(refuse: Refuse):
    line = refuse("pretrain", "--method", "byol", "--moco_t", "0.2")
    assert line.startswith(
        "--moco_t: unknown flag. The equivalent is --temperature, which applies "
    )


def test_words_of_other_tools_in_python_and_with_other_commands(refuse: Refuse):
    with pytest.raises(UserError, match=r"^gpus: unknown setting. Use `devices`"):
        Settings.of({"gpus": 2})
    assert "Use --temperature." in refuse("knn", "r", "--temp", "1")
    assert "Use --device (" in refuse("probe", "r", "--gpu", "1")
    assert "Did you mean 'pretrain'?" in refuse("train", "--epochs", "1")
    assert "Did you mean 'probe'?" in refuse("linear", "r")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--device gpu", "--device: 'gpu' is unknown. Did you mean 'cuda'?"),
        ("--device cuda:1", "--device: 'cuda:1' is unknown. Did you mean 'cuda'?"),
        ("--precision bf16-mixed", "--precision: 'bf16-mixed' is unknown. Did you mean 'bf16'?"),
        ("--method mocov2", "--method: 'mocov2' is unknown. Did you mean 'moco'?"),
        ("--backbone vit_tiny_patch16_224",
            "--backbone: 'vit_tiny_patch16_224' is a model of timm; give timm:vit_tiny_patch"),
        ("--backbone vit_small",
            "--backbone: 'vit_small' is unknown. Did you mean 'timm:vit_small_patch16_224'?"),
        ("--devices 2 --batch_size 2", "--batch_size: 2 images on --devices 2 are 1 for each;"),
        ("--devices 2 --nodes 2 --batch_size 6",
            "--batch_size: 6 images on --devices 2 of --nodes 2 are 1.5 for each;"),
    ],
)  # fmt: skip
def test_values_of_other_tools(refuse: Refuse, words: str, message: str):
    assert refuse("pretrain", *shlex.split(words)).startswith(message)


def test_values_of_other_tools_are_only_offered_where_they_can_be_given():
    for flag, values in synonyms.VALUES.items():
        for word, meant in values.items():
            with pytest.raises(UserError, match=f"Did you mean {meant!r}"):
                check_choice(flag, word, ["something", meant])
            with pytest.raises(UserError) as caught:
                check_choice(flag, word, ["qqqqqqqq"])
            assert "Did you mean" not in str(caught.value)


def test_timms_models_are_found_without_importing_it():
    timm = pytest.importorskip("timm")
    assert set(timm.list_models()) <= synonyms.timm_models()


# --- trained weights --------------------------------------------------------------------------


def test_a_tag_of_trained_weights_without_init_is_told_to_be_without_effect():
    (line,) = notes_on_weights("timm:resnet18.a1_in1k")
    assert line == (
        "note: timm:resnet18.a1_in1k starts from random weights, as timm:resnet18 does; to start "
        "from the trained ones that a1_in1k names, add --init timm:resnet18.a1_in1k"
    )
    assert notes_on_weights("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k") == ()
    assert notes_on_weights("timm:resnet18") == notes_on_weights("resnet18") == ()


def test_a_tag_that_timm_does_not_have():
    pytest.importorskip("timm")
    from unmix.backbones import build

    with pytest.raises(UserError, match=r"weights 'a1_in2k'. Did you mean timm:resnet1"):
        build("timm:resnet18.a1_in2k")
    with pytest.raises(UserError, match=r"no model 'resnet18x'.* Did you mean 'timm:resnet18'\?"):
        build("timm:resnet18x")


# --- notebooks --------------------------------------------------------------------------------


def test_a_notebook_shows_one_line():
    """IPython asks an exception for what it shows instead of a traceback."""
    error = UserError("--lr: -1 is out of range; it must be greater than 0.")
    assert error._render_traceback_() == [f"UserError: {error}"]


# --- old names --------------------------------------------------------------------------------

RENAMED = {"method": "dino", "centre_momentum": 0.5, "unmix": True, "unmix_pairing": "neighbour"}
PRESENT = {"method": "dino", "center_momentum": 0.5, "unmix": True, "unmix_pairing": "neighbor"}
NOTES = [
    "centre_momentum is now called center_momentum; the old name still works.",
    "unmix_pairing neighbour is now called unmix_pairing neighbor; the old name still works.",
]


def test_every_old_name_has_a_present_one():
    known = SETTINGS | OPTIONS
    assert set(earlier.SETTINGS.values()) | set(earlier.VALUES) <= known
    assert not set(earlier.SETTINGS) & known


@pytest.mark.parametrize(
    "words",
    [
        "--centre_momentum 0.5 --unmix_pairing neighbour",
        "--centre-momentum=0.5 --unmix-pairing=neighbour",
    ],
)
def test_an_old_name_on_the_command_line_works_with_one_line_of_notice(words: str, capsys):
    words += " --method dino --unmix --data nowhere"
    assert main(["pretrain", *shlex.split(words)]) == 2
    notes = capsys.readouterr().err.splitlines()[:-1]
    assert notes == [f"unmix: note: {note}" for note in NOTES]


def test_an_old_name_on_the_command_line_means_the_present_one():
    words = "--method dino --centre_momentum 0.5 --unmix --unmix_pairing neighbour"
    with pytest.warns(earlier.RenamedWarning):
        assert parse_pretrain(shlex.split(words))[1] == PRESENT


def test_an_old_name_in_python_or_a_file_works_with_a_warning():
    Path("c.yaml").write_text(yaml.safe_dump(RENAMED))
    for given in ((RENAMED, None), ({}, "c.yaml")):
        with pytest.warns(earlier.RenamedWarning) as found:
            settings = settings_for(*given)[0].flat()
        assert {str(one.message) for one in found} == set(NOTES)
        assert settings.items() >= PRESENT.items()


def test_an_old_name_in_a_file_is_one_line_on_the_command_line(capsys):
    Path("c.yaml").write_text(yaml.safe_dump(RENAMED))
    assert main(["pretrain", "--config", "c.yaml", "--data", "nowhere"]) == 2
    assert capsys.readouterr().err.splitlines()[:-1] == [f"unmix: note: {note}" for note in NOTES]


def test_an_old_name_in_a_run_folder_works_silently(recwarn):
    saved = settings_for(PRESENT)[0].flat()
    saved["centre_momentum"] = saved.pop("center_momentum")
    saved["unmix_pairing"] = "neighbour"
    Path("r").mkdir()
    Path("r/config.yaml").write_text(yaml.safe_dump(saved))
    for given in (({"run": "r"}, None), ({}, "r/config.yaml")):
        assert settings_for(*given)[0].flat().items() >= PRESENT.items()
    assert len(recwarn) == 0


def test_a_setting_by_both_its_names_is_refused(refuse: Refuse):
    Path("c.yaml").write_text("method: dino\ncentre_momentum: 0.5\ncenter_momentum: 0.6\n")
    line = refuse("pretrain", "--config", "c.yaml")
    assert (
        line == "centre_momentum: is the old name of center_momentum, which is given too; keep one."
    )


# --- in Python --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metod": "moco"}, "metod: unknown setting. Did you mean `method`?"),
        ({"method": "mocco"}, "method: 'mocco' is unknown. Did you mean 'moco'?"),
        ({"lr": -1}, "lr must be greater than 0, got -1"),
        ({"epochs": "ten"}, "epochs: 'ten' is not an integer."),
        ({"jitter": [1]}, "jitter: [1] must be 4 numbers."),
        ({"negatives": 4}, "negatives: applies only to `method` cmc, insdis or pirl."),
        ({"backbone": "resnet19"}, "backbone: 'resnet19' is unknown. Did you mean 'resnet18'?"),
        ({"data": "cifar11"}, "data: 'cifar11' is unknown. Did you mean 'cifar10'?"),
        ({"data": "./none"}, "data: there is no folder ./none."),
        ({"data": "cifar10"}, "data_dir: cifar10 needs a folder DIR that holds"),
        ({"train_folder": "x"}, "train_folder: applies only to a folder of images, not to"),
        (
            {"config": "moco-cifr10"},
            "config: 'moco-cifr10' is not a recipe. Did you mean",
        ),
        ({"bit_depth": 12, "range": (0, 9)}, "bit_depth: cannot be combined with `range`"),
        ({"schedule": "step"}, "milestones: required by a step schedule"),
        ({"final_lr": 0.1, "schedule": "constant"}, "final_lr: 0.1 applies only to `schedule=cos"),
        ({"local_size": 8}, "local_size: applies to local crops; give `local_crops` too."),
        ({"patch": 4}, "patch: 4 applies only to vision transformers"),
        ({"gpus": 2}, "gpus: unknown setting. Use `devices` (the number of devices per machine)."),
    ],
)
def test_a_mistake_in_python_is_told_in_the_names_of_python(settings: dict, message: str):
    with pytest.raises(UserError) as error:
        unmix.pretrain(**{"data": "digits", "run": "r", **settings})
    assert str(error.value).startswith(message)
    assert "--" not in str(error.value)
    assert error.value.on_command_line().startswith(f"--{error.value.parameter}: ")
    assert not Path("r").exists()
