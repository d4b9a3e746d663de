"""Settings of the second view, from the user's input to the run folder and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from unmix.cli import parse_pretrain
from unmix.config import Settings
from unmix.config.recipes import recipe, resolve
from unmix.config.saved import saved_settings
from unmix.errors import UserError
from unmix.training import RunFolder
from unmix.training.run.parts import build_parts
from unmix.training.run.pretrain import settings_for

WEAK = {"jitter_p": 0.0, "gray_p": 0.0, "crop_scale_min": 0.5}
FLAT = {f"second_{name}": value for name, value in WEAK.items()}


def test_a_mapping_and_flags_give_the_same_settings(tmp_path: Path) -> None:
    file = tmp_path / "weak.yaml"
    file.write_text(yaml.safe_dump({"method": "moco", "second_view": WEAK}))
    assert recipe(str(file)) == {"method": "moco", **FLAT}
    flags = [word for name, value in FLAT.items() for word in (f"--{name}", str(value))]
    _, given = parse_pretrain(["--method", "moco", *flags])
    expected = settings_for({"method": "moco", **FLAT})[0]
    for words, config in (({}, str(file)), ({"method": "moco", "second_view": WEAK}, None)):
        found = settings_for(words, config)[0]
        assert found.views == expected.views
    assert settings_for(given)[0].views == expected.views
    assert expected.views.of_view("second").jitter_p == 0
    assert expected.views.of_view("first").jitter_p > 0


def test_later_sources_override_single_settings_of_the_mapping(tmp_path: Path) -> None:
    file = tmp_path / "weak.yaml"
    file.write_text(yaml.safe_dump({"second_view": WEAK, "local_view": {"crop_scale_min": 0.1}}))
    found = resolve({"second_view": {"gray_p": 0.3}, "second_jitter_p": 0.1}, str(file))[0]
    assert found["second_jitter_p"] == 0.1
    assert found["second_gray_p"] == 0.3
    assert found["second_crop_scale_min"] == 0.5
    assert found["local_scale_min"] == 0.1
    assert "second_view" not in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"second_view": 3}, "second_view: 3 is not a mapping"),
        ({"second_view": {"jiter_p": 0}}, "second_jiter_p.*Did you mean .*second_jitter_p"),
        ({"second_view": {"gray_p": 2}}, "second_gray_p must be at least 0 and at most 1, got 2"),
        ({"second_view": {"gray_p": 0}, "second_gray_p": 1}, "gray_p and second_gray_p are the"),
        ({"local_blur_p": 0.5}, "local_blur_p: applies to local crops"),
        (
            {"method": "simclr", "local_view": {"scale_min": 0.1}},
            "local_scale_min: applies to",
        ),
    ],
)
def test_invalid_view_settings_are_one_line_errors(words: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settings_for(words)
    assert "\n" not in str(caught.value)


def test_a_recipe_may_have_settings_for_possible_local_crops() -> None:
    words = {"method": "dino", "local_crops": 0}
    assert settings_for(words, "dino-imagenet")[0].views.local_blur_p == 0.5


def test_a_method_with_one_view_refuses_second_settings() -> None:
    words = {"method": "insdis", "data": "digits", "limit": 32, "batch_size": 16, "device": "cpu"}
    with pytest.raises(UserError, match="--second_blur_p: does not apply to --method insdis"):
        build_parts(Settings.of({**words, "negatives": 8, "second_blur_p": 0.5}))


def test_a_run_folder_keeps_and_compares_view_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    settings = settings_for({"method": "moco", "second_view": WEAK})[0]
    folder.write_settings(settings)
    assert folder.settings().views == settings.views
    folder.check_same(settings.flat())
    with pytest.raises(UserError, match=r"its second_jitter_p is 0\.0, not 0\.5"):
        folder.check_same(settings.with_changes(second_jitter_p=0.5).flat())
    again = settings_for({"run": str(tmp_path), "second_view": {"gray_p": 0.1}})[0]
    assert (again.views.second_gray_p, again.views.second_jitter_p) == (0.1, 0.0)
    saved = yaml.safe_load(folder.config.read_text())
    assert FLAT.items() <= saved.items()


def test_a_file_of_an_earlier_version_has_defaults(tmp_path: Path) -> None:
    """The second view differs only in what that version could set."""
    words = {"method": "moco", "second_blur_p": 0.1, "second_solarize_p": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(words))
    views = Settings.of(saved_settings(tmp_path)).views
    assert views.given_for("second") == ["second_blur_p"]
