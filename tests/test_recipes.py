"""Recipes: there is one for every method and data set, and each says where its numbers are from."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from unmix.config.recipes import (
    recipe,
    recipe_in_full,
    recipe_names,
    recipe_text,
    resolve,
    summary,
)
from unmix.errors import UserError
from unmix.methods import METHODS
from unmix.training.run.pretrain import settings_for

AT_LEAST = {
    "distill",
    "moco", "insdis", "cmc", "simclr", "byol", "simsiam", "swav", "barlow", "vicreg", "wmse",
    "nnclr", "mocov3", "dino", "pirl", "deepclusterv2", "lejepa",
    "ressl", "tico", "nnbyol", "all4one", "densecl", "simdino", "mae", "ibot", "ijepa",
    "simmim",
}  # fmt: skip
SIDES = {
    "cifar10": 32, "cifar100": 32, "stl10": 64, "tiny-imagenet": 64, "imagenet100": 224,
    "imagenet": 224,
}  # fmt: skip
TRAINING_IMAGES = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "stl10": 105_000,
    "tiny-imagenet": 100_000,
}

# The base rate, for a batch of 256, that the paper or its code states.
BASE_RATES = {
    "simclr-imagenet": 0.3,
    "byol-imagenet": 0.2,
    "simsiam-cifar10": 0.03,
    "simsiam-imagenet": 0.05,
    "barlow-imagenet": 0.2,
    "vicreg-imagenet": 0.2,
    "nnclr-imagenet": 0.3,
    "mocov3-imagenet": 0.6,
    "mocov3-vit-imagenet": 1.5e-4,
    "dino-imagenet": 0.03,
    "dino-vit-imagenet": 5e-4,
    "simdino-imagenet": 5e-4,
    "ijepa-imagenet": 1.25e-4,
    "mae-imagenet": 1.5e-4,
    "mae-mixmim-imagenet": 1.5e-4,
}


def layered(name: str) -> dict[str, Any]:
    """A recipe over that of its method."""
    return resolve({}, name)[0]


def comment(name: str) -> list[str]:
    return [line for line in recipe_text(name).splitlines() if line.startswith("#")]


def test_no_method_was_removed():
    assert set(METHODS) >= AT_LEAST


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [*SIDES, "photos"])
def test_every_method_has_a_recipe_for_every_data_set(method: str, data: str):
    """It is what `--method METHOD --data DATA` takes, over the recipe of the method."""
    words, used = resolve({"method": method, "data": data})
    assert used == [method, f"{method}-{data}"]
    assert words["size"] == SIDES.get(data, 32)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_makes_valid_settings(name: str):
    method = recipe(name)["method"]
    assert method in METHODS, f"{name} is for {method}, which the package does not have"
    settings, used = settings_for({}, name)
    assert used[-1] == name
    assert settings.run.method == method


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_is_and_where_its_numbers_are_from(name: str):
    first, second, *_ = comment(name)
    assert summary(name) == first.removeprefix("# ")
    assert first.endswith((".", ")."))
    assert re.match(r"# Source: \S+ \S", second)
    assert max(map(len, recipe_text(name).splitlines())) <= 100


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_lies_in_its_methods_folder_and_states_only_what_it_changes(name: str):
    own = recipe(name)
    method = own["method"]
    assert (resources.files("unmix") / "recipes" / method / f"{name}.yaml").is_file()
    assert name == method or name.startswith(f"{method}-")
    assert name == method or name.endswith(f"-{own['data']}")
    if name != method:
        base = recipe(method)
        assert not {word for word, value in own.items() if base.get(word) == value} - {"method"}
    stated = yaml.safe_load(recipe_text(name))
    if "extends" in stated:
        base = recipe(stated["extends"])
        assert not {word for word, value in stated.items() if base.get(word) == value}
        assert base["method"] == method


RESOLVED = json.loads((Path(__file__).parent / "recipes_resolved.json").read_text())


def digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def test_recipes_resolve_to_what_they_did_before_they_extended_each_other():
    """If a recipe was changed on purpose, put the digest that is shown into the table."""
    found = {name: digest(resolve({}, name)[0]) for name in RESOLVED}
    assert found == RESOLVED


def test_a_recipe_in_full_is_yaml_of_all_that_it_sets_under_its_own_comment():
    for name in recipe_names():
        text = recipe_in_full(name)
        assert yaml.safe_load(text) == recipe(name)
        assert text.startswith("\n".join(comment(name)))


def write(**files: str) -> None:
    for name, text in files.items():
        path = Path(name.replace("__", "/") + ".yaml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_file_extends_a_recipe_or_a_file_beside_it():
    write(
        mine="extends: moco-cifar100\nlr: 0.5\n",
        other__a="extends: b.yaml\nepochs: 3\n",
        other__b="extends: ../mine.yaml\nepochs: 2\nlr: 0.25\n",
        b="epochs: 7\n",
    )
    base = recipe("moco-cifar10")
    assert recipe("mine.yaml") == {**base, "data": "cifar100", "lr": 0.5}
    assert recipe("other/a.yaml") == {**base, "data": "cifar100", "lr": 0.25, "epochs": 3}
    assert settings_for({}, "other/a.yaml")[0].run.epochs == 3
    words, used = resolve({"epochs": 4}, ["other/a.yaml", "b.yaml"])
    assert (words["epochs"], words["lr"], words["symmetric"]) == (4, 0.25, True)
    assert used == ["moco", "other/a.yaml", "b.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: a.yaml\n", "config: a.yaml extends itself: a.yaml -> a.yaml."),
        ("extends: ./f/b.yaml\n", "extends itself: a.yaml -> f/b.yaml -> a.yaml."),
        (
            "extends: none.yaml\n",
            "a.yaml extends none.yaml, but there is no file none.yaml",
        ),
        (
            "extends: moco-cifr10\n",
            "extends 'moco-cifr10', which is not a recipe. Did you mean 'moco-cifar10'?",
        ),
        ("extends: [moco, byol]\n", "a.yaml extends ['moco', 'byol']; it must be the name of one"),
        ("extends: f\n", "config: f is a folder"),
    ],
)
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_file_that_extends_what_it_cannot_is_refused(text: str, message: str):
    write(a=text, f__b="extends: ../a.yaml\n")
    with pytest.raises(UserError) as error:
        resolve({}, "a.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "backbone", "setting", "value"),
    [
        ("extends: moco-photos\n", "timm:vit_tiny_patch16_224", "width", None),
        ("extends: moco-photos\nwidth: 0.5\n", "timm:vit_tiny_patch16_224", "width", 0.5),
        ("extends: moco-photos\n", "resnet18", "width", 0.25),
        ("extends: mae-cifar10\n", "resnet18", "patch", None),
    ],
)
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_of_another_network_a_file_keeps_what_it_says_itself_and_not_what_it_extends(
    text: str, backbone: str, setting: str, value: float | None
):
    write(a=text)
    assert resolve({"backbone": backbone}, "a.yaml")[0].get(setting) == value


@pytest.mark.parametrize("name", recipe_names())
def test_numbers_are_numbers(name: str):
    """YAML reads 2e-3, without a point, as a text."""
    for word, value in recipe(name).items():
        if isinstance(value, str):
            assert word == "backbone" or not re.match(r"[-\d.]", value), word


@pytest.mark.parametrize(("name", "rate"), BASE_RATES.items())
def test_the_rate_is_the_published_one_for_the_batch(name: str, rate: float):
    words = layered(name)
    assert words["lr"] == pytest.approx(rate * words["batch_size"] / 256)


@pytest.mark.parametrize("data", TRAINING_IMAGES)
@pytest.mark.parametrize("prefix", ["simclr", "byol", "wmse", "wmse-4"])
def test_the_whitening_codes_schedule(prefix: str, data: str):
    """500 warm-up steps of whole batches; a fifth of the rate 50 and 25 epochs before the end."""
    words = layered(f"{prefix}-{data}")
    steps = TRAINING_IMAGES[data] // words["batch_size"]
    assert abs(words["warmup_epochs"] * steps - 500) <= 0.01 * steps
    assert [words["epochs"] - m for m in words["milestones"]] == [50, 25]
    assert words["gamma"] == 0.2


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("wmse")])
def test_whitening_has_more_samples_than_dimensions(name: str):
    """Else the covariance of a sub-batch is singular."""
    words = {"batch_size": 128, **layered(name)}
    assert words["sub_batch"] > words["dim"]
    assert words["batch_size"] % words["sub_batch"] == 0


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize("method", ["moco", "simclr", "byol", "swav"])
def test_un_mix_changes_nothing_but_the_mixture(method: str, data: str):
    """The two recipes that are compared differ in the mixture alone."""
    plain, mixed = layered(f"{method}-{data}"), layered(f"{method}-unmix-{data}")
    assert mixed == {**plain, "unmix": True, "unmix_prob": 0.5, "beta": 1.0}
