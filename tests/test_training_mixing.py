"""A run's mixture and rule from its flags: each makes a step, and mistakes are one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from unmix.backbones import build
from unmix.config import MIXTURES, Settings
from unmix.credit import RULES
from unmix.mixtures import PatchMixture, RegionSwap, ResizeMix, UnMix, Weight
from unmix.randomness import generator_for
from unmix.training.loading.loaders import Batch
from unmix.training.run.parts import Parts, build_parts

SMALL: dict[str, Any] = {
    "data": "photos", "limit": 64, "size": 16, "batch_size": 16, "backbone": "resnet10",
    "width": 0.25, "device": "cpu", "precision": "32",
}  # fmt: skip
MOCO = {"method": "moco", "queue_size": 32, "bn_splits": 2, "shuffle_bn": False}
VIT = {"backbone": "timm:vit_tiny_patch16_224", "width": 1.0, "patch": 4, "bn_splits": 1}
NEEDS: dict[str, dict[str, Any]] = {
    "patchmix": {**VIT, "unmix_patch": 4},
    "manifold": {"unmix_layer": "layer2"},
    "dirichlet": {"unmix_images": 3},
}


def parts_of(**words: Any) -> Parts:
    return build_parts(Settings.of({**SMALL, **words}))


def one_step(parts: Parts) -> Any:
    result = parts.module.compute(Batch(torch.arange(16)), generator_for(0))
    result.loss.backward()
    return result


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_mixture_makes_a_step_from_its_flag(mixture: str) -> None:
    words = {**MOCO, "unmix": True, "unmix_mixture": mixture, **NEEDS.get(mixture, {})}
    clean = one_step(parts_of(**{**words, "unmix": False}))
    result = one_step(parts_of(**words))
    assert result.mixed is not None
    assert result.mixed.isfinite()
    # The clean part is what it is without a mixture, but for the extra crops that shift the draws.
    if mixture not in ("scalemix", "cropmix"):
        torch.testing.assert_close(result.clean, clean.loss.detach())
    assert not torch.equal(result.mixed, result.clean)


@pytest.mark.parametrize("pairing", ["reverse", "permutation", "halves", "neighbor",
                                     "second_view"])  # fmt: skip
def test_every_pairing_makes_a_step(pairing: str) -> None:
    result = one_step(parts_of(**MOCO, unmix=True, unmix_pairing=pairing))
    assert result.mixed is not None
    assert result.mixed.isfinite()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_the_mixture_that_it_was_published_with(rule: str, tmp_path: Path) -> None:
    special = {"mixbt": "barlow", "swav_released": "swav", "exact": "distill"}
    method = special.get(rule, "moco")
    if method == "distill":
        torch.save(build("resnet10", width=0.125, size=16).state_dict(), tmp_path / "t.pth")
    words: dict[str, Any] = {
        "moco": MOCO,
        "barlow": {"method": "barlow", "dim": 16, "hidden": 16},
        "swav": {"method": "swav", "prototypes": 8},
        "distill": {"method": "distill", "teacher": str(tmp_path / "t.pth")},
    }[method]
    if rule == "esvit":
        words = {**words, "symmetric": True}
    if rule == "patchmix":
        words = {**words, **VIT}
    parts = parts_of(**words, unmix=True, unmix_rule=rule)
    published = {
        "imix": UnMix(1.0, per="sample", pairing="permutation", weight=Weight(larger=True)),
        "mixco": UnMix(1.0, per="sample", pairing="halves"),
        "regioncl": RegionSwap(),
        "patchmix": PatchMixture(4),
        "esvit": UnMix(0.5, alpha=1.0, global_alpha=0.8),
        "mixbt": UnMix(1.0, per="batch", pairing="permutation"),
        **dict.fromkeys(
            ("sdmp", "sdmp_released"),
            ResizeMix(weight=Weight("uniform", low=0.1, high=0.9), per="sample"),
        ),
    }
    assert parts.module.label_space == published.get(rule, UnMix())
    result = one_step(parts)
    assert (result.clean is None) == (rule in ("replace", "imix", "image_space", "esvit"))


def test_numbers_of_a_rule_reach_it() -> None:
    parts = parts_of(**MOCO, unmix=True, unmix_rule="mixco", unmix_temperature=0.2, unmix_share=0.5)
    assert parts.module.rule.temperature == 0.2  # type: ignore[attr-defined]
    assert parts.module.rule.share == 0.5


def test_mixco_is_encoded_in_one_forward_unless_told_or_impossible() -> None:
    """What is given counts, a run of before that says no goes on with two."""
    mixco = {**MOCO, "unmix": True, "unmix_rule": "mixco"}
    assert parts_of(**mixco).module.joint is True
    assert parts_of(**mixco, unmix_joint=False).module.joint is False
    assert parts_of(**mixco, unmix_pairing="neighbor").module.joint is False
    assert parts_of(**MOCO, unmix=True).module.joint is False
    assert parts_of(**MOCO, unmix=True, unmix_joint=True).module.joint is True


def test_manifold_mixes_a_layer_and_not_the_pixels() -> None:
    """The mixture's query depends on the layer, and on nothing drawn anew."""
    losses = [
        float(one_step(parts_of(**MOCO, unmix=True, unmix_mixture="manifold", unmix_layer=x)).mixed)
        for x in ("layer1", "layer4", "layer1")
    ]
    assert losses[0] == losses[2] != losses[1]


def test_an_odd_last_batch_loses_one_image_under_sdmp() -> None:
    """All others have a partner; 64 - 3 * 20 - 1 = 3 would leave the middle one alone."""
    parts = parts_of(method="byol", dim=16, hidden=16, unmix=True, unmix_rule="sdmp")
    seen: list[int] = []
    compute = parts.module.compute

    def spy(batch: Batch, generator: torch.Generator) -> Any:
        seen.append(len(batch.index))
        return compute(batch, generator)

    parts.module.compute = spy  # type: ignore[method-assign]
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches: Any = [Batch(torch.arange(7))]
    trainer.fit(parts.module, DataLoader(batches, batch_size=None, collate_fn=lambda b: b))
    assert seen == [6]


@pytest.mark.parametrize(
    "words",
    [{"unmix_mixture": "scalemix"}, {"unmix_mixture": "cropmix"},
     {"unmix_pairing": "second_view", "unmix_per": "sample"}],
    ids=str,
)  # fmt: skip
def test_a_loss_of_the_batch_takes_a_draw_a_sample_where_all_shares_are_alike(
    words: dict[str, Any],
) -> None:
    """Crops of one image: whatever is drawn for a sample, the mixture is its own."""
    result = one_step(parts_of(method="vicreg", dim=16, hidden=16, unmix=True, **words))
    assert result.mixed is not None
    assert result.mixed.isfinite()


def test_a_last_batch_that_halves_leave_too_few_mixtures_of_is_left_out() -> None:
    """Of 19 images in batches of 16 the last 3 would make one mixture, too few for batch norm."""
    words: dict[str, Any] = {**MOCO, "limit": 19, "unmix": True}
    assert len(parts_of(**words, unmix_pairing="halves").module.order) == 1
    assert len(parts_of(**words).module.order) == 2


MISTAKES: list[tuple[list[str], str]] = [
    (
        ["--method", "barlow", "--unmix", "--unmix_rule", "imix"],
        "--unmix_rule: imix does not apply to --method barlow: its loss is a scalar per batch",
    ),
    (
        ["--method", "vicreg", "--unmix", "--unmix_per", "sample"],
        "--unmix_per: sample does not apply to --method vicreg",
    ),
    (
        ["--method", "moco", "--unmix", "--unmix_rule", "imixx"],
        "--unmix_rule: 'imixx' is unknown. Did you mean 'imix'?",
    ),
    (
        ["--method", "simclr", "--local_crops", "4"],
        "--local_crops: 4 small crops do not go with --method simclr, which compares 2 views of "
        "one size; leave it out, or use --method deepclusterv2, dino, ibot, lejepa, simdino or "
        "swav.",
    ),
    (
        [
            "--method",
            "dino",
            "--backbone",
            "timm:vit_tiny_patch16_224",
            "--width",
            "1",
            "--patch",
            "8",
            "--local_crops",
            "2",
            "--local_size",
            "12",
        ],
        "--local_size: patches of 8 pixels do not fill crops of 12; use a multiple of 8.",
    ),
    (
        [
            "--method",
            "dino",
            "--backbone",
            "timm:mixer_s32_224",
            "--width",
            "1",
            "--local_crops",
            "2",
            "--local_size",
            "16",
        ],
        "--local_size: 16 is no size of images that timm:mixer_s32_224 takes when it is built for",
    ),
    (
        ["--method", "dino", "--local_crops", "3", "--unmix", "--unmix_rule", "imix"],
        "--unmix_rule: i-Mix replaces the clean loss by that of the first view's mixtures, so 3 "
        "small crops would be in no loss; use esvit or replace with --unmix_every_crop, which mix "
        "them, unmix, which keeps the clean loss, or no small crops (--local_crops 0).",
    ),
    (["--method", "swav", "--prototypes", "1"], "--prototypes: 1 is out of range"),
    (
        ["--method", "byol", "--unmix", "--unmix_rule", "sdmp", "--batch_size", "33"],
        "--batch_size: 33 images for --unmix_rule sdmp leave one without a partner; use 34.",
    ),
    (
        ["--method", "simclr", "--unmix", "--unmix_mixture", "patchmix"],
        "--unmix_mixture: patchmix mixes the patches that a ViT sees, and resnet10 is not one",
    ),
    (
        ["--method", "wmse", "--sub_batch", "16", "--dim", "32"],
        "--sub_batch: the covariance of 32 features over 16 samples is singular",
    ),
    (
        ["--method", "moco", "--unmix", "--unmix_mixture", "manifold", "--unmix_layer", "layer7"],
        "--unmix_layer: there is no layer 'layer7'; there are conv1",
    ),
    (
        ["--method", "byol", "--unmix", "--unmix_rule", "sdmp", "--unmix_mixture", "dirichlet"],
        "--unmix_mixture: dirichlet does not apply to --unmix_rule sdmp, which is for mixtures",
    ),
    (
        ["--method", "byol", "--unmix", "--unmix_rule", "sdmp", "--unmix_pairing", "halves"],
        "--unmix_pairing: halves does not apply to --unmix_rule sdmp",
    ),
    (
        [
            "--method",
            "byol",
            "--unmix",
            "--unmix_rule",
            "sdmp",
            "--unmix_mixture",
            "manifold",
            "--unmix_layer",
            "layer2",
        ],
        "--unmix_mixture: manifold mixes features of the first view, and --unmix_rule sdmp pixels",
    ),
    (
        [
            "--method",
            "wmse",
            "--batch_size",
            "64",
            "--dim",
            "32",
            "--epsilon",
            "0",
            "--unmix",
            "--unmix_pairing",
            "halves",
        ],
        "--unmix_pairing: halves makes 32 mixtures of 64 images, and --method wmse needs 33; use "
        "--batch_size 66 or more, or reverse.",
    ),
    (
        ["--method", "moco", "--unmix", "--unmix_rule", "imix", "--unmix_joint"],
        "--unmix_joint: --unmix_rule imix replaces the clean view",
    ),
    (
        ["--method", "moco", "--unmix", "--unmix_pairing", "neighbor", "--unmix_joint"],
        "--unmix_joint: does not apply to pairing by neighbors",
    ),
    (
        ["--method", "moco", "--unmix", "--unmix_temperature", "0.1"],
        "--unmix_temperature: is not for --unmix_rule unmix.",
    ),
]


@pytest.mark.parametrize(("words", "wanted"), MISTAKES, ids=[" ".join(w[1:]) for w, _ in MISTAKES])
def test_what_does_not_apply_is_refused_in_one_line(
    words: list[str], wanted: str, refuse: Callable[..., str], tmp_path: Path
) -> None:
    run = tmp_path / "nowhere"
    assert wanted in refuse("pretrain", *words, "--limit", "64", "--run", run)
