"""Several mixtures a step: each has its own draw, forward and rule, and their losses are added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unmix
from harness import METHODS, RULES, N, build, published_draw, region_draw, views_of
from runs import MOCO_RUN
from unmix.config import MixtureSettings, Settings
from unmix.errors import UserError
from unmix.mixtures import FMix, MixMask, UnMix
from unmix.randomness import generator_for
from unmix.step import Mixture, objective, with_mixtures
from unmix.studies.cost import forward_equivalents
from unmix.training import pretrain
from unmix.training.run.parts import build_parts


def loss_of(name: str, mixtures: Any) -> Any:
    method = build(name).eval()  # so that samples do not meet in batch norm
    method.begin_step(unmix.methods.Progress(0, 12, 3))
    return objective(
        method, views_of(method), torch.arange(N), torch.Generator().manual_seed(0), mixtures
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_the_sum_of_the_single_ones(name: str) -> None:
    a = Mixture(region_draw(6), unmix.rule("unmix", share=0.3))
    b = Mixture(published_draw(unmix.rule("unmix"), 0.7), unmix.rule("unmix", share=2.0))
    clean, both = loss_of(name, None), loss_of(name, [a, b])
    one, two = loss_of(name, a), loss_of(name, b)
    torch.testing.assert_close(both.clean, clean.clean)
    torch.testing.assert_close(both.mixed, one.mixed + two.mixed)
    torch.testing.assert_close(both.loss, clean.loss + one.mixed + two.mixed)


@pytest.mark.parametrize("joint", [True, False])
def test_joint_forwards_and_apart_ones_go_together(joint: bool) -> None:
    """In evaluation mode batch norm sees no batch, so that it makes no difference."""
    a = Mixture(region_draw(6), unmix.rule("unmix"), joint=joint)
    b = Mixture(published_draw(unmix.rule("mixco"), 0.7), unmix.rule("mixco"), joint=True)
    c = Mixture(UnMix(pairing="neighbor"), unmix.rule("unmix"))
    alone = sum(loss_of("moco", each).mixed for each in (a, b, c))
    torch.testing.assert_close(loss_of("moco", (a, b, c)).mixed, alone)


def test_the_clean_loss_goes_only_if_all_rules_replace_it() -> None:
    imix, added = Mixture(region_draw(6), RULES["imix"]), Mixture(region_draw(4), RULES["unmix"])
    assert loss_of("moco", [imix, imix]).clean is None
    both = loss_of("moco", [imix, added])
    torch.testing.assert_close(both.clean, loss_of("moco", None).clean)
    torch.testing.assert_close(
        both.mixed, loss_of("moco", imix).mixed + loss_of("moco", added).mixed
    )


def test_each_has_a_draw_and_further_views_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On several devices too, where the draws of a loss of the batch are alike."""
    method = build("barlow")
    views = [*views_of(method), torch.zeros(N, 3, 16, 16), torch.ones(N, 3, 16, 16)]
    second = UnMix(pairing="second_view")
    mixing = [(each, RULES["unmix"]) for each in (second, UnMix(), second)]
    monkeypatch.setattr("unmix.step_mixture.world_size", lambda: 2)
    own, mixtures = with_mixtures(method, views, mixing, seed=0, step=3)
    assert len(own) == 2
    assert [len(each.others) for each in mixtures] == [1, 0, 1]
    assert float(mixtures[0].others[0].sum()) == 0 < float(mixtures[2].others[0].sum())
    weights = [float(each.draw(own[0], generator_for(0)).pairs.weight[0]) for each in mixtures[::2]]  # type: ignore[attr-defined]
    assert weights[0] != weights[1]
    assert with_mixtures(method, views, mixing, seed=0, step=3, mixes=False)[1] == []


def test_a_stepper_takes_a_list_and_shares_sum_to_those_of_one() -> None:
    step = unmix.Stepper(
        build("moco"), steps_per_epoch=3, epochs=1, mixture=[UnMix(), MixMask()], rule="unmix"
    )
    assert [rule.share for _, rule in step.mixing] == [0.5, 0.5]
    loss = step(views_of(step.method), torch.arange(N))
    loss.backward()
    assert step.clean is not None
    assert step.mixed is not None
    torch.testing.assert_close(loss.detach(), step.clean + step.mixed)
    each = unmix.Stepper(
        build("moco"), steps_per_epoch=3, epochs=1, mixture=[UnMix(), FMix()],
        rule=["imix", unmix.rule("unmix")], shares=[1, 0.25],
    )  # fmt: skip
    assert [(rule.label, rule.share) for _, rule in each.mixing] == [("i-Mix", 1), ("Un-Mix", 0.25)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mixture": [UnMix(), FMix()], "shares": [1]}, "shares: 1 for 2 mixtures"),
        ({"mixture": [UnMix(), FMix()], "shares": [1, 0]}, "shares must be greater than 0"),
        ({"mixture": [UnMix(), FMix()], "rule": ["imix"]}, "rule: there are 1 for 2 mixtures"),
        ({"mixture": UnMix(), "shares": [1]}, "shares: are for several mixtures"),
        ({"mixture": [UnMix(), UnMix]}, "mixture: UnMix is no label-space mixture"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        unmix.Stepper(build("moco"), steps_per_epoch=2, epochs=3, **words)


WORDS: dict[str, Any] = {**MOCO_RUN, "unmix": True, "unmix_mixture": "coin+mixmask"}


def test_the_flags_make_both_and_their_cost_counts_both() -> None:
    module = build_parts(Settings.of({**WORDS, "unmix_patch": 4, "unmix_prob": 0.2})).module
    assert [operator for operator, _ in module.mixing] == [UnMix(0.2), MixMask(cells=4)]
    assert [rule.share for _, rule in module.mixing] == [0.5, 0.5]
    shares = {"unmix_shares": (1, 0.5), "unmix_share": 2, "unmix_rule": "imix"}
    module = build_parts(Settings.of({**WORDS, **shares})).module
    assert [rule.share for _, rule in module.mixing] == [2, 1]
    settings = MixtureSettings(unmix=True, unmix_mixture="coin+mixmask")
    assert settings.name == "Un-Mix (coin+mixmask)"
    assert settings.folder == "un-mix-coin+mixmask"
    one, two, none = (
        forward_equivalents(Settings.of({**MOCO_RUN, **words}), 100)
        for words in ({"unmix": True}, {"unmix": True, "unmix_mixture": "coin+region"}, {})
    )
    assert two - one == pytest.approx(one - none, rel=0.01)


def test_a_run_of_two_is_finished_and_resumed(tmp_path: Path) -> None:
    run = {**WORDS, "evaluate": False, "accumulate": 5, "run": str(tmp_path / "a")}
    assert pretrain(**run).mixture == "Un-Mix (coin+mixmask)"
    again = pretrain(run=str(tmp_path / "a"), extend=True, epochs=2)
    assert again.epochs == 2


MISTAKES: list[tuple[list[str], str]] = [
    (["--unmix_mixture", "coin+mixmas"], "--unmix_mixture: 'mixmas' is unknown. Did you mean"),
    (["--unmix_mixture", "coin+fmix", "--unmix_patch", "4"], "--unmix_patch: 4 does not apply to"),
    (["--unmix_shares", "1", "1"], "--unmix_shares: is for several mixtures"),
    (["--unmix_mixture", "coin+fmix", "--unmix_shares", "1"], "--unmix_shares: 1 for 2 mixtures"),
    (["--unmix_mixture", "coin+fmix", "--unmix_shares", "1,-1"], "--unmix_shares: -1"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "wanted"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_what_does_not_fit_is_one_line(
    words: list[str], wanted: str, refuse: Callable[..., str], tmp_path: Path
) -> None:
    run = ["--method", "moco", "--data", "digits", "--unmix", "--run", tmp_path / "nowhere"]
    assert wanted in refuse("pretrain", *run, *words)
