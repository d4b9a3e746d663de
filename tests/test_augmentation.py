"""`augmentation` names the settings of the views: what it stands for, and what overrides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from unmix.config import Settings, ViewSettings, field_names
from unmix.config.augmentation import AUGMENTATIONS, PRESETS, augmentation_of, layered
from unmix.config.recipes import recipe_names, resolve
from unmix.config.settings_parser import parse_settings
from unmix.errors import UserError
from unmix.methods import METHODS
from unmix.studies.naming import Named, by_augmentation, differing, names_of
from unmix.studies.plan import Study
from unmix.training.run.notes import notes_on_views
from unmix.training.run.pretrain import settings_for

# Written out, as the evidence's study files have them.
NONE = {"crop_scale_min": 1, "crop_ratio": (1, 1), "flip_p": 0, "jitter_p": 0, "gray_p": 0}


def views(given: dict[str, Any], config: Any = None) -> ViewSettings:
    return Settings.of(resolve(given, config)[0]).views


def test_none_is_the_whole_image_as_it_is_and_crop_flip_moves_no_color() -> None:
    plain = views({"augmentation": "none"})
    assert plain == ViewSettings(**NONE)  # type: ignore[arg-type]
    assert plain == views(NONE)
    assert views({"augmentation": "crop-flip"}) == ViewSettings(jitter_p=0, gray_p=0)
    assert views({}) == views({"augmentation": "recipe"}) == ViewSettings()


@pytest.mark.parametrize("name", recipe_names())
def test_it_overrides_all_that_a_recipe_says_of_views(name: str) -> None:
    """Local crops and what the second view alone has are augmentation too."""
    own = resolve({}, name)[0]
    found = resolve({"augmentation": "none"}, name)[0]
    assert set(found) & set(field_names("views")) == set()
    rest = {k: v for k, v in own.items() if k not in field_names("views")}
    assert found == {**rest, "augmentation": "none"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_name_is_its_preset(name: str) -> None:
    assert views({"method": "dino", "augmentation": name}) == PRESETS[name]
    flat = Settings.of({"augmentation": name}).flat()
    assert Settings.of(flat).flat() == flat
    assert asdict(PRESETS[augmentation_of(flat)]) == asdict(PRESETS[name])  # cmc is crop-flip


def test_single_settings_of_the_same_source_override_it() -> None:
    assert views({"augmentation": "none", "flip_p": 0.5}) == ViewSettings(**{**NONE, "flip_p": 0.5})  # type: ignore[arg-type]
    assert views({"augmentation": "none", "second_view": {"blur_p": 1.0}}).second_blur_p == 1.0


def test_of_several_sources_the_last_that_names_one_counts(tmp_path: Path) -> None:
    base, changed = tmp_path / "base.yaml", tmp_path / "changed.yaml"
    base.write_text("augmentation: none\ngray_p: 0.3\n")
    changed.write_text("extends: base.yaml\nflip_p: 0.5\n")
    assert views({}, str(changed)) == ViewSettings(**{**NONE, "gray_p": 0.3, "flip_p": 0.5})  # type: ignore[arg-type]
    assert views({"augmentation": "crop-flip"}, str(changed)) == PRESETS["crop-flip"]
    # What the files say of single settings stays, and none no longer clears the recipe's.
    own = views({"method": "byol", "augmentation": "recipe"}, str(changed))
    assert own == views({"method": "byol", "gray_p": 0.3, "flip_p": 0.5})


def test_changed_settings_take_it_too() -> None:
    assert Settings().with_changes(augmentation="none").views == PRESETS["none"]
    kept = Settings.of({"augmentation": "none"}).with_changes(flip_p=0.5)
    assert kept.views == ViewSettings(**{**NONE, "flip_p": 0.5})  # type: ignore[arg-type]


def test_layers_without_one_are_merged_in_order() -> None:
    assert layered([{"lr": 1, "flip_p": 0}, {"lr": 2}]) == {"lr": 2, "flip_p": 0}


@pytest.mark.parametrize("command", ["pretrain", "plan", "bench"])
def test_the_command_line_takes_it_after_the_recipe(command: str) -> None:
    args = ["--config", "dino", "--augmentation", "none", "--flip_p", "0.25"]
    config, given, _ = parse_settings(command, args)
    assert given == {"augmentation": "none", "flip_p": 0.25}
    assert views(given, config) == ViewSettings(**{**NONE, "flip_p": 0.25})  # type: ignore[arg-type]


def test_an_unknown_name_is_refused_with_the_nearest(refuse: Callable[..., str]) -> None:
    told = refuse("pretrain", "--augmentation", "crop_flip")
    assert "--augmentation: 'crop_flip' is unknown. Did you mean 'crop-flip'?" in told
    with pytest.raises(UserError, match=r"'no' is unknown. Did you mean 'none'\?"):
        Settings.of({"augmentation": False})  # as YAML reads `no`


def test_a_resumed_run_keeps_its_own(tmp_path: Path) -> None:
    """With another one the settings differ, and a run with other settings is refused."""
    flat = Settings.of({"run": str(tmp_path)}).flat()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(flat))
    same, _ = settings_for({"run": str(tmp_path)})
    assert same.views == ViewSettings()
    assert settings_for({"run": str(tmp_path), "augmentation": "none"})[0].views == PRESETS["none"]


def test_a_condition_of_a_study_overrides_the_base(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("""
        base: {data: photos, flip_p: 0.3}
        vary: {augmentation: [recipe, none, crop-flip], mixture: [none, unmix]}
        seeds: 0-5
    """)
    study = Study.load(path)
    assert list(study.conditions)[2:4] == ["augmentation=none, none", "augmentation=none, unmix"]
    found = {name: study.resolved(name, 0).views for name in study.conditions}
    assert found["augmentation=recipe, unmix"] == ViewSettings(flip_p=0.3)
    assert found["augmentation=none, unmix"] == PRESETS["none"]
    assert found["augmentation=crop-flip, none"] == PRESETS["crop-flip"]


@pytest.mark.parametrize(
    ("given", "nothing"),
    [
        ({"augmentation": "none"}, True),
        ({"augmentation": "none", "jitter_p": 1.0, "jitter": (0, 0, 0, 0)}, True),
        ({"augmentation": "none", "flip_p": 0.1}, False),
        ({"augmentation": "none", "second_gray_p": 0.1}, False),
        ({"augmentation": "none", "local_crops": 2}, False),
        ({"augmentation": "none", "crop_scale_min": 0.9}, False),
        ({"augmentation": "crop-flip"}, False),
        ({}, False),
    ],
)
def test_views_that_are_all_alike_are_known(given: dict[str, Any], nothing: bool) -> None:
    assert views(given).changes_nothing == nothing


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        ({"augmentation": "none"}, True),
        ({"augmentation": "none", "unmix": True}, False),
        ({"augmentation": "none", "IM": True}, False),
        ({"augmentation": "none", "method": "cmc"}, False),  # color and lightness are its views
        ({}, False),
    ],
)
def test_a_run_says_what_its_views_are(given: dict[str, Any], noted: bool) -> None:
    settings = Settings.of(resolve(given)[0])
    lines = notes_on_views(settings, METHODS[settings.run.method])  # type: ignore[arg-type]
    assert ("augmentation: none" in lines) == ("augmentation" in given)
    assert any("all the same" in line for line in lines) == noted


def conditions(*given: dict[str, Any]) -> list[Named]:
    return [Named("MoCo", "moco", "none", Settings.of(each).flat()) for each in given]


def test_conditions_are_told_apart_by_its_name_however_it_was_given() -> None:
    several = conditions({}, NONE, {"augmentation": "crop-flip"})
    assert names_of(several) == [f"augmentation {n}" for n in ("recipe", "none", "crop-flip")]
    told = differing({str(n): one.settings for n, one in enumerate(several)})
    assert told == {"augmentation": {"0": "recipe", "1": "none", "2": "crop-flip"}}


def test_what_has_no_name_is_told_by_single_settings() -> None:
    none, flipped = {"augmentation": "none"}, {"augmentation": "none", "flip_p": 0.5}
    assert names_of(conditions(none, flipped)) == ["flip p 0", "flip p 0.5"]
    assert names_of(conditions({}, {"flip_p": 0.1})) == ["flip p 0.5", "flip p 0.1"]
    same = [one.settings for one in conditions(NONE, none)]
    assert all("augmentation" not in own for own in by_augmentation(same))
    weights = {"method": "moco", "epochs": 3}  # imported: how it was trained is not known
    assert by_augmentation([weights, *same, conditions({})[0].settings])[0] == weights


def test_the_choices_are_the_presets_and_the_recipes_own() -> None:
    assert ("recipe", *PRESETS) == AUGMENTATIONS
