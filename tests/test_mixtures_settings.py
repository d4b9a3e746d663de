"""The flags of label-space mixtures: which operator they make, and which do not apply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from unmix.cli import main
from unmix.config import MIXTURES, MixtureSettings, Settings
from unmix.config.compatibility import check_mixture
from unmix.config.earlier import upgraded
from unmix.config.recipes import recipe, recipe_names
from unmix.credit import RULES
from unmix.errors import UserError
from unmix.mixtures import (
    CropMix,
    DirichletMixture,
    FMix,
    GridMix,
    ManifoldMixture,
    MixtureDraw,
    MixtureOperator,
    PatchMixture,
    ResizeMix,
    ScaleMix,
    UnMix,
    Weight,
)
from unmix.randomness import generator_for
from unmix.training.run.pretrain import settings_for

IMIX, SDMP = RULES["imix"].mixture, RULES["sdmp"].mixture


def operator(published: MixtureOperator | None = None, **flags: Any) -> Any:
    return MixtureSettings(unmix=True, **flags).label_space(published)


def flags_for(mixture: str) -> dict[str, Any]:
    return {"unmix_layer": "layer2"} if mixture == "manifold" else {}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, UnMix()),
        ({"unmix_mixture": "coin", "unmix_prob": 0.2, "beta": 0.4}, UnMix(
            0.2, weight=Weight(alpha=0.4)
        )),
        ({"unmix_mixture": "global", "unmix_larger": True}, UnMix(1, weight=Weight(larger=True))),
        ({"unmix_mixture": "region", "unmix_per": "sample"}, UnMix(0, per="sample")),
        ({"unmix_mixture": "resizemix", "unmix_pairing": "halves"}, ResizeMix(pairing="halves")),
        ({"unmix_mixture": "gridmix", "unmix_patch": 8}, GridMix(cells=8)),
        ({"unmix_mixture": "fmix", "unmix_weight": "uniform"}, FMix(weight=Weight("uniform"))),
        ({"unmix_mixture": "scalemix"}, ScaleMix()),
        ({"unmix_mixture": "cropmix", "unmix_images": 3}, CropMix(images=3)),
        ({"unmix_mixture": "patchmix", "unmix_patch": 4, "unmix_images": 3}, PatchMixture(4, 3)),
        ({"unmix_mixture": "manifold", "unmix_layer": "blocks.5"}, ManifoldMixture("blocks.5")),
        ({"unmix_mixture": "dirichlet", "beta": 0.2}, DirichletMixture(alpha=0.2, per="batch")),
    ],
)  # fmt: skip
def test_flags_stand_for_operators(flags, expected):
    assert operator(**flags) == expected
    assert MixtureSettings(**flags).label_space() is None


def test_what_a_rule_was_published_with_stands_in_for_flags_that_are_not_given():
    assert operator(IMIX) == UnMix(
        1, per="sample", pairing="permutation", weight=Weight(larger=True)
    )
    assert operator(IMIX, unmix_mixture="fmix", unmix_per="batch", unmix_larger=False) == FMix(
        per="batch", pairing="permutation", weight=Weight()
    )
    law = Weight("uniform", low=0.1, high=0.9)
    assert operator(SDMP) == ResizeMix(weight=law, per="sample")
    assert operator(SDMP, unmix_weight="beta").weight.draw(200, generator_for(0)).max() > 0.9
    assert operator(IMIX, unmix_mixture="dirichlet") == DirichletMixture(per="sample")
    assert operator(IMIX, unmix_mixture="patchmix") == PatchMixture(per="sample")


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_mixture_draws_and_says_what_it_does(mixture):
    chosen = operator(unmix_mixture=mixture, **flags_for(mixture))
    assert isinstance(chosen, MixtureOperator)
    images = torch.rand(4, 3, 32, 32, generator=generator_for(1))
    draw = chosen.draw_for(images, generator_for(0), attention=images[:, 0])
    assert isinstance(draw, MixtureDraw)
    text, once = chosen.describe(), chosen.one_draw
    assert "\n" not in text
    assert once.startswith("one ")


@pytest.mark.parametrize(
    ("flags", "name", "folder"),
    [
        ({}, "Un-Mix", "un-mix"),
        ({"unmix_mixture": "coin"}, "Un-Mix", "un-mix"),
        ({"unmix_mixture": "resizemix"}, "Un-Mix (resizemix)", "un-mix-resizemix"),
        ({"unmix_rule": "imix"}, "i-Mix", "i-mix"),
        ({"unmix_rule": "imix", "unmix_mixture": "coin"}, "i-Mix (coin)", "i-mix-coin"),
        ({"unmix_rule": "replace", "IM": True}, "IM + Un-Mix replacing", "im+un-mixreplacing"),
        ({"unmix_rule": "swav_released"}, "SwAV as released", "swavasreleased"),
        ({"unmix_rule": "new"}, "new", "new"),
    ],
)
def test_names_are_for_tables_and_for_paths(flags, name, folder):
    settings = MixtureSettings(unmix=True, **flags)
    assert settings.name == name
    assert settings.folder == folder
    run = Settings.of({"method": "moco", "data": "photos", "unmix": True, **flags})
    assert run.folder == Path("runs") / f"moco-photos-{folder}-seed0"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"unmix_mixture": "fmi"},
            "--unmix_mixture: 'fmi' is unknown. Did you mean 'fmix'? Known: coin, global, region",
        ),
        ({"unmix_per": "image"}, "--unmix_per: 'image' is unknown. Known: batch, sample."),
        ({"unmix_pairing": "neighbours"}, "--unmix_pairing: 'neighbours' is unknown. Did you mean"),
        ({"unmix_weight": "dirichlet"}, "--unmix_weight: 'dirichlet' is unknown."),
        ({"unmix_rule": "un mix"}, "--unmix_rule: 'un mix' is no word, such as unmix."),
        (
            {"unmix_layer": "layer2"},
            "--unmix_layer: 'layer2' does not apply to --unmix_mixture coin; leave it out, or "
            "use manifold.",
        ),
        (
            {"unmix_mixture": "manifold"},
            "--unmix_layer: --unmix_mixture manifold needs the name of a layer, such as layer2 of",
        ),
        (
            {"unmix_mixture": "dirichlet", "unmix_images": 1},
            "--unmix_images: 1 is out of range; it must be at least 2.",
        ),
        (
            {"unmix_mixture": "cropmix", "unmix_images": 5},
            "--unmix_images: 5 is out of range; it must be at least 2 and at most 4.",
        ),
        (
            {"unmix_images": 3},
            "--unmix_images: 3 does not apply to --unmix_mixture coin; leave it out, or use "
            "cropmix, patchmix or dirichlet.",
        ),
        (
            {"unmix_mixture": "fmix", "unmix_prob": 0.2},
            "--unmix_prob: 0.2 does not apply to --unmix_mixture fmix; leave it out, or use coin.",
        ),
        (
            {"unmix_mixture": "fmix", "unmix_prob": 0.5},
            "--unmix_prob: 0.5 does not apply to --unmix_mixture fmix; leave it out, or use coin.",
        ),
        (
            {"unmix_rule": "imix", "unmix_prob": 0.3},
            "--unmix_prob: 0.3 does not apply to --unmix_mixture global; leave it out, or use",
        ),
        (
            {"unmix_weight": "uniform", "beta": 0.5},
            "--beta: 0.5 does not apply to --unmix_weight uniform; leave it out.",
        ),
        (
            {"unmix_rule": "imix", "unmix_temperature": 0.2},
            "--unmix_temperature: is not for --unmix_rule imix.",
        ),
        (
            {"unmix_mixture": "patchmix", "unmix_weight": "beta"},
            "--unmix_weight: 'beta' does not apply to --unmix_mixture patchmix; leave it out",
        ),
        (
            {"unmix_mixture": "scalemix", "unmix_pairing": "reverse"},
            "--unmix_pairing: 'reverse' does not apply to --unmix_mixture scalemix",
        ),
        (
            {"unmix_mixture": "fmix", "unmix_patch": 4},
            "--unmix_patch: 4 does not apply to --unmix_mixture fmix; leave it out, or use "
            "gridmix, mixmask, attentivemix or patchmix.",
        ),
        ({"unmix_mixture": "patchmix", "unmix_patch": 0}, "--unmix_patch: 0 is out of range"),
    ],
)
def test_flags_that_do_not_apply_are_refused_in_one_line(flags, message):
    with pytest.raises(UserError) as caught:
        MixtureSettings(**flags)
    assert caught.value.on_command_line().startswith(message)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


def test_a_value_that_is_given_means_what_it_says_though_it_be_the_default():
    """`--beta 1` chooses Beta(1, 1) where the mixture or the rule was published with another."""
    assert operator(unmix_mixture="resizemix", beta=1.0) == ResizeMix(weight=Weight())
    assert operator(unmix_mixture="resizemix") == ResizeMix()
    assert operator(unmix_mixture="cropmix", beta=1.0) == CropMix(weight=Weight())
    assert operator(unmix_mixture="scalemix", beta=1.0) == ScaleMix(weight=Weight())
    given = operator(SDMP, beta=1.0)
    assert (given.weight.distribution, given.weight.alpha) == ("beta", 1.0)
    assert operator(unmix_prob=0.5) == UnMix(0.5)


@pytest.mark.parametrize("how", ["python", "yaml", "command line"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"unmix_mixture": "fmix"},
            "--unmix_mixture: does nothing without --unmix; add --unmix, or leave it out.",
        ),
        ({"beta": 1.0}, "--beta: does nothing without --unmix; add --unmix, or leave it out."),
        (
            {"unmix_rule": "unmix"},
            "--unmix_rule: does nothing without --unmix; add --unmix, or leave it out.",
        ),
        ({"g_prob": 0.9}, "--g_prob: does nothing without --IM; add --IM, or leave it out."),
        ({"IM_type": "IM"}, "--IM_type: does nothing without --IM; add --IM, or leave it out."),
        (
            {"unmix": True, "unmix_mixture": "fmix", "unmix_prob": 0.5},
            "--unmix_prob: 0.5 does not apply to --unmix_mixture fmix",
        ),
    ],
)
def test_settings_of_a_mixture_that_is_not_used_are_refused(given, message, how, tmp_path, capsys):
    if how == "command line":
        flags = [
            f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()
        ]
        assert main(["pretrain", *flags, "--run", str(tmp_path / "run")]) == 2
        assert f"error: {message}" in capsys.readouterr().err
        return
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(given))
    with pytest.raises(UserError) as caught:
        settings_for(given if how == "python" else {}, None if how == "python" else str(config))
    assert caught.value.on_command_line().startswith(message)
    assert "--" not in str(caught.value)


def test_a_mixture_that_is_switched_off_keeps_its_settings(tmp_path):
    """The plain condition of a study, or a recipe of a mixture without it."""
    for given in ({"unmix": False, "unmix_mixture": "fmix"}, {"IM": False, "g_prob": 0.9}):
        assert settings_for(given)[0].mixture.name == "none"
    config = tmp_path / "config.yaml"
    config.write_text("unmix: true\nunmix_mixture: fmix\nbeta: 0.5\n")
    assert settings_for({"unmix": False}, str(config))[0].mixture.name == "none"


def test_the_recipes_that_ship_say_nothing_of_mixtures_that_they_do_not_use():
    refused = {}
    for name in recipe_names():
        try:
            check_mixture(recipe(name), Settings.of(recipe(name)))
        except UserError as error:
            refused[name] = str(error)
    assert refused == {}


def test_a_run_of_an_earlier_version_goes_on_with_the_distribution_that_it_had():
    """Its config.yaml has beta: 1.0 and unmix_prob: 0.5 where nothing was given."""
    words = {**Settings.of({"method": "moco"}).flat(), "beta": 1.0, "unmix_prob": 0.5}
    words.update(unmix=True, unmix_mixture="resizemix")
    before = {k: v for k, v in words.items() if not k.startswith("second_")}
    assert Settings.of(upgraded(before)).mixture.label_space() == ResizeMix()
    words["unmix_prob"] = None
    again = Settings.of(upgraded(words)).mixture
    assert again.label_space() == ResizeMix(weight=Weight())
