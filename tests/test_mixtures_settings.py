"""The flags of label-space mixtures: which operator they make, and which do not apply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unmix.config import MIXTURES, MixtureSettings, Settings
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
    assert isinstance(chosen.draw((4, 3, 32, 32), generator_for(0)), MixtureDraw)
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
            "gridmix or patchmix.",
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
